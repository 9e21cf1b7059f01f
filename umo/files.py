"""Files and folders that appear whole or not at all."""

import ctypes
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux's renameat2(2)


@contextmanager
def replacing(path: Path, *, several: bool = False) -> Iterator[Path]:
    """A name beside `path` to write a file or a folder under, which takes the place of `path` at one instant.

    Killed anywhere, what stood there before stands whole, and the next writing clears what was left. After an error in
    the block nothing has changed.

    Args:
        several: processes may write the same path at once; then each writes under a name of its own.
    """
    temporary = _beside(path, str(os.getpid())) if several else _beside(path)
    clear(path)
    try:
        yield temporary
        if temporary.is_dir() and path.exists():
            _swap(temporary, path)
        else:
            temporary.replace(path)
    finally:
        remove(temporary)


def clear(path: Path) -> None:
    """Remove what a killed `replacing` left."""
    old = _beside(path, "old")
    if old.exists() and not path.exists():  # killed between the two renames of `_swap`
        old.replace(path)
    for left in (_beside(path), old):
        remove(left)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _beside(path: Path, *more: str) -> Path:
    return path.with_name(".".join(("", path.name, *more, "tmp")))


def _swap(new: Path, path: Path) -> None:
    """Put a folder in another's place, at one instant where the file system can."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    if rename and rename(_HERE, os.fsencode(new), _HERE, os.fsencode(path), _EXCHANGE) == 0:
        return
    old = _beside(path, "old")
    path.replace(old)
    new.replace(path)
    remove(old)
