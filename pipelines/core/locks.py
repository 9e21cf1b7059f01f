"""One at a time: two runs of the same stage in one workspace would sweep up each other's unfinished work."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from umo.errors import WorkFailed


class Taken(WorkFailed):
    """Another process holds the lock; `holder` says which, as it signed."""

    def __init__(self, what: str, holder: str) -> None:
        super().__init__(f"{what} is being run here already by {holder}: wait until that has ended, or end it")
        self.holder = holder


@contextmanager
def alone(what: str, path: Path, holder: str = "") -> Iterator[None]:
    """Hold a file's lock, which the kernel lets go when this process ends, however it ends; or raise Taken.

    Others are told that `holder` holds it, by default this process's id.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise Taken(what, path.read_text().strip() or "process unknown") from error
    try:
        path.write_text(holder or f"process {os.getpid()}")
        yield
    finally:
        lock.release()
