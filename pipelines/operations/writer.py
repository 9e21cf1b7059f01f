"""One writer a workspace, and who it was that died without saying so.

The lock is the kernel's (flock) and ends with the processes that hold it: the flow, and the `dvc repro` that it
started, which holds the same open file. So what a killed flow left at work is waited for, and nothing stale is left.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TextIO

import psutil

from pipelines.dvc_locks import refuse_others
from pipelines.shards import WORK
from umo.errors import WorkFailed

LOCK = WORK / "operations" / "writer.lock"
RUNS = WORK / "operations" / "runs"
PAUSE = 2.0  # seconds between two looks


@dataclass(frozen=True)
class Run:
    """A flow run and the process that it is; `started` tells it from a later process with the same id."""

    flow: str
    run_id: str
    name: str
    pid: int = field(default_factory=os.getpid)
    started: float = field(default_factory=lambda: psutil.Process().create_time())
    host: str = field(default_factory=socket.gethostname)

    def gone(self) -> bool:
        """Whether its process is no more; of another machine's nothing is known."""
        return self.host == socket.gethostname() and not lives(self.pid, self.started)


def lives(pid: int, started: float) -> bool:
    """Whether a process is there and is the one that was noted."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def noted(run: Run, root: Path = Path()) -> Iterator[None]:
    """Note a run for as long as it is; the note of one that was killed stays."""
    file = root / RUNS / f"{run.run_id}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(run)))
    temporary.replace(file)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def killed(root: Path = Path()) -> list[Run]:
    """Runs whose note is there and whose process is not."""
    runs = []
    for file in sorted((root / RUNS).glob("*.json")):
        with suppress(ValueError, TypeError, FileNotFoundError):
            runs.append(Run(**json.loads(file.read_text())))
    return [run for run in runs if run.gone()]


def forget(run: Run, root: Path = Path()) -> None:
    """Remove the note of a killed run."""
    (root / RUNS / f"{run.run_id}.json").unlink(missing_ok=True)


@contextmanager
def alone(run: Run, wait_minutes: float, log: Callable[[str], None], root: Path = Path()) -> Iterator[int]:
    """Be the one that writes in a workspace; yields the open file, which commands started meanwhile are to hold too.

    Raises:
        WorkFailed: another flow, or a DVC command by hand, is still at work after `wait_minutes`.
    """
    path = root / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_minutes * 60
    with path.open("a+") as file:
        told = False
        while holder := _holder(file, root):
            if time.monotonic() >= deadline:
                waited = f" after {wait_minutes:g} minutes" if wait_minutes else ""
                raise WorkFailed(f"{holder}{waited}: run again when it has ended, or with more wait_minutes")
            if not told:
                log(f"{holder}: waiting for at most {wait_minutes:g} minutes")
                told = True
            time.sleep(max(0.0, min(PAUSE, deadline - time.monotonic())))
        file.seek(0)
        file.truncate()
        file.write(json.dumps(asdict(run)))
        file.flush()
        yield file.fileno()


def _holder(file: TextIO, root: Path) -> str:
    """Who writes here, in words; empty where it is this process now."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _in_words(file)
    try:
        refuse_others(root)
    except WorkFailed as error:
        fcntl.flock(file, fcntl.LOCK_UN)
        return str(error).partition(": wait for it")[0]
    return ""


def _in_words(file: TextIO) -> str:
    file.seek(0)
    try:
        run = Run(**json.loads(file.read()))
    except (ValueError, TypeError):
        return "another flow is at work in this workspace"
    if run.gone():
        return f"the flow {run.flow} (run {run.name}) was killed, and the stage that it began is still at work"
    return f"the flow {run.flow} (run {run.name}, process {run.pid}) is at work in this workspace"
