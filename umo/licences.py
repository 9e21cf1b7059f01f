"""Under which licence a base and a LoRA stand, as their own files say; for whoever publishes what comes of them."""

import re
from pathlib import Path

import yaml

from umo.texts import printable

UNKNOWN = "unknown"
_FRONT = re.compile(r"\A---\r?\n(.*?)\r?\n---", re.DOTALL)


def of_base(folder: Path) -> str:
    """By README.md's front matter (`license`, or `license_name` where that is `other`), else the licence's own file."""
    files = sorted(path.name for path in folder.glob("LICEN[SC]E*") if path.is_file())
    return _front(folder / "README.md") or (f"see {files[0]}" if files else UNKNOWN)


def of_lora(lora: Path) -> str:
    """By the metadata of a .safetensors file, or of the one in a folder; else by the README.md beside it."""
    from safetensors import SafetensorError, safe_open  # with numpy

    folder = lora if lora.is_dir() else lora.parent
    for path in sorted(lora.glob("*.safetensors")) if lora.is_dir() else [lora]:
        try:
            with safe_open(path, "np") as file:
                metadata = file.metadata() or {}
        except (OSError, SafetensorError):
            continue  # who loads it says what is wrong with it
        for key in ("licence", "license", "modelspec.license"):
            if metadata.get(key):
                return printable(metadata[key])
    return _front(folder / "README.md") or UNKNOWN


def line(base: Path, lora: Path | None) -> str:
    """For people."""
    return f"licences: {base.resolve().name}: {of_base(base)}" + (f"; {lora.name}: {of_lora(lora)}" if lora else "")


def _front(card: Path) -> str | None:
    try:
        text = card.read_text(encoding="utf-8", errors="replace")
        found = yaml.safe_load(front[1]) if (front := _FRONT.match(text)) else None
    except (OSError, yaml.YAMLError):
        return None
    if not isinstance(found, dict):
        return None
    licence = found.get("license")
    named = found.get("license_name") if licence == "other" else licence
    return printable(str(named or licence)) if named or licence else None
