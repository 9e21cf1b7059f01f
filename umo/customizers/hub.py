"""A base by its name on the Hugging Face Hub."""

import re
from pathlib import Path

from umo.errors import BadInput

_NAME = re.compile(r"(?!models/)[\w.-]+/[\w.-]+(@[\w./-]+)?", re.ASCII)  # models: this project's folder
_WANTED = ["model_index.json", "customizer.json", "README.md", "LICENSE*", "*/*"]  # not the same weights in one file
_UNWANTED = ["*.bin", "*.msgpack", "*.onnx*", "*.fp16.*"]


def local_folder(model: Path | str) -> Path:
    """A base's folder; where there is none and `model` is `org/name` or `org/name@revision`, a copy from the Hub.

    The copy is in the Hub client's cache, and is used without a network the next time.

    Raises BadInput: it is not on the Hub, not open to this user, or the Hub cannot be reached.
    """
    folder = Path(model)
    if folder.exists() or folder.parent.is_dir() or not _NAME.fullmatch(str(model)):
        return folder
    from huggingface_hub import snapshot_download  # slow to import, and a folder does not need it
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    name, _, revision = str(model).partition("@")
    try:
        return Path(
            snapshot_download(name, revision=revision or None, allow_patterns=_WANTED, ignore_patterns=_UNWANTED)
        )
    except GatedRepoError as error:
        accept = f"accept its terms at https://huggingface.co/{name} and log in (hf auth login)"
        raise BadInput(f"{model}: the Hub gives it only to those who agreed: {accept}") from error
    except RepositoryNotFoundError as error:
        remedy = "check the name, or log in if it is private (hf auth login)"
        raise BadInput(f"{model}: neither a folder here nor a model on the Hub: {remedy}") from error
    except RevisionNotFoundError as error:
        raise BadInput(f"{model}: {name} has no revision {revision or 'main'}: choose another") from error
    except Exception as error:  # the Hub's client raises its transport's errors as they are
        reason = " ".join(str(error).split())[:160]
        raise BadInput(
            f"{model}: no folder here, and the Hub cannot be asked for it ({reason}): give a base's folder, or try "
            "again with a network"
        ) from error
