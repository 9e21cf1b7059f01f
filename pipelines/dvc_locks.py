"""DVC's locks after a kill: what DVC does not clear up by itself.

`.dvc/tmp/lock` is held by the operating system and freed with its process. `.dvc/tmp/rwlock` is a list of paths with
the id of the process that works on them; DVC itself strikes out processes that are gone, but it takes any process
that has got such an id since (after a restart, in a container) for the dead one and waits for a human, and so it does
where it was killed while writing the list.
"""

import json
from pathlib import Path

import psutil

from umo.errors import WorkFailed

RWLOCK = Path(".dvc/tmp/rwlock")


def clear_stale(root: Path = Path()) -> str:
    """Remove the entries of dead processes from DVC's list; returns what was done, in a line."""
    before = _entries(root / RWLOCK)
    if before is None:
        (root / RWLOCK).unlink(missing_ok=True)
        return f"{RWLOCK}: half-written by a run that was killed; removed"
    kept = {
        "write": {path: info for path, info in before["write"].items() if _alive(info)},
        "read": {path: left for path, infos in before["read"].items() if (left := list(filter(_alive, infos)))},
    }
    if kept == before:
        return f"{RWLOCK}: nothing left by a dead process"
    temporary = root / RWLOCK.with_name("rwlock.tmp")
    temporary.write_text(json.dumps({mode: entries for mode, entries in kept.items() if entries}))
    temporary.replace(root / RWLOCK)
    return f"{RWLOCK}: entries of dead processes removed"


def refuse_others(root: Path = Path()) -> None:
    """Clear what dead runs left, and stop where a living one is at work.

    Raises:
        WorkFailed: a DVC command is at work in this repository.
    """
    clear_stale(root)
    left = _entries(root / RWLOCK) or {"write": {}, "read": {}}
    infos = [*left["write"].values(), *(info for infos in left["read"].values() for info in infos)]
    for info in infos:
        raise WorkFailed(f"another run is at work (process {info['pid']}: {info['cmd']}): wait for it, or stop it")


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
