"""`python -m pipelines ablate --group validation`: cells of the ladder are trained, drawn and judged, one by one.

DVC decides which of them are to be made (runs/ablate/dvc.yaml), and calls this with one cell's name. A cell that is
finished is whole in its folder and no other cell needs its pictures; one that is killed goes on where it was.
"""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.ablate.judging import judge
from pipelines.ablate.training import SPENT, Values, comparable, merged, train
from pipelines.core import params, products
from pipelines.core.cells import ABLATED, CELL_METRICS, CELLS, Place, read_cells
from pipelines.core.locks import alone
from pipelines.core.shards import WORK
from pipelines.service.commands import dvc, follow
from pipelines.service.repository import git
from umo.errors import BadInput, WorkFailed
from umo.files import replacing, write_text

IN_COURSE = ("id_sim_strict", "coverage", "absent", "doubled", "copy_paste")
NAME = re.compile(r"(validation|test)/([a-z0-9-]*[a-z])-(\d+)")


def main(arguments: Sequence[str]) -> str:
    """What is asked by these arguments; returns a line about it.

    Raises:
        BadInput: cells.yaml or the arguments name a cell that there is not, or a cell's values are unfit.
        WorkFailed: a cell failed; those finished are kept.
    """
    options = _parser().parse_args(arguments)
    if options.place:
        return make(_place(options.place))
    if not options.group:
        raise BadInput("ablate: say --group validation or --group test (ablate --help)")
    wanted = [
        place
        for place in read_cells().places(options.group)
        if options.cell in (None, place.cell) and options.seed in (None, place.seed)
    ]
    if not wanted:
        raise BadInput(f"{CELLS}: {options.group} has no cell '{options.cell}' with that seed")
    for number, place in enumerate(wanted, start=1):
        print(f"ablate: {place.group}/{place.name} ({number} of {len(wanted)})", flush=True)
        stage = f"{ABLATED}/dvc.yaml:{place.group}@{place.name}"
        if follow(dvc("repro", "--single-item", stage), print):
            raise WorkFailed(f"{place.group}/{place.name} failed, see above; the cells before it are kept")
        if options.commit:
            _commit(place)
    return f"{len(wanted)} cells of {options.group} are made; python -m pipelines ladder writes the page"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipelines ablate", description="Make cells of the ladder.")
    parser.add_argument("place", nargs="?", help="GROUP/CELL-SEED: the work of one cell, as DVC calls it")
    parser.add_argument("--group", choices=["validation", "test"], help="whose people are drawn")
    parser.add_argument("--cell", help="one of the group's cells alone")
    parser.add_argument("--seed", type=int, help="one of the group's seeds alone")
    parser.add_argument("--commit", action="store_true", help="commit each cell when it is finished")
    return parser


def _place(text: str) -> Place:
    found = NAME.fullmatch(text)
    place = Place(found[1], found[2], int(found[3])) if found else None
    if place is None or place not in read_cells().places(place.group):
        raise BadInput(f"{CELLS}: no cell '{text}': GROUP/CELL-SEED of what stands there is needed")
    return place


def make(place: Place) -> str:
    """Train a cell, draw and judge it, and put the result in its folder, whole."""
    with alone(f"{place.group}/{place.name}", WORK / "ladder.lock"):
        found = _made(place)
    return f"{place.path}: {found['images']} pictures of {found['cases']} cases"


def _made(place: Place) -> dict[str, Any]:
    ladder, given = read_cells(), params.read()
    cell, group = ladder.cells[place.cell], ladder.group(place.group)
    values = Values(merged(given, group.params), ladder)
    training = Values(given, ladder)  # the same whoever is drawn
    recipe: dict[str, Any] = {}
    trained: list[tuple[int, Path | None]] = [(0, None)]
    if cell.method != "base":
        recipe = comparable(training, cell, place.seed)
        updates = sorted({recipe["steps"] * k // group.points for k in range(1, group.points + 1)} - {0})
        trained = [(n, at) for n, (at, _) in zip(updates, train(training, cell.method, recipe, updates), strict=True)]
    judged = values.with_recipe(recipe) if recipe else values.params
    place.path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(place.path) as temporary:
        temporary.mkdir()
        course = [(_trained(at), judge(judged, cell.method, at, temporary)) for _, at in trained]
        own, found = course[-1]
        points = [had | {name: seen[name]["mean"] for name in IN_COURSE} for had, seen in course]
        head = {**place._asdict(), "method": cell.method, "recipe": recipe, **own, "points": points}
        write_text(temporary / CELL_METRICS, json.dumps(head | found, indent=1) + "\n")
    return found


def _trained(at: Path | None) -> dict[str, Any]:
    """Where a training stands: updates, evaluations of the transformer, seconds, and what it has of its own accord."""
    if at is None:
        return {"updates": 0, "evaluations": 0, "seconds": 0.0}
    made = json.loads((at / products.TRAINING).read_text())
    seconds = round(json.loads((at / SPENT).read_text())["seconds"], 1)
    kept = {key: made[key] for key in ("updates", "evaluations", "chosen_update", "stopped_early", "skipped")}
    return kept | {"seconds": seconds}


def _commit(place: Place) -> None:
    """The cell's folder and the lock file of its stage, and nothing else."""
    files = [str(place.path), str(ABLATED / "dvc.lock")]
    git("add", "--", *files)
    if git("diff", "--cached", "--name-only", "--", *files):
        git("commit", "--quiet", "--message", f"ladder: {place.group}/{place.name}", "--only", "--", *files)
