"""What a diffusers folder is made of, read without a library: who asks for its checksum needs no torch."""

from pathlib import Path
from typing import Any

from umo.errors import BadInput
from umo.texts import read_json

AGAIN = "copy the whole folder again"


def read_index(folder: Path) -> dict[str, Any]:
    """`model_index.json`.

    Raises:
        BadInput: not a diffusers folder.
    """
    path = folder / "model_index.json"
    try:
        index = read_json(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadInput(f"{folder}: no diffusers folder (model_index.json is missing); give a base's folder") from error
    except (OSError, BadInput) as error:
        raise BadInput(f"{path}: not readable as JSON; {AGAIN}") from error
    if not isinstance(index, dict) or "_class_name" not in index:
        raise BadInput(f"{path}: names no pipeline (_class_name); give a base's folder")
    return index


def model_files(folder: Path) -> list[Path]:
    """What a base's drawings depend on: its index, its settings, its components; not its card, its samples, its script.

    Raises:
        BadInput: not a diffusers folder.
    """
    components = [folder / name for name in read_index(folder) if (folder / name).is_dir()]
    found = [path for component in components for path in component.rglob("*") if path.is_file()]
    own = [folder / name for name in ("model_index.json", "customizer.json")]
    return sorted([*found, *(path for path in own if path.exists())])


def adapter_config(lora: Path) -> Path | None:
    """The settings, alpha among them, that peft keeps beside the LoRA in a file; None where it did not write it."""
    config = lora.with_name("adapter_config.json")
    return config if lora.name == "adapter_model.safetensors" and config.exists() else None
