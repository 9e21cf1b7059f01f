"""How far whole pictures agree with prompts and references, by CLIP, SigLIP, SigLIP 2 or DINOv2: no judges of faces.

As DreamBooth (arXiv 2208.12242) defines CLIP-I, DINO and CLIP-T: cosines of the drawn picture's embedding with those of
the real ones, or of the prompt. Published numbers differ by the network, its size and how a picture is cropped; all of
that is the folder's, and is written down beside the means.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from umo import records
from umo.customizers.folder import no_bars
from umo.devices import prepare
from umo.errors import BadInput
from umo.evaluation.cases import Case
from umo.evaluation.judges import in_parts
from umo.evaluation.metrics import over_cases
from umo.faces.weights import sha256
from umo.files import replacing
from umo.images import ImageError, read_image
from umo.texts import fault, read_json

# model_type of config.json -> class of transformers, and what is taken of it.
KINDS = {
    "clip": ("CLIPModel", "projected"),
    "siglip": ("SiglipModel", "pooled"),  # SigLIP 2 at a fixed size is published under this type too
    "siglip2": ("Siglip2Model", "pooled"),
    "dinov2": ("Dinov2Model", "CLS"),
    "dinov2_with_registers": ("Dinov2WithRegistersModel", "CLS"),
    "vit": ("ViTModel", "CLS"),  # the first DINO's, ViT-S/16, by which DreamBooth and DINO-I are published
}
PICTURES_AT_ONCE = 16
TEXTS_AT_ONCE = 64
LONGEST = 100  # times its height or width; scaled to the networks' height a longer picture would fill the memory
AGAIN = "copy the whole folder again"
# Not among umo/records.py: no stage hands it on, and another record there would have all of them done again.
TABLE = pa.schema(
    [
        ("case_id", pa.string()),
        ("seed", pa.int32()),  # rank of the image in its case
        ("n", pa.int32()),  # references
        ("model", pa.string()),  # name of the folder
        ("text_cosine", pa.float32()),  # with the prompt; null where there is none, or the model reads no text
        ("image_cosine", pa.float32()),  # with the references; null where one of them cannot be used
        ("error", pa.string()),  # why the picture could not be used; null where it could
    ],
    metadata={"record": "agreement"},
)


class Agreement:
    """A model of transformers in a local folder: nothing is downloaded, of its files no code is run.

    Attributes:
        name: the folder's.
        model_type: a key of `KINDS`.
        files: weights, and what says how pictures are prepared.
        longest: tokens of a text that are read; None of a model that reads none.

    Raises BadInput: no such folder, another kind of model, a file that is missing or broken, weights that are missing,
    left over, of other shapes or not finite, no such device.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        folder = folder.resolve()
        self.name = folder.name
        if bad := fault(self.name, name=True):
            raise BadInput(f"--agreement: {bad}: rename the folder")
        config = _config(folder)
        self.model_type = config["model_type"]
        weights = _weights(folder)
        self.files = (*weights, _preparation(folder))
        prepare(device)
        self._device = device
        self._model = _model(folder, self.model_type).to(device)
        with _refusing(folder):
            self._processor = _processor(folder)
            text = self._model.config.text_config if self.reads_text else None
            self._tokenizer = _tokenizer(folder, self.model_type, text.vocab_size) if text else None
            self.longest = int(text.max_position_embeddings) if text else None
            found = [self.embed_images([np.full((32, 32, 3), 127, np.uint8)])]  # what does not fit shows here
            found += [self.embed_texts(["a"])] if self.reads_text else []
        if not all(np.isfinite(vectors).all() for vectors in found):
            raise BadInput(f"{folder}: a grey picture has an embedding that is not finite; {AGAIN}")

    @property
    def reads_text(self) -> bool:
        return KINDS[self.model_type][1] != "CLS"

    def identity(self) -> dict[str, Any]:
        """What makes two agreements comparable; nothing here says under which licence the weights stand."""
        return {
            "name": self.name,
            "model_type": self.model_type,
            "vector": KINDS[self.model_type][1],
            "files": {path.name: sha256(path) for path in self.files},
            "licence": "unknown",
        }

    @torch.inference_mode()
    def embed_images(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Pictures, each (H, W, 3) uint8 RGB -> (N, d) float32 unit vectors."""
        pictures = [Image.fromarray(image) for image in images]
        inputs = self._processor(images=pictures, return_tensors="pt").to(self._device)
        if not self.reads_text:
            return _unit(self._model(**inputs).last_hidden_state[:, 0])
        return _unit(self._model.get_image_features(**inputs).pooler_output)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts -> (N, d) float32 unit vectors; what is beyond `longest` tokens is cut off.

        SigLIP was trained on lower case padded on the right to its full length, the padding not masked; its vector is
        that of the last position. Without all of this it is another vector.
        """
        assert self._tokenizer is not None
        options: dict[str, Any] = {"truncation": True, "max_length": self.longest, "return_tensors": "pt"}
        if self.model_type == "clip":
            inputs = self._tokenizer(list(texts), padding=True, **options)
            names = ["input_ids", "attention_mask"]
        else:
            inputs = self._tokenizer([text.lower() for text in texts], padding="max_length", **options)
            names = ["input_ids"]
        given = {name: inputs[name].to(self._device) for name in names}
        return _unit(self._model.get_text_features(**given).pooler_output)

    def is_cut(self, text: str) -> bool:
        """Whether a text is longer than the model reads."""
        assert self._tokenizer is not None and self.longest is not None
        return len(self._tokenizer(text, verbose=False)["input_ids"]) > self.longest


def load(names: Iterable[str], device: str = "cpu") -> list[Agreement]:
    """`Agreement` of each folder. Raises BadInput also where two have one name."""
    models = [Agreement(Path(name), device) for name in names]
    found = [model.name for model in models]
    if len(set(found)) < len(found):
        twice = max(found, key=found.count)
        raise BadInput(f"--agreement: two models are named {twice!r}: rename the folder of one")
    return models


def measure(cases: Sequence[Case], root: Path, models: Sequence[Agreement], out: Path) -> list[dict[str, Any]]:
    """Agreement by each model: writes `out/agreement.parquet`, a row a picture and model.

    What a model has seen is kept in `out/.partial` meanwhile, so that a killed run goes on where it stopped.

    Args:
        root: what the paths of the cases are relative to.

    Returns:
        For each model `identity`; `text` and `image`, each with mean and interval over cases, the same by number of
        people under `by_n`; `cut`, prompts longer than it reads; `skipped`, what was left out of `text` or `image` and
        why ({case_id, path, error}, path null for the prompt). `text` is null for a model that reads none.
    """
    found, table = [], []
    for model in models:
        rows, skipped = _rows(cases, root, model, out / ".partial")
        prompts = {case.prompt for case in cases if case.prompt.strip()} if model.reads_text else set()
        ns = sorted({row["n"] for row in rows})
        found.append(
            model.identity()
            | _means(rows, model)
            | {"by_n": {str(n): _means([row for row in rows if row["n"] == n], model) for n in ns}}
            | {"cut": sum(map(model.is_cut, prompts)), "skipped": skipped}
        )
        table += [{name: row[name] for name in TABLE.names} for row in rows]
    out.mkdir(parents=True, exist_ok=True)
    records.write(out / "agreement.parquet", records.table(table, TABLE), TABLE)
    return found


def _means(rows: Sequence[Mapping[str, Any]], model: Agreement) -> dict[str, Any]:
    text = asdict(over_cases(rows, [row["text_cosine"] for row in rows])) if model.reads_text else None
    return {"text": text, "image": asdict(over_cases(rows, [row["image_cosine"] for row in rows]))}


def _rows(
    cases: Sequence[Case], root: Path, model: Agreement, kept: Path
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of `TABLE`, with the people of the case; and what was skipped."""
    paths = [path for case in cases for path in (*(p for own in case.references for p in own), *case.images)]
    seen = _look(model, root, paths, kept)
    texts = _texts(model, [case.prompt for case in cases]) if model.reads_text else {}
    rows, skipped = [], []
    for case in cases:
        bad = {path: seen[path] for own in case.references for path in own if isinstance(seen[path], str)}
        bad |= {path: seen[path] for path in case.images if isinstance(seen[path], str)}
        skipped += [{"case_id": case.case_id, "path": path, "error": error} for path, error in bad.items()]
        if model.reads_text and case.prompt not in texts:
            skipped.append({"case_id": case.case_id, "path": None, "error": "no prompt"})
        for seed, path in enumerate(case.images):
            row = {"case_id": case.case_id, "seed": seed, "n": len(case.references), "people": case.people}
            row |= {"model": model.name, "text_cosine": None, "image_cosine": None, "error": bad.get(path)}
            if path not in bad:
                row["image_cosine"] = image_agreement(seen, case, path)
                if case.prompt in texts:
                    row["text_cosine"] = float(texts[case.prompt] @ seen[path])
            rows.append(row)
    return rows, skipped


def image_agreement(seen: Mapping[str, Any], case: Case, path: str) -> float | None:
    """The mean cosine in [-1, 1] of a drawn picture with the case's references; None where one cannot be used.

    A person counts once, with the mean over their photographs. All are whole pictures: a picture of several people
    agrees less with a portrait of one of them, however well it is drawn.
    """
    if any(isinstance(seen[photo], str) for own in case.references for photo in own):
        return None
    return float(np.mean([np.mean([seen[photo] @ seen[path] for photo in own]) for own in case.references]))


def _texts(model: Agreement, prompts: Sequence[str]) -> dict[str, np.ndarray]:
    """Prompt -> (d,) unit vector, of those that are not empty."""
    said = sorted({prompt for prompt in prompts if prompt.strip()})
    parts = in_parts(said, TEXTS_AT_ONCE)
    return {text: vector for part in parts for text, vector in zip(part, model.embed_texts(part), strict=True)}


def _look(model: Agreement, root: Path, paths: Sequence[str], kept: Path) -> dict[str, Any]:
    """Path -> (d,) unit vector, or why the picture cannot be used; each file is looked at once."""
    key = hashlib.sha256(repr(model.identity()).encode()).hexdigest()[:16]
    kept = kept / f"agreement-{key}"
    kept.mkdir(parents=True, exist_ok=True)
    digests = {path: _digest(root / path) for path in dict.fromkeys(paths)}
    first = {digest: path for path, digest in digests.items()}
    seen: dict[str, Any] = {digest: vector for digest in first if (vector := _recalled(kept, digest)) is not None}
    new = [(digest, path) for digest, path in first.items() if digest not in seen]
    with tqdm(total=len(new), unit="picture", desc=f"{model.name} looks", disable=None) as progress:
        for part in in_parts(new, PICTURES_AT_ONCE):
            pictures = {}
            for digest, path in part:
                try:
                    pictures[digest] = _read(root / path)
                except ImageError as error:
                    seen[digest] = str(error)
            vectors = model.embed_images(list(pictures.values())) if pictures else np.zeros((0, 0), np.float32)
            for digest, vector in zip(pictures, vectors, strict=True):
                seen[digest] = vector
                with replacing(kept / f"{digest}.npy") as file, file.open("wb") as opened:
                    np.save(opened, vector)
            progress.update(len(part))
    return {path: seen[digest] for path, digest in digests.items()}


def _read(path: Path) -> np.ndarray:
    picture = read_image(path)
    height, width = picture.shape[:2]
    if max(height, width) > LONGEST * min(height, width):
        raise ImageError(f"{width}x{height} px is over {LONGEST} times as long as it is wide: crop it")
    return picture


def _digest(path: Path) -> str:
    """sha256 of the file; of its path where it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return hashlib.sha256(os.fsencode(f"unreadable {path}")).hexdigest()


def _recalled(kept: Path, digest: str) -> np.ndarray | None:
    try:
        return np.load(kept / f"{digest}.npy")
    except (OSError, ValueError, EOFError):
        return None  # not seen, or cut short by a power failure


def _unit(vectors: Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy()


def _config(folder: Path) -> dict[str, Any]:
    """What config.json says, of a kind that is read."""
    path = folder / "config.json"
    if not path.is_file():
        raise BadInput(
            f"--agreement {folder}: no folder of transformers (config.json is not there); nothing is downloaded"
        )
    found = read_json(path)
    kind = found.get("model_type") if isinstance(found, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise BadInput(f"{path}: model_type {kind!r} is not read; give a folder of {', '.join(KINDS)}")
    return found


def _weights(folder: Path) -> tuple[Path, ...]:
    """Its weight files, of which transformers takes safetensors first."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        names = {"model.safetensors"}
    elif index.is_file():
        try:
            names = set(read_json(index)["weight_map"].values())
        except (KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{index}: names no weight files; {AGAIN}") from error
    else:
        names = {"pytorch_model.bin"}  # read as weights alone
    for name in sorted(names):
        if not (folder / str(name)).is_file():
            wanted = "model.safetensors" if name == "pytorch_model.bin" else name
            raise BadInput(f"{folder}: {wanted} is missing; {AGAIN}")
    return tuple(folder / name for name in sorted(names))


def _preparation(folder: Path) -> Path:
    """What says how a picture is scaled, cropped and normalised."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            read_json(folder / name)
            return folder / name
    raise BadInput(f"{folder}: preprocessor_config.json is missing; {AGAIN}")


def _model(folder: Path, model_type: str) -> Any:
    """With exactly its weights, in float32."""
    import transformers

    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False, "output_loading_info": True}
    if model_type == "vit":
        options["add_pooling_layer"] = False
    with _refusing(folder):
        kind = getattr(transformers, KINDS[model_type][0])
        model, info = kind.from_pretrained(str(folder), dtype=torch.float32, weights_only=True, **options)
    # Older files keep their places, which are no weights.
    extra = [name for name in info["unexpected_keys"] if not name.endswith("embeddings.position_ids")]
    for what, names in (("missing", info["missing_keys"]), ("of another model", extra)):
        if names:
            raise BadInput(f"{folder}: {len(names)} weights are {what} ({min(names)}, ...); {AGAIN}")
    for name, value in model.state_dict().items():
        if not torch.isfinite(value).all():
            raise BadInput(f"{folder}: the weight {name} is not finite; {AGAIN}")
    return model.requires_grad_(False).eval()


def _processor(folder: Path) -> Any:
    """The folder's own, computed by Pillow and numpy."""
    from transformers import AutoImageProcessor

    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False, "backend": "pil"}
    return AutoImageProcessor.from_pretrained(str(folder), **options)


def _tokenizer(folder: Path, model_type: str, words: int) -> Any:
    """The folder's own, of about as many words as the network knows: without its files an empty one would be made."""
    from transformers import AutoTokenizer
    from transformers.utils import is_sentencepiece_available

    said = folder / "tokenizer_config.json"
    if not said.is_file():
        raise BadInput(f"{folder}: tokenizer_config.json is missing; {AGAIN}")
    settings = read_json(said)
    if not isinstance(settings, dict):
        raise BadInput(f"{said}: says nothing of a tokenizer; {AGAIN}")
    if settings.get("tokenizer_class") == "SiglipTokenizer" and not is_sentencepiece_available():
        raise BadInput(f"{folder}: its tokenizer needs sentencepiece: pip install sentencepiece, or give SigLIP 2")
    found = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    if abs(len(found) - words) > 0.1 * words:  # some have a few that the other has not
        raise BadInput(f"{folder}: its tokenizer has {len(found)} words, its network {words}; {AGAIN}")
    if model_type != "clip":
        found.padding_side = "right"
    return found


@contextmanager
def _refusing(folder: Path) -> Iterator[None]:
    """Any error inside becomes one line, and transformers says nothing of its own."""
    from transformers.utils import logging

    said = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with no_bars():
            yield
    except BadInput:
        raise
    except Exception as error:  # transformers, tokenizers, safetensors and torch raise their own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise BadInput(f"{folder}: cannot be loaded ({reason}); {AGAIN}") from error
    finally:
        logging.set_verbosity(said)
