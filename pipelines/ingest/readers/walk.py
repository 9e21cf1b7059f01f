"""What lies below a source's folder, linked folders included; what cannot be read is named, special files stay shut."""

import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pipelines.core.shards import digest
from pipelines.core.sources import SOURCES, text
from pipelines.ingest.readers.base import Found
from umo.errors import BadInput

Parts = tuple[str, ...]  # of a path, from the source's folder on


class _Folder(NamedTuple):
    parts: Parts
    behind_link: bool


def walk(name: str, root: Path, include: str) -> tuple[list[Path], list[Found]]:
    """The files that fit a pattern, in order; and rows for links, folders and special files that cannot be read.

    A folder that is met again through a link, as in a loop, is a row; what lies there without links comes first.

    Args:
        include: a glob pattern, relative to the root.

    Raises BadInput where the root cannot be read.
    """
    below = _Below(root, PurePosixPath(include).parts)
    while below.waiting or below.linked:
        folder = below.waiting.pop() if below.waiting else below.linked.pop(below.linked.index(min(below.linked)))
        try:
            below.read(folder)
        except OSError as error:
            if not folder.parts:
                where = f"{SOURCES}: source '{name}': {root}"
                raise BadInput(f"{where} cannot be read ({error.strerror}): check its permissions") from error
            below.faults[folder.parts] = f"cannot be read ({error.strerror}): check its permissions"
    return [root.joinpath(*parts) for parts in sorted(below.files)], list(below.rows(name))


class _Below:
    def __init__(self, root: Path, pattern: Parts) -> None:
        self._root, self._pattern = root, pattern
        self.waiting, self.linked = [_Folder((), False)], list[_Folder]()
        self.files: list[Parts] = []
        self.faults: dict[Parts, str] = {}
        self._met: dict[tuple[int, int], Parts] = {}  # device and inode -> where

    def rows(self, name: str) -> Iterator[Found]:
        for parts, fault in sorted(self.faults.items()):
            path = "/".join(parts)
            yield Found(digest(name, path), name, text(path), self._root / path, fault)

    def read(self, folder: _Folder) -> None:
        path = self._root.joinpath(*folder.parts)
        status = path.stat()
        before = self._met.setdefault((status.st_dev, status.st_ino), folder.parts)
        if folder.behind_link and before != folder.parts:
            fault = f"the same folder as {text('/'.join(before)) or '.'}, where its files are read: remove the link"
            self.faults[folder.parts] = fault
            return
        with os.scandir(path) as entries:
            for entry in entries:
                try:
                    self._take(entry, folder)
                except OSError as error:
                    fault = f"cannot be read ({error.strerror}): check the path and its permissions"
                    self.faults[*folder.parts, entry.name] = fault

    def _take(self, entry: os.DirEntry, folder: _Folder) -> None:
        parts = (*folder.parts, entry.name)
        fits, leads_on = fits_glob(parts, self._pattern), fits_glob(parts, self._pattern, whole=False)
        is_link = entry.is_symlink()
        if not fits and not leads_on:
            return
        if entry.is_dir():
            if leads_on:
                (self.linked if is_link else self.waiting).append(_Folder(parts, is_link or folder.behind_link))
        elif entry.is_file():
            if fits:
                self.files.append(parts)
        elif is_link and not Path(entry.path).exists():
            target = text(str(Path(entry.path).readlink()))
            self.faults[parts] = f"a link to {target}, which is not there: mend the link, or remove it"
        elif fits:
            self.faults[parts] = "a pipe, a socket or a device, which is not opened: put the file itself there"


def fits_glob(parts: Parts, pattern: Parts, whole: bool = True) -> bool:
    """Whether a path fits a glob pattern; or, where `whole` is false, whether something below it could."""
    if not parts:
        return all(part == "**" for part in pattern) if whole else bool(pattern)
    if not pattern:
        return False
    if pattern[0] == "**":
        return fits_glob(parts, pattern[1:], whole) or fits_glob(parts[1:], pattern, whole)
    return fnmatchcase(parts[0], pattern[0]) and fits_glob(parts[1:], pattern[1:], whole)
