"""What a benchmark is here: what it asks for, how its results lie, and what its published script makes of them.

A benchmark is read from a local copy in its published layout; nothing is downloaded. Its pictures are judged as
`umo evaluate` judges them, once; from what the judge saw come two numbers: *strict*, where whoever is missing counts 0,
and *as published*, by the formulas, skips and faults of the published script.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from umo.errors import BadInput
from umo.evaluation.judges import Seen
from umo.texts import path_fault, read_json

NAMED = 3  # files or folders that a message names; it counts the others


@dataclass(frozen=True, slots=True)
class Item:
    """What a benchmark asks a model for.

    Attributes:
        key: names it within the benchmark.
        subset: the part of the benchmark that it is averaged in.
        prompt: as a model is given it.
        inputs: every picture that a model is given, in its order.
        people: positions of those inputs that show a person to be drawn; None: those in which the judge sees a face.
        target: another real picture of these people.
        places: where each of `people` was asked to stand, as a rank from left to right.
    """

    key: str
    subset: str
    prompt: str
    inputs: tuple[Path, ...]
    people: tuple[int, ...] | None
    target: Path | None = None
    places: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Judged:
    """What a judge saw for an item.

    Attributes:
        references: a picture of each person who was asked for.
        pictures: what was drawn; one that is not there, or cannot be read, has its error. Empty without references.
        target: None where the item has none.
    """

    item: Item
    references: tuple[Seen, ...]
    pictures: tuple[Seen, ...]
    target: Seen | None = None


@dataclass
class Pooled:
    """Values that a published script averages, and what it leaves out, by the reason."""

    values: list[float] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    def described(self, scale: float = 1.0, mean: Any = np.mean) -> dict[str, Any]:
        """{"mean", "n", "skipped"}; a mean of nothing is None."""
        found = float(mean(self.values)) * scale if self.values else None
        return {"mean": found, "n": len(self.values), "skipped": dict(self.skipped)}


class Benchmark(ABC):
    """A published benchmark, by its class attributes and its layout.

    Attributes:
        name: as `umo benchmark` takes it.
        title: for people.
        revision: of the repository whose scripts `published` follows.
        licence: of code and data.
        judge: with which its tables were made.
        embedders: file names of that judge's weights; with another one a number is not comparable.
        size: of a picture, (height, width), as published.
        seeds: pictures an item.
        layout: of the local copy, in a line.
        results: how drawn pictures lie, in a line.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    revision: ClassVar[str]
    licence: ClassVar[str]
    judge: ClassVar[str]
    embedders: ClassVar[tuple[str, ...]]
    size: ClassVar[tuple[int, int]]
    seeds: ClassVar[int] = 1
    layout: ClassVar[str]
    results: ClassVar[str]

    @abstractmethod
    def items(self, root: Path, work: Path) -> list[Item]:
        """All that is asked for, in order.

        Args:
            root: the local copy.
            work: a folder for pictures that lie in a table there.

        Raises BadInput: the copy is not in the published layout.
        """

    def missing(self, items: Sequence[Item]) -> list[Path]:
        """Pictures that items name and that are not there, each once."""
        named = dict.fromkeys(path for item in items for path in (*item.inputs, item.target) if path)
        return [path for path in named if not path.is_file()]

    @abstractmethod
    def drawn(self, items: Sequence[Item], results: Path, work: Path) -> list[tuple[Path, ...]]:
        """Where the pictures of each item are; of a picture that is missing, where it should be.

        Args:
            work: a folder for pictures that are parts of others.

        Raises BadInput: there are no results, or some are not in the published layout.
        """

    @abstractmethod
    def arrange(self, item: Item, pictures: Sequence[Path], results: Path) -> None:
        """Lay an item's pictures out as they are published."""

    @abstractmethod
    def published(self, judged: Sequence[Judged], results: Path) -> dict[str, Any]:
        """The numbers of the published script, each as `Pooled.described`, in parts.

        Args:
            judged: of all items; one that asks for nobody has no references.
        """


def read_list(path: Path, needed: Sequence[str]) -> list[dict[str, Any]]:
    """A JSON list of objects that have certain keys; BadInput names the file and what is wrong in it."""
    if not path.is_file():
        raise BadInput(f"{path}: not there; put the benchmark's files there as they are published")
    try:
        rows = read_json(path)
    except ValueError as error:
        raise BadInput(f"{path}: {error}; copy it again") from error
    if not isinstance(rows, list) or not rows:
        raise BadInput(f"{path}: not a list of cases; copy it again")
    for k, row in enumerate(rows):
        lacking = [key for key in needed if not isinstance(row, dict) or key not in row]
        if lacking:
            raise BadInput(f"{path}: entry {k} has no '{lacking[0]}'; copy it again, as published")
    return rows


def inside(root: Path, name: object, where: str) -> Path:
    """A path that a benchmark's file names; BadInput where it is none, or leads out of the benchmark's folder."""
    if not isinstance(name, str) or not name or path_fault(name):
        raise BadInput(f"{where}: {name!r} is no path")
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        raise BadInput(f"{where}: {name} lies outside {root}; nothing there is read")
    return path


def none_strange(strange: Sequence[Path], results: Path, expected: str) -> None:
    """Raises BadInput where results hold what the benchmark does not ask for."""
    if strange:
        names = ", ".join(str(path.relative_to(results)) for path in strange[:NAMED])
        more = f" and {len(strange) - NAMED} more" if len(strange) > NAMED else ""
        raise BadInput(f"{results}: {names}{more}: no result of this benchmark, which are {expected}; move them away")


def files_in(folder: Path, ignored: Iterable[str] = ()) -> Iterator[Path]:
    """Files of a folder but for hidden ones and those of some suffixes; BadInput where there is no folder, or none."""
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder of results")
    found = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    kept = [path for path in found if path.suffix.lower() not in set(ignored)]
    if not kept:
        raise BadInput(f"{folder}: holds no results; draw them first (umo benchmark run)")
    yield from kept
