"""What a killed DVC leaves and does not clear up by itself: locks, a record of nothing, half of dvc.lock.

`.dvc/tmp/lock` is held by the operating system and freed with its process. `.dvc/tmp/rwlock` is a list of paths with
the id of the process that works on them; DVC itself strikes out processes that are gone, but it takes any process
that has got such an id since (after a restart, in a container) for the dead one and waits for a human, and so it does
where it was killed while writing the list.

`.dvc/cache/runs` has a folder for each stage and its inputs. Killed between making one and writing into it, DVC 3.67
fails there ever after ("join() argument must be str, bytes, or os.PathLike object, not 'NoneType'").

`dvc.lock` is written in place, after every stage. The half of it that a kill leaves may not be a whole list, and then
every DVC command refuses to read it.
"""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import yaml

from umo.errors import WorkFailed
from umo.files import write_text

DVC_LOCK = Path(".dvc/tmp/lock")
RWLOCK = Path(".dvc/tmp/rwlock")
RUNS = Path(".dvc/cache/runs")
LOCK = Path("dvc.lock")
ASIDE = Path(".dvc/tmp/dvc.lock.half-written")
CONFLICT = "<<<<<<<"  # of a merge: for its user to resolve


def clear_stale(root: Path = Path()) -> str:
    """Remove what dead processes left; returns what was done, in a line."""
    done = [_clear_locks(root / RWLOCK)]
    with _dvc_lock(root) as ours:
        if ours and not _living(root):
            done += [*_clear_runs(root / RUNS), *_put_aside_half(root)]
    return "; ".join(done)


@contextmanager
def _dvc_lock(root: Path) -> Iterator[bool]:
    """DVC's own lock, which a command holds whenever it writes, for as long as this lasts; whether it was to be had."""
    lock = root / DVC_LOCK
    if not lock.parent.is_dir():
        yield True
        return
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _clear_locks(path: Path) -> str:
    before = _entries(path)
    if before is None:
        path.unlink(missing_ok=True)
        return f"{RWLOCK}: half-written by a run that was killed; removed"
    kept = {
        "write": {path: info for path, info in before["write"].items() if _alive(info)},
        "read": {path: left for path, infos in before["read"].items() if (left := list(filter(_alive, infos)))},
    }
    if kept == before:
        return f"{RWLOCK}: nothing left by a dead process"
    write_text(path, json.dumps({mode: entries for mode, entries in kept.items() if entries}))
    return f"{RWLOCK}: entries of dead processes removed"


def _clear_runs(folder: Path) -> Iterator[str]:
    """Remove the empty folders among `runs/ab/abcd...`."""
    empty = [path for path in folder.glob("??/*") if path.is_dir() and not any(path.iterdir())]
    for path in empty:
        path.rmdir()
    if empty:
        yield f"{RUNS}: {len(empty)} empty records of a run that was killed removed"


def _put_aside_half(root: Path) -> Iterator[str]:
    if _is_half(root / LOCK):
        (root / ASIDE).parent.mkdir(parents=True, exist_ok=True)
        (root / LOCK).replace(root / ASIDE)
        yield f"{LOCK}: half-written by a run that was killed; now {ASIDE}, and what it listed is cached"


def _is_half(path: Path) -> bool:
    """Whether it is a list of stages that was cut off where DVC cannot read it."""
    if not path.exists():
        return False
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA as SCHEMA
    from voluptuous import Invalid

    text = path.read_text()
    try:
        SCHEMA(yaml.safe_load(text) or {})
    except (yaml.YAMLError, Invalid):
        return CONFLICT not in text
    return False


def refuse_others(root: Path = Path()) -> None:
    """Clear what dead runs left, and stop where a living one is at work.

    Raises:
        WorkFailed: a DVC command is at work in this repository.
    """
    clear_stale(root)
    with _dvc_lock(root) as ours:
        if not ours:
            raise WorkFailed("a DVC command is at work in this workspace: wait for it")
    for info in _living(root):
        raise WorkFailed(f"another run is at work (process {info['pid']}: {info['cmd']}): wait for it, or stop it")


def _living(root: Path) -> list[dict]:
    """Processes that are noted in DVC's list, after the dead ones were struck out."""
    left = _entries(root / RWLOCK) or {"write": {}, "read": {}}
    return [*left["write"].values(), *(info for infos in left["read"].values() for info in infos)]


def _entries(path: Path) -> dict | None:
    """The list; None where it is no list."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        found = {}
    except ValueError:
        return None
    if not isinstance(found, dict):
        return None
    return {"write": found.get("write", {}), "read": found.get("read", {})}


def _alive(info: dict) -> bool:
    """Whether the process is there and is the one that was noted, by its command line."""
    try:
        process = psutil.Process(info["pid"])
        return process.status() != psutil.STATUS_ZOMBIE and " ".join(process.cmdline()).endswith(info["cmd"])
    except psutil.Error:
        return False
