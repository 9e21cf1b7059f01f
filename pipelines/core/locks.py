"""One writer a stage: two runs of the same stage in one workspace would sweep up each other's unfinished work."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from umo.errors import WorkFailed


@contextmanager
def alone(stage: str, path: Path) -> Iterator[None]:
    """Hold a file's lock, which the kernel lets go when this process ends, however it ends.

    Raises:
        WorkFailed: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise WorkFailed(
                f"{stage} is being run here already by process {holder}: wait until that has ended, or end it"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
