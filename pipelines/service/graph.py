"""The graph as DVC sees it: the stages in order, which of them are not up to date, and one of them run."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import yaml

from pipelines.core.contents import CONTENTS, write_contents
from pipelines.service.commands import ask, dvc, follow, reason
from pipelines.service.privacy import without_places
from umo.errors import BadInput, WorkFailed

BUSY = ("is busy", "Unable to read RWLock", "Unable to acquire lock", "is being run here already")
FAILED = re.compile(r"^ERROR: .*exited with (-?\d+)")
NODE = re.compile(r'^"([^"]+)"(?: -> "([^"]+)")?;$', re.M)
LOOKED = Path("datasets/dvc.yaml")  # the stage that looks at the photographs, which DVC calls changed at all times
INGEST = "ingest"  # the stage whose lines name photographs; after it they are known by their hashes
KILLED = 128  # a shell says 128 + the signal


class Interrupted(WorkFailed):
    """The stage was killed, or kept out by another process for the moment: the same again may go well."""


@dataclass(frozen=True)
class Graph:
    """The stages of dvc.yaml that are not frozen, and what they write."""

    before: dict[str, frozenset[str]]  # stage -> the stages whose products it reads, in an order in which they can run
    kept: tuple[str, ...]  # files that git keeps, DVC does not: metrics, the ledger of splits
    cached: frozenset[str]  # what DVC keeps

    def up_to(self, last: str) -> list[str]:
        """The stage and all that it needs, in order."""
        wanted = {last}
        for stage in reversed(self.before):
            if stage in wanted:
                wanted |= self.before[stage]
        return [stage for stage in self.before if stage in wanted]

    def after(self, last: str) -> list[str]:
        """The stages that are not among those, in order."""
        first = set(self.up_to(last))
        return [stage for stage in self.before if stage not in first]


def look(root: Path = Path()) -> Graph:
    """The graph; BadInput where dvc.yaml or dvc.lock cannot be read, WorkFailed while another DVC command works."""
    before: dict[str, set[str]] = {}
    for first, then in NODE.findall(ask("dag", "--dot", root=root)):
        before.setdefault(then or first, set()).update([first] if then else [])
    written = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]
    frozen = {name for name in before if written.get(name.partition("@")[0], {}).get("frozen")}
    ours = {name for name in before if name.partition("@")[0] in written} - frozen
    order = [name for name in TopologicalSorter(before).static_order() if name in ours]
    outs = dict(_outs(written))
    kept = {name for name, cached in outs.items() if not cached}
    looked = {str(LOOKED.with_suffix(".lock")), str(CONTENTS)} if (root / LOOKED).exists() else set()
    ours_before = {name: frozenset(before[name]) & ours for name in order}
    return Graph(ours_before, tuple(sorted(kept | looked)), frozenset(outs) - kept)


def _outs(written: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, bool]]:
    """What the stages write, and whether DVC keeps it."""
    for stage in written.values():
        does = stage.get("do", stage)
        for out in (out for kind in ("outs", "metrics", "plots") for out in does.get(kind, ())):
            [(path, how)] = out.items() if isinstance(out, dict) else [(out, {})]
            for item in stage.get("foreach", [""]):
                yield path.replace("${key}", str(item)).replace("${item}", str(item)), (how or {}).get("cache", True)


def changed(root: Path = Path(), *stages: str, look: bool = True) -> set[str]:
    """Those of the stages (or of all) that `dvc status` calls changed; it takes options among them, too.

    Args:
        look: at the photographs first, which DVC cannot do. BadInput where datasets/sources.yaml does not say where.
    """
    if look and (root / LOOKED).exists():
        write_contents(root)
    return set(json.loads(ask("status", "--json", *stages, root=root))) - {f"{LOOKED}:sources"}


def reproduce(stage: str, log: Callable[[str], None], root: Path = Path()) -> None:
    """`dvc repro --single-item`; its lines go to `log` as they come. Where it fails, the stage's own line says why."""
    said: list[str] = []

    def hear(line: str) -> None:
        said.append(without_places(line) if stage == INGEST else line)
        log(said[-1])

    if follow(dvc("repro", "--single-item", stage), hear, root):
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
        cause = f"killed (exit code {codes[-1]}), perhaps for want of memory"
        return Interrupted(f"{stage}: {cause}; finished work is kept")
    return BadInput(line) if codes and codes[-1] == BadInput.exit_code else WorkFailed(line)
