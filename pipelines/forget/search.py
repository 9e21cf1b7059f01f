"""The scan of many files: in shards, by whoever does the stages' shards, once a content however many copies it has.

What was found in a content is kept in `.work/forget/scan` by its checksum, a file a shard, until the forget is done:
a killed one goes on, and the proof reads only what is new since. Nothing of the files is in it but their checksums.
"""

import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipelines.core.digests import digest, file_digest
from pipelines.core.executors import Machine, do_all
from pipelines.core.shards import WORK
from pipelines.forget.scan import UNREAD, Found, Reader, Seen, Wanted
from umo.files import write_text

FOLDER = WORK / "forget"
KNOWN = FOLDER / "scan"
OTHERS = FOLDER / "others.npy"
SHARD_FILES, SHARD_BYTES = 256, 2**27


class Search:
    """Looks for somebody in any number of files."""

    def __init__(self, wanted: Wanted, machine: Machine | None = None) -> None:
        self.wanted, self.reader = wanted, Reader(wanted)
        self._machine = (machine or Machine()).model_copy(update={"device": "cpu"})  # no network is asked
        others = file_digest(wanted.others) if wanted.others else None
        arrays = [np.asarray(part).tolist() for part in (wanted.phashes, wanted.centres)]
        named = [sorted(wanted.person_ids), sorted(wanted.image_ids), wanted.pad, wanted.min_cosine]
        self._folder = KNOWN / digest(named, arrays, others)[:16]
        self._known: dict[str, Found] = {}
        for file in self._folder.glob("*.json"):
            self._learn(file)

    def files(self, paths: Iterable[Path]) -> dict[Path, Found]:
        """What each file holds, in its content or by its name."""
        files = list(paths)
        with ThreadPoolExecutor() as pool:
            reading = tqdm(pool.map(_checksum, files), "forget: checksums", len(files), disable=len(files) < 2)
            digests = {path: value for path, value in zip(files, reading, strict=True) if value}
        unknown = {value: path for path, value in digests.items() if value not in self._known}
        jobs = {}
        for part in _shards(unknown):
            name = digest(sorted(part))[:32]
            jobs[name] = (self.wanted, part, self._folder / f"{name}.json")
        do_all("forget: scan", _look, jobs, self._machine)
        for _, _, file in jobs.values():
            self._learn(file)
        return {path: self._named(path, self._known[value]) for path, value in digests.items()}

    def walk(self, root: Path, leave: Iterable[Path] = ()) -> Seen:
        """All files below a folder (or one file), but those below `leave`."""
        seen = Seen()
        for path, found in self.files(files_below(root, leave)).items():
            seen.files += 1
            seen.pictures += found.pictures
            if found:
                seen.found[path] = found.kinds
            if UNREAD in found.kinds:
                seen.unread.append(path)
        return seen

    def holding(self, pieces: Iterable[Path]) -> list[Path]:
        """The pieces, files or folders, below which anything is found."""
        below = {piece: list(files_below(piece)) for piece in pieces}
        found = self.files(path for paths in below.values() for path in paths)
        return [piece for piece, paths in below.items() if any(found.get(path) for path in paths)]

    def _named(self, path: Path, found: Found) -> Found:
        return found._replace(kinds=found.kinds | {"ids"}) if self.reader.named(path) else found

    def _learn(self, file: Path) -> None:
        rows = json.loads(file.read_text())
        self._known |= {value: Found(frozenset(kinds), pictures) for value, (kinds, pictures) in rows.items()}


def files_below(root: Path, leave: Iterable[Path] = ()) -> Iterator[Path]:
    """Files below a folder, or the file itself, in order, but those below `leave`."""
    left = set(leave)
    if left & {root, *root.parents}:
        return
    if root.is_file():
        yield root
    for where, folders, names in os.walk(root):
        folder = Path(where)
        folders[:] = sorted(name for name in folders if folder / name not in left)
        yield from (path for name in sorted(names) if (path := folder / name) not in left and path.is_file())


def _checksum(path: Path) -> str:
    """Of a file's bytes; empty for one that has gone meanwhile, of a server that is at work."""
    with suppress(FileNotFoundError):
        return file_digest(path)
    return ""


def _shards(files: dict[str, Path]) -> Iterator[dict[str, Path]]:
    part: dict[str, Path] = {}
    size = 0
    for value, path in files.items():
        part[value] = path
        size += path.stat().st_size
        if len(part) >= SHARD_FILES or size >= SHARD_BYTES:
            yield part
            part, size = {}, 0
    if part:
        yield part


def _look(job: tuple[Wanted, dict[str, Path], Path]) -> None:
    """A shard of the scan: checksum -> kinds and pictures."""
    wanted, files, target = job
    reader = Reader(wanted)
    found = {value: reader.content(path, value) for value, path in files.items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, json.dumps({value: [sorted(one.kinds), one.pictures] for value, one in found.items()}))
