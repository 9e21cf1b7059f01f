"""The graph as DVC sees it: the stages in order, which of them are not up to date, and one of them run."""

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.service.commands import dvc, follow, reason
from pipelines.service.privacy import without_places
from umo.errors import BadInput, WorkFailed

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import Stage

BUSY = ("is busy", "Unable to read RWLock", "Unable to acquire lock", "is being run here already")
FAILED = re.compile(r"^ERROR: .*exited with (-?\d+)")
INGEST = "ingest"  # the stage whose lines name photographs; after it they are known by their hashes
KILLED = 128  # a shell says 128 + the signal


class Interrupted(WorkFailed):
    """The stage was killed, or kept out by another process for the moment: the same again may go well."""


@dataclass(frozen=True)
class Graph:
    """
    Attributes:
        before: stage -> the stages whose products it reads, in an order in which they can run.
        kept: files that the stages write and that git keeps, DVC does not: metrics, the ledger of splits.
    """

    before: Mapping[str, frozenset[str]]
    kept: tuple[str, ...]

    def up_to(self, last: str) -> list[str]:
        """The stage and all that it needs, in order."""
        wanted: set[str] = set()
        pending = [last]
        while pending:
            stage = pending.pop()
            if stage not in wanted:
                wanted.add(stage)
                pending += self.before[stage]
        return [stage for stage in self.before if stage in wanted]

    def after(self, last: str) -> list[str]:
        """The stages that are not among those, in order."""
        first = set(self.up_to(last))
        return [stage for stage in self.before if stage not in first]


def look(root: Path = Path()) -> tuple[Graph, set[str]]:
    """The graph of dvc.yaml, and the stages of it that `dvc status` calls changed; frozen ones are in neither.

    Raises:
        BadInput: dvc.yaml or dvc.lock cannot be read.
        WorkFailed: another DVC command holds the repository.
    """
    import networkx

    with _repository(root) as repo:
        stages = [stage for stage in networkx.dfs_postorder_nodes(repo.index.graph) if _is_ours(stage)]
        names = {stage.addressing for stage in stages}
        before = {
            stage.addressing: frozenset(other.addressing for other in repo.index.graph.successors(stage)) & names
            for stage in stages
        }
        outs = (out for stage in stages for out in stage.outs)
        kept = tuple(sorted(os.path.relpath(out.fs_path, root.resolve()) for out in outs if not out.use_cache))
        return Graph(before, kept), set(repo.status()) & names


def changed(stages: Sequence[str], root: Path = Path()) -> set[str]:
    """Those of the stages that are not up to date now, by their own inputs and outputs (half a second)."""
    with _repository(root) as repo:
        return set(repo.status(targets=list(stages))) & set(stages)


@contextmanager
def _repository(root: Path) -> "Iterator[Repo]":
    """The workspace as DVC reads it; its faults are told in a line."""
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(logging.ERROR)
    try:
        with Repo(str(root)) as repo:
            yield repo
    except LockError as error:
        raise WorkFailed("another DVC command is at work here: wait for it") from error
    except DvcException as error:
        raise BadInput(f"{root.resolve()}: {' '.join(str(error).split())}") from error


def _is_ours(stage: "Stage") -> bool:
    return bool(stage.path_in_repo == "dvc.yaml" and not stage.frozen)


def reproduce(stage: str, log: Callable[[str], None], root: Path = Path(), hold: Iterable[int] = ()) -> None:
    """`dvc repro --single-item`; its lines go to `log` as they come.

    Args:
        hold: open files that DVC holds too, see `writer`.

    Raises:
        BadInput, WorkFailed, Interrupted: the stage's own line says why.
    """
    said: list[str] = []

    def hear(line: str) -> None:
        said.append(without_places(line) if stage == INGEST else line)
        log(said[-1])

    if follow(dvc("repro", "--single-item", stage), hear, root, hold):
        raise failure(stage, said)


def failure(stage: str, said: Sequence[str]) -> BadInput | WorkFailed:
    """What a failed `dvc repro` said, as the error that it is; the stage's own line where there is one."""
    codes = [int(match[1]) for line in said if (match := FAILED.match(line))]
    own = [line for line in said if line.startswith(f"{stage}: ")]
    line = own[-1] if own else reason(said) or "dvc repro failed without a word"
    line = line if line.startswith(f"{stage}: ") else f"{stage}: {line}"
    if any(sign in text for text in said for sign in BUSY):
        return Interrupted(line)
    if codes and not 0 <= codes[-1] < KILLED:
        return Interrupted(
            f"{stage}: killed (exit code {codes[-1]}), perhaps for want of memory; finished work is kept"
        )
    return BadInput(line) if codes and codes[-1] == BadInput.exit_code else WorkFailed(line)
