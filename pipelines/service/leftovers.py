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

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import psutil
import yaml

from pipelines.core.locks import Taken, alone
from pipelines.service.repository import LOCK
from umo.errors import WorkFailed
from umo.files import write_text

DVC_LOCK = Path(".dvc/tmp/lock")  # which a DVC command holds whenever it writes
RWLOCK = Path(".dvc/tmp/rwlock")
RUNS = Path(".dvc/cache/runs")
ASIDE = Path(".dvc/tmp/dvc.lock.half-written")
CONFLICT = "<<<<<<<"  # of a merge: for its user to resolve


def clear_stale(root: Path = Path()) -> str:
    """Remove what dead processes left; returns what was done, in a line."""
    return _clear(root)[0]


def refuse_others(root: Path = Path()) -> None:
    """Clear what dead runs left; WorkFailed where a living DVC command is at work in this repository."""
    if busy := _clear(root)[1]:
        raise WorkFailed(busy)


def _clear(root: Path) -> tuple[str, str]:
    """What was done, and what is at work here; empty where nothing is."""
    cleared, living = _clear_locks(root / RWLOCK)
    done = [cleared]
    lock = root / DVC_LOCK
    try:
        with alone("DVC", lock) if lock.parent.is_dir() else nullcontext():
            if not living:
                done += _clear_files(root)
    except Taken:
        return cleared, "a DVC command is at work in this workspace: wait for it"
    others = [f"another run is at work (process {of['pid']}: {of['cmd']}): wait for it, or stop it" for of in living]
    return "; ".join(done), (others or [""])[0]


def _clear_locks(path: Path) -> tuple[str, list[dict]]:
    """What was done, and the processes in DVC's list that are there."""
    try:
        before = json.loads(path.read_text()) if path.exists() else {}
        write, read = before.get("write", {}), before.get("read", {})
    except (ValueError, AttributeError):
        path.unlink()
        return f"{RWLOCK}: half-written by a run that was killed; removed", []
    kept = {
        "write": {name: info for name, info in write.items() if _alive(info)},
        "read": {name: left for name, infos in read.items() if (left := list(filter(_alive, infos)))},
    }
    living = [*kept["write"].values(), *(info for infos in kept["read"].values() for info in infos)]
    if kept == {"write": write, "read": read}:
        return f"{RWLOCK}: nothing left by a dead process", living
    write_text(path, json.dumps({mode: entries for mode, entries in kept.items() if entries}))
    return f"{RWLOCK}: entries of dead processes removed", living


def _alive(info: dict) -> bool:
    """Whether the process is there and is the one that was noted, by its command line."""
    try:
        process = psutil.Process(info["pid"])
        return process.status() != psutil.STATUS_ZOMBIE and " ".join(process.cmdline()).endswith(info["cmd"])
    except psutil.Error:
        return False


def _clear_files(root: Path) -> Iterator[str]:
    """Remove the empty folders among `runs/ab/abcd...`, and put half of dvc.lock aside."""
    empty = [path for path in (root / RUNS).glob("??/*") if path.is_dir() and not any(path.iterdir())]
    for path in empty:
        path.rmdir()
    if empty:
        yield f"{RUNS}: {len(empty)} empty records of a run that was killed removed"
    if (root / LOCK).exists() and _is_half((root / LOCK).read_text()):
        (root / ASIDE).parent.mkdir(parents=True, exist_ok=True)
        (root / LOCK).replace(root / ASIDE)
        yield f"{LOCK}: half-written by a run that was killed; now {ASIDE}, and what it listed is cached"


def _is_half(text: str) -> bool:
    """Whether it is a list of stages that was cut off where DVC cannot read it."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        stages = yaml.load(text, loader)["stages"].values()
        paths = [entry["path"] for stage in stages for key in ("deps", "outs") for entry in stage.get(key, [])]
        params = [params.items() for stage in stages for params in stage.get("params", {}).values()]
        whole = all(stage["cmd"] for stage in stages) and all(paths) and all(map(list, params))
    except (yaml.YAMLError, KeyError, TypeError, AttributeError):
        whole = False
    return not whole and CONFLICT not in text
