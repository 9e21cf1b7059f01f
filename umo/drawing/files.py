"""Files of drawn pictures, each with a key of what it was drawn from: what a run that is killed finds again."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from umo.files import replacing
from umo.model_index import adapter_config

KEY = "umo-key"  # of a PNG's text
_HASHED_WHOLE = 64 * 2**20


def write_picture(path: Path, picture: np.ndarray, key: str) -> None:
    """Write (H, W, 3) uint8 RGB as PNG, whole or not at all, with the key inside."""
    text = PngInfo()
    text.add_text(KEY, key)
    with replacing(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG", compress_level=6, pnginfo=text)


def read_key(path: Path) -> str | None:
    """The key of a picture that is there; None where there is none."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.info.get(KEY)
    except (OSError, SyntaxError, ValueError):
        return None


def digest(value: object) -> str:
    """sha256 of what JSON can say."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def files_digest(root: Path, files: Sequence[Path]) -> str:
    """Names and bytes of files; of a very large one its size and time of change instead of its bytes."""
    parts = []
    for file in files:
        state = file.stat()
        large = state.st_size > _HASHED_WHOLE
        content = [state.st_size, state.st_mtime_ns] if large else hashlib.sha256(file.read_bytes()).hexdigest()
        parts.append([file.relative_to(root).as_posix(), content])
    return digest(parts)


def lora_digest(lora: Path) -> str:
    """Of a LoRA's file, or of all in its folder, and of the settings that peft keeps beside."""
    files = [lora] if lora.is_file() else sorted(lora.rglob("*.safetensors"))
    configs = [config for file in files if (config := adapter_config(file))]
    return files_digest(lora.parent if lora.is_file() else lora, files + configs)
