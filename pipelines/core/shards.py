"""Shards: the unit of work that is keyed, resumed, run in parallel and published.

A shard's key is a hash of everything its product depends on: the bytes it reads, its section of params.yaml, the
model files, and the code and libraries of its stage (keys.py). Its product lies in `.work/STAGE/KEY`, written under a
temporary name and moved there whole, marker last; so whatever lies there under the right key is finished and right, and
an interrupted run goes on where it stopped. Publishing to the stage's DVC output is the last step and replaces the
output whole.

A shard that has changed may be made from what it was before: its work is shown the last published product of the same
name that the same code, libraries and params made, and takes over the pieces (pictures, scenes, crops) that are the
same.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from uuid import uuid4

from pydantic import BaseModel

from pipelines.core.digests import WORK, digest, file_digest, read_digest, remember_digest, tree_digest
from pipelines.core.executors import ALONE, Machine, do_all
from pipelines.core.keys import ROOT, code, versions
from pipelines.core.publish import MARKER, publish, writing
from umo.errors import BadInput
from umo.files import write_text

__all__ = [  # and what the stages need beside it
    "MARKER",
    "ROOT",
    "WORK",
    "Counts",
    "Machine",
    "Shard",
    "digest",
    "file_digest",
    "published_last",
    "read_marker",
    "run",
    "scratch",
    "tree_digest",
]


@dataclass(frozen=True)
class Shard:
    """A piece of a stage's work.

    Attributes:
        name: folder of its product inside the stage's output; "" publishes into the output itself.
        inputs: whatever the piece reads, by name -> digest.
        task: what the stage's function needs to know of it (picklable).
        before: set by `run`: the folder of what it was before, where that was made by the same code; see `kept_pieces`.
    """

    name: str
    inputs: Mapping[str, str]
    task: object = None
    before: Path | None = None

    def kept_pieces(self, pieces: Mapping[str, str]) -> set[str]:
        """Which of these pieces (name -> digest of what it depends on) were in the product before, and the same."""
        if self.before is None:
            return set()
        known = read_marker(self.before)["pieces"]
        return {name for name, value in pieces.items() if known.get(name) == value}


@dataclass
class Counts:
    """What a shard made, what it turned away, by reason, and the pieces that a later product may take over."""

    made: dict[str, int] = field(default_factory=dict)
    rejects: dict[str, int] = field(default_factory=dict)
    pieces: Mapping[str, str] = field(default_factory=dict)


ONE_PROCESS = Machine()
Work = Callable[[Shard, Path], Counts]


def run(
    stage: str,
    work: Work,
    shards: Sequence[Shard],
    out: Path,
    *,
    params: BaseModel,
    files: Iterable[Path] = (),
    machine: Machine = ONE_PROCESS,
    threads: int = 1,
) -> Counts:
    """Do the shards that are not done yet, then publish all of them to `out`.

    Args:
        stage: name of the stage, which is also its module `pipelines.STAGE`.
        work: writes a shard's product into the folder it is given; must be picklable for `process`.
        params: the stage's section of params.yaml, part of every key.
        files: data files that the stage's code reads (weights, calibrations, templates), part of every key.
        machine: serial in this process, or several processes.
        threads: shards that are done beside each other where this process does them.

    Raises:
        BadInput: there is no shard.
        WorkFailed: a shard failed; those finished are kept for the next run.
    """
    if not shards:
        raise BadInput(f"{stage}: nothing to do: its inputs hold no rows; see the stages before it")
    module = f"pipelines.{stage}.stage"
    data = {path.name: file_digest(path) for path in files}
    common = digest(stage, code(module), data, versions(module), params.model_dump(mode="json"))
    folders = {shard.name: WORK / stage / digest(common, shard.name, shard.inputs) for shard in shards}
    with writing(stage):
        _sweep(WORK / stage)
        pending = {shard.name: shard for shard in shards if not _finished(folders[shard.name])}
        latest = _Latest(stage, out, common)
        jobs = {name: (replace(shard, before=latest.of(name)), folders[name]) for name, shard in pending.items()}
        anew = out.exists() and not any(shard.before for shard, _ in jobs.values())
        _start(stage, len(shards), len(shards) - len(pending), anew)
        light = _light([shard for shard, _ in jobs.values()])
        do_all(stage, partial(_do, work, common), jobs, machine, light, threads)
        _sweep(WORK / stage)
        for name in pending:
            _remember(folders[name])
        publish({folder: name for name, folder in folders.items()}, out)
        latest.write(folders)
        return _report(stage, folders, out)


def _sweep(folder: Path) -> None:
    """Remove what the killed left; moved away first, so that a worker which outlived its run cannot go on in it."""
    for left in folder.glob("*.tmp"):
        swept = left.with_suffix(f".{uuid4().hex}.swept")
        with suppress(FileNotFoundError):
            left.replace(swept)
    for swept in folder.glob("*.swept"):
        shutil.rmtree(swept, ignore_errors=True)


def _start(stage: str, n: int, n_done: int, anew: bool) -> None:
    if n_done:
        print(f"{stage}: {n_done} of {n} shards are done already", flush=True)
    elif anew:
        now = "today's code, libraries, params and inputs"
        print(f"{stage}: {WORK / stage} has nothing made with {now}: all is made anew ({n} shards)", flush=True)


def _finished(folder: Path) -> bool:
    """Whether the marker's key is the folder's and every product has the marker's checksum."""
    try:
        marker = read_marker(folder)
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    products = marker.get("sha256", {})
    return marker.get("key") == folder.name and all(
        (folder / name).is_file() and file_digest(folder / name) == value for name, value in products.items()
    )


def published_last(stage: str, out: Path) -> dict[str, Path]:
    """Name -> folder in .work of the shards that were published last to `out`; some may have gone since."""
    return {name: WORK / stage / key for name, key in _Latest(stage, out, "").keys.items()}


def read_marker(folder: Path) -> dict:
    """What is known of a finished shard: its key, its counts, and the `sha256` of its files by their names."""
    return json.loads((folder / MARKER).read_text())


class _Latest:
    """The keys of the shards that were published last to `out`, by name."""

    def __init__(self, stage: str, out: Path, common: str) -> None:
        self._common, self._stage = common, WORK / stage
        self._path = self._stage / f"latest-{digest(str(out))[:8]}.json"
        self.keys: dict[str, str] = {}
        with suppress(FileNotFoundError, ValueError):  # without it all pieces are made anew
            self.keys = json.loads(self._path.read_text())

    def of(self, name: str) -> Path | None:
        """The finished product of this name, if the same code, libraries and params made it."""
        folder = self._stage / self.keys.get(name, "-")
        whole = _finished(folder)
        return folder if whole and read_marker(folder).get("common") == self._common else None

    def write(self, folders: Mapping[str, Path]) -> None:
        """These are the latest now."""
        keys = {name: folder.name for name, folder in folders.items()}
        if keys != self.keys:
            write_text(self._path, json.dumps(keys))


def _light(shards: Sequence[Shard]) -> bool:
    """Whether they are likely to be done before other processes would have started.

    One with pieces to take over is done at once, another takes as long as it did before, and a new one as the longest.
    """
    before = [read_marker(shard.before) for shard in shards if shard.before]
    anew = [marker["seconds"] for marker in before if not marker["pieces"]]
    longest = max((marker["seconds"] for marker in before), default=math.inf)
    return sum(anew) + longest * (len(shards) - len(before)) < ALONE


def _do(work: Work, common: str, job: tuple[Shard, Path]) -> None:
    """One shard: temporary folder, product, marker, one rename."""
    shard, folder = job
    if _finished(folder):  # by a worker that died before it could say so
        return
    temporary = folder.with_name(f"{folder.name}.{uuid4().hex}.tmp")
    temporary.mkdir(parents=True)
    started = time.perf_counter()
    try:
        counts = work(shard, temporary)
        products = sorted(path for path in temporary.rglob("*") if path.is_file())
        marker = {
            "key": folder.name,
            "common": common,
            "shard": shard.name,
            "counts": counts.made,
            "rejects": counts.rejects,
            "pieces": dict(counts.pieces),
            "seconds": round(time.perf_counter() - started, 3),
            "sha256": {str(path.relative_to(temporary)): read_digest(path) for path in products},
        }
        (temporary / MARKER).write_text(json.dumps(marker, indent=1))
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def scratch(folder: Path) -> Path:
    """Where the work on a shard may keep what it has, for a killed run to find again under the same key.

    Args:
        folder: the temporary folder that the work was given.
    """
    return folder.with_name(f"{folder.name.split('.')[0]}.partial")


def _remember(folder: Path) -> None:
    """Spare the next run the reading of what has just been made, and not been written to since."""
    marker = folder / MARKER
    written = marker.stat().st_mtime_ns
    for name, value in read_marker(folder)["sha256"].items():
        if (folder / name).stat().st_mtime_ns <= written:
            remember_digest(folder / name, value)


def _report(stage: str, folders: Mapping[str, Path], out: Path) -> Counts:
    """Sum the markers, print them, and tell how large the work folder has grown."""
    total = Counts()
    for folder in folders.values():
        marker = read_marker(folder)
        for sums, part in ((total.made, marker["counts"]), (total.rejects, marker["rejects"])):
            for key, count in part.items():
                sums[key] = sums.get(key, 0) + count
    size = sum((Path(where) / name).stat().st_size for where, _, names in os.walk(WORK / stage) for name in names)
    made = ", ".join(f"{count} {key}" for key, count in sorted(total.made.items()))
    turned_away = ", ".join(f"{count} {key}" for key, count in sorted(total.rejects.items()))
    print(f"{stage}: {made}{f'; turned away: {turned_away}' if turned_away else ''} -> {out}")
    print(f"{stage}: {WORK / stage} holds {size / 2**20:.0f} MiB (make clean-work)", flush=True)
    return total
