"""The cells of the ladder (runs/ablate/cells.yaml): which methods are held against each other, and how."""

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from umo.errors import BadInput
from umo.texts import read_yaml
from umo.training.recipe import Method

ABLATED = Path("runs/ablate")
CELLS = ABLATED / "cells.yaml"
CELL_METRICS, CELL_SCORES, CELL_STRIP = "metrics.json", "scores.parquet", "strip.jpg"


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Cell(_Closed):
    """
    method: base, or one that is trained.
    recipe: keys of the base's recipe that have another value in this cell; keys of `ours` below it.
    times: how many times as long it trains.
    evaluations_of: a cell; this one makes as many updates as cost as many evaluations of the transformer.
    """

    method: Literal["base"] | Method
    recipe: dict[str, Any] = {}
    times: int = Field(default=1, ge=1)
    evaluations_of: str | None = None


class Group(_Closed):
    """
    cells: by name.
    seeds: of the training; each cell is trained with each.
    points: how many times in its course a training is drawn and judged, the last time at its end.
    params: values that params.yaml has for these cells, section by section.
    """

    cells: list[str]
    seeds: list[int]
    points: int = Field(default=1, ge=1)
    params: dict[str, dict[str, Any]] = {}


class Pull(_Closed):
    """
    of: the cell whose reward pulls as strongly as all others' shall.
    batches: the first ones, over which that is measured.
    """

    of: str
    batches: int = Field(ge=1)


class Place(NamedTuple):
    """A cell of a group with a seed; its folder is `path`."""

    group: str
    cell: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.cell}-{self.seed}"

    @property
    def path(self) -> Path:
        return ABLATED / self.group / self.name


class Ladder(_Closed):
    """What cells.yaml says."""

    pull: Pull
    cells: dict[Annotated[str, Field(pattern=r"^[a-z0-9-]*[a-z]$")], Cell]
    validation: Group
    test: Group

    def group(self, name: str) -> Group:
        return {"validation": self.validation, "test": self.test}[name]

    def places(self, name: str) -> list[Place]:
        """Of a group, in the order in which they are made: every cell with the first seed, then with the next."""
        group = self.group(name)
        return [Place(name, cell, seed) for seed in group.seeds for cell in group.cells]


def read_cells(path: Path = CELLS) -> Ladder:
    """Raises BadInput where the file is missing, or names a cell or a key that there is not."""
    try:
        ladder = Ladder.model_validate(read_yaml(path))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); restore it (git checkout)") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInput(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg'].lower()}") from error
    named = [ladder.pull.of, *ladder.validation.cells, *ladder.test.cells]
    named += [cell.evaluations_of for cell in ladder.cells.values() if cell.evaluations_of]
    if unknown := sorted(set(named) - ladder.cells.keys()):
        raise BadInput(f"{path}: no cell '{unknown[0]}' under cells; known: {', '.join(ladder.cells)}")
    return ladder
