"""One writer a workspace, and who it was that died without saying so.

The lock is the kernel's (flock) and ends with the processes that hold it: the flow, and the commands that it started,
which hold the same open file. So what a killed flow left at work is waited for, and nothing stale is left. It lies
where neither `make clean-work` nor a forget removes files, for who opens another file gets in.
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

from pipelines.service.commands import HANDED
from pipelines.service.leftovers import refuse_others
from umo.errors import WorkFailed
from umo.files import write_text

STATE = Path(".dvc/tmp/umo")
LOCK = STATE / "writer.lock"
RUNS = STATE / "runs"
BOOT = Path("/proc/sys/kernel/random/boot_id")
PAUSE = 2.0  # seconds between two looks


@dataclass(frozen=True)
class Run:
    """A flow run, or a command in a terminal, and the process that it is.

    Attributes:
        run_id: Prefect's; empty for a command. The run's name is not noted: people may write a person's id into it.
        started: see `birth`.
    """

    flow: str
    run_id: str
    pid: int = field(default_factory=os.getpid)
    started: str = field(default_factory=lambda: birth(os.getpid()))
    host: str = field(default_factory=socket.gethostname)

    def gone(self) -> bool:
        """Whether its process is no more; of another machine's nothing is known."""
        return self.host == socket.gethostname() and not lives(self.pid, self.started)


def birth(pid: int) -> str:
    """What tells a process from a later one with the same id; where /proc is there, however the clock is set.

    Raises:
        psutil.NoSuchProcess: it is not there.
    """
    try:
        ticks = (
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        )  # field 22; the name may hold blanks
        return f"{ticks} ticks after boot {BOOT.read_text().strip()}"
    except OSError:
        return str(psutil.Process(pid).create_time())


def lives(pid: int, started: str) -> bool:
    """Whether a process is there and is the one that was noted."""
    try:
        return birth(pid) == started and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def noted(run: Run, root: Path = Path()) -> Iterator[None]:
    """Note a run for as long as it is; the note of one that was killed stays."""
    file = root / RUNS / f"{run.run_id}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(asdict(run)))
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


def settled(run: Run, root: Path = Path()) -> None:
    """A killed run was reported: its note goes."""
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
        _sign(file, run)
        yield file.fileno()


@contextmanager
def by_hand(command: str, root: Path = Path()) -> Iterator[int]:
    """Be the one that writes, for a command in a terminal; where a flow started it, the flow's lock is its own.

    Raises:
        WorkFailed: a flow is at work in this workspace.
    """
    path = root / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        if (handed := _handed(file)) is not None:
            yield handed
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WorkFailed(f"{_in_words(file)}: wait for it, or cancel it") from error
        _sign(file, Run(command, ""))
        yield file.fileno()


def _handed(file: TextIO) -> int | None:
    """The lock's open file that the flow which started this process gave it."""
    try:
        given = int(os.environ.get(HANDED, ""))
        if os.path.samestat(os.fstat(given), os.fstat(file.fileno())):
            fcntl.flock(given, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return given
    except (ValueError, OSError):
        pass
    return None


def _sign(file: TextIO, run: Run) -> None:
    file.seek(0)
    file.truncate()
    file.write(json.dumps(asdict(run)))
    file.flush()


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
        return f"the flow {run.flow} (run {run.run_id}) was killed, and the stage that it began is still at work"
    who = (
        f"the flow {run.flow} (run {run.run_id}, process {run.pid})"
        if run.run_id
        else f"{run.flow} (process {run.pid})"
    )
    return f"{who} is at work in this workspace"
