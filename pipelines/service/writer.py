"""One writer a workspace, and who it was that died without saying so.

The lock lies where neither `make clean-work` nor a forget removes files, for who opens another file gets in. It ends
with the flow that holds it; what a killed flow left at work is known by its environment, and waited for.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pipelines.core.locks import Taken, alone
from pipelines.service.commands import marked
from pipelines.service.leftovers import refuse_others
from umo.errors import WorkFailed

STATE = Path(".dvc/tmp/umo")
LOCK = STATE / "writer.lock"
RUNS = STATE / "runs"
WRITES = "UMO_WRITES"  # in the environment of what a flow or command starts: the workspace in which that writes
PAUSE = 2.0  # seconds between two looks


@dataclass(frozen=True)
class Run:
    """A flow run, or a command in a terminal. A run's name is not noted: people may write a person's id into it."""

    flow: str
    run_id: str = ""  # Prefect's; empty for a command
    pid: int = field(default_factory=os.getpid)

    def __str__(self) -> str:
        if self.run_id:
            return f"the flow {self.flow} (run {self.run_id}, process {self.pid})"
        return f"{self.flow} (process {self.pid})"


@contextmanager
def noted(run: Run, root: Path = Path()) -> Iterator[None]:
    """Note a run for as long as it is; the note of one that was killed stays."""
    note = root / RUNS / f"{run.run_id}.json"
    with alone(run.flow, note.with_suffix(".lock")):
        note.write_text(json.dumps(asdict(run)))
        try:
            yield
        finally:
            settled(run, root)


def killed(root: Path = Path()) -> list[Run]:
    """Runs whose note is there and whose process is not."""
    runs = []
    for note in sorted((root / RUNS).glob("*.json")):
        with suppress(ValueError, TypeError, FileNotFoundError, Taken), alone(note.stem, note.with_suffix(".lock")):
            runs.append(Run(**json.loads(note.read_text())))
    return runs


def settled(run: Run, root: Path = Path()) -> None:
    """A run has ended, or was reported: its note goes."""
    for suffix in ("json", "lock"):
        (root / RUNS / f"{run.run_id}.{suffix}").unlink(missing_ok=True)


@contextmanager
def writing(
    run: Run, wait_minutes: float = 0, log: Callable[[str], None] = print, root: Path = Path()
) -> Iterator[None]:
    """Be the one that writes in a workspace, or raise WorkFailed where another flow, or a command by hand, is still at
    work after `wait_minutes`. For what a flow started, the flow's being so is enough.
    """
    workspace, deadline, told = str(root.resolve()), time.monotonic() + wait_minutes * 60, False
    if os.environ.get(WRITES) == workspace:
        yield
        return
    with ExitStack() as held:
        while busy := _busy(held, run, root):
            if time.monotonic() >= deadline:
                waited = f" after {wait_minutes:g} minutes" if wait_minutes else ""
                remedy = "run again when it has ended, or with more wait_minutes" if run.run_id else "wait for it"
                raise WorkFailed(f"{busy}{waited}: {remedy}")
            if not told:
                log(f"{busy}: waiting for at most {wait_minutes:g} minutes")
                told = True
            time.sleep(max(0.0, min(PAUSE, deadline - time.monotonic())))
        os.environ[WRITES] = workspace
        held.callback(os.environ.pop, WRITES)
        yield


def _busy(held: ExitStack, run: Run, root: Path) -> str:
    """Who else writes here, in words; empty where it is this run now."""
    with ExitStack() as tried:
        try:
            tried.enter_context(alone(run.flow, root / LOCK, str(run)))
            if left := marked(WRITES, str(root.resolve())):
                return f"a flow was killed, and the stage that it began is still at work (process {left[0].pid})"
            refuse_others(root)
        except Taken as taken:
            return f"{taken.holder} is at work in this workspace"
        except WorkFailed as error:
            return str(error).partition(": wait for it")[0]
        held.push(tried.pop_all())
    return ""
