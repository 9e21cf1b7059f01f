"""Reading a diffusers folder: every component by its own `from_pretrained`, every defect in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from umo.customizers.base import Settings
from umo.customizers.frozen import quantization
from umo.errors import BadInput
from umo.model_index import AGAIN, model_files, read_index
from umo.texts import read_json

__all__ = [
    "AGAIN",
    "check_weights",
    "empty_model",
    "load_model",
    "load_other",
    "model_files",
    "no_bars",
    "read_index",
    "read_settings",
]

Kind = TypeVar("Kind", bound=Settings)


def read_settings(folder: Path, defaults: Kind) -> Kind:
    """The family's defaults, or what `customizer.json` says instead; BadInput where that is unknown or impossible."""
    path = folder / "customizer.json"
    if not path.exists():
        return defaults
    try:
        return type(defaults)(**{**defaults.model_dump(), **read_json(path)})
    except (ValueError, TypeError, ValidationError) as error:
        raise BadInput(f"{path}: {' '.join(str(error).split())[:200]}; correct or remove it") from error


def check_weights(folder: Path, *names: str) -> None:
    """Raises BadInput, before minutes of loading, where one of some model components is missing or cut short."""
    for name in names:
        _check_weights(_component(folder, name))


def empty_model(folder: Path, name: str, kind: Any) -> Any:
    """A model component of a diffusers class without its weights, on the meta device."""
    path = _component(folder, name)
    try:
        with torch.device("meta"):
            return kind.from_config(kind.load_config(str(path), local_files_only=True))
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:160]
        raise BadInput(f"{path}: cannot be loaded as {kind.__name__} ({reason}); {AGAIN}") from error


def load_model(folder: Path, name: str, kind: Any, dtype: torch.dtype) -> Any:
    """A model component of a diffusers or transformers class, with weights of `dtype`.

    Raises BadInput where it is missing, cut short, of other shapes than its config says, or weights are left out.
    """
    path = _component(folder, name)
    _check_weights(path)
    try:
        options = {"output_loading_info": True, "local_files_only": True, "use_safetensors": True, **quantization(name)}
        with no_bars():
            model, info = kind.from_pretrained(str(path), torch_dtype=dtype, **options)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:160]
        raise BadInput(f"{path}: cannot be loaded as {kind.__name__} ({reason}); {AGAIN}") from error
    if missing := sorted(info["missing_keys"]):
        raise BadInput(f"{path}: {len(missing)} weights are missing ({missing[0]}, ...); {AGAIN}")
    return model.requires_grad_(False).eval()


def load_other(folder: Path, name: str, kind: Any) -> Any:
    """A tokenizer or scheduler; BadInput where it is missing or not readable."""
    path = _component(folder, name)
    try:
        return kind.from_pretrained(str(path), local_files_only=True)
    except Exception as error:  # tokenizers raise bare Exception for a file cut short
        reason = " ".join(str(error).split())[:160]
        raise BadInput(f"{path}: cannot be loaded as {kind.__name__} ({reason}); {AGAIN}") from error


@contextmanager
def no_bars() -> Iterator[None]:
    """Without transformers' progress bars, one a component: they are of no use and hide ours."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _component(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_dir():
        raise BadInput(f"{folder}: component '{name}' is missing; {AGAIN}")
    return path


def _check_weights(path: Path) -> None:
    """All weight files are there and whole: a header tells how long its file must be."""
    files = set(path.glob("*.safetensors"))
    for index in path.glob("*.safetensors.index.json"):
        try:
            files |= {path / name for name in read_json(index)["weight_map"].values()}
        except (BadInput, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{index}: not readable; {AGAIN}") from error
    if not files:
        raise BadInput(f"{path}: no .safetensors weights; {AGAIN}")
    for file in sorted(files):
        try:
            with safe_open(file, "pt"):
                pass
        except (OSError, SafetensorError) as error:
            state = "cut short or damaged" if file.exists() else "missing"
            raise BadInput(f"{file}: weights {state}; {AGAIN}") from error
