"""Checkpoints: one file each, written whole or not at all, and believed only if its checksum is right."""

import hashlib
import os
import re
import sys
from pathlib import Path
from typing import Any

import torch

_NAME = re.compile(r"checkpoint-(\d{8})-([0-9a-f]{16})\.pt")


def save(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write `checkpoint-STEP-CHECKSUM.pt`, then remove all but the `keep` newest.

    `state` holds tensors, numbers, strings, and dicts and lists of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "checkpoint.tmp"  # one name: what a killed run left is overwritten
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    path = folder / f"checkpoint-{step:08d}-{_checksum(temporary)}.pt"
    temporary.replace(path)
    for old in find(folder)[:-keep]:
        old.unlink()
    return path


def find(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    return sorted(path for path in folder.glob("checkpoint-*.pt") if _NAME.fullmatch(path.name))


def newest(folder: Path) -> dict[str, Any] | None:
    """The newest whole checkpoint's state; a damaged one is refused with a line, and the one before it is used."""
    for path in reversed(find(folder)):
        found = _NAME.fullmatch(path.name)
        assert found
        if _checksum(path) == found[2]:
            return torch.load(path, map_location="cpu", weights_only=True)
        print(f"{path}: cut short or damaged; going back to the checkpoint before it", file=sys.stderr)
        path.unlink()
    return None


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
