"""A cell's training: with the recipe that makes it comparable, as far as each point at which it is drawn and judged."""

import csv
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from pipelines.ablate.spaces import space
from pipelines.core import keys, params, products
from pipelines.core.bases import weights_digest
from pipelines.core.cells import Cell, Ladder
from pipelines.core.shards import WORK, Machine, digest, tree_digest
from pipelines.train import stage
from umo.errors import WorkFailed
from umo.files import replacing
from umo.training.recipe import Method, Recipe

STILL = 1e-12  # a learning rate at which nothing is learnt
SPENT = "spent.json"


@dataclass(frozen=True)
class Values:
    """params.yaml as it is, and the cells that change it."""

    params: Mapping[str, Any]
    ladder: Ladder

    def recipe(self, cell: Cell, **more: Any) -> dict[str, Any]:
        """The recipe that the cell's base has, with the cell's own values and further ones."""
        own = self.params["bases"][self.params["train"]["base"]]["train"]
        both = merged(own, cell.recipe)
        return both | {"steps": both["steps"] * cell.times} | more

    def with_recipe(self, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """params.yaml with another recipe of its base."""
        base = self.params["train"]["base"]
        bases = self.params["bases"]
        return {**self.params, "bases": {**bases, base: {**bases[base], "train": dict(recipe)}}}


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values with some of them replaced; what is new may be nested itself."""
    both = {
        key: merged(values[key], new) if isinstance(new, Mapping) and isinstance(values.get(key), Mapping) else new
        for key, new in changes.items()
    }
    return {**values, **both}


def comparable(values: Values, cell: Cell, seed: int) -> dict[str, Any]:
    """The recipe of a cell that trains: as long as it shall be, and with equal pull.

    Pull is `reward_weight` times the norm of the gradient of the reward alone at the start, the root of its mean square
    over the first `pull.batches` batches. A cell that moves weights by rerefl, and sets no weight itself, gets that
    with which it pulls as `pull.of` does.

    Raises WorkFailed: its reward has no gradient there.
    """
    recipe = values.recipe(cell, seed=seed)
    if cell.evaluations_of:
        other = values.ladder.cells[cell.evaluations_of]
        budget = values.recipe(other)["steps"] * _cost(values, other, seed)
        recipe["steps"] = max(1, round(budget / _cost(values, cell, seed)))
    reference = values.ladder.cells[values.ladder.pull.of]
    if Recipe.model_validate(recipe).through_reward(cast(Method, cell.method)) and "reward_weight" not in cell.recipe:
        own, wanted = (_norm(values, one, seed) for one in (cell, reference))
        if not own:
            raise WorkFailed(f"{cell.method}: its reward has no gradient on the first batches: nothing to make equal")
        recipe["reward_weight"] = float(f"{values.recipe(reference).get('reward_weight', 1) * wanted / own:.4g}")
    return recipe


def _still(values: Values, cell: Cell, seed: int, **more: Any) -> tuple[Path, list[float]]:
    """The first batches without learning anything: the training's folder, and the norms of the gradients."""
    count = values.ladder.pull.batches
    still = {"learning_rate": STILL, "warmup": 0, "validate_every": 0, "patience": 0}
    recipe = values.recipe(cell, seed=seed) | {"steps": count} | still | more
    ((folder, norms),) = train(values, cast(Method, cell.method), recipe, [count])
    return folder, norms


def _norm(values: Values, cell: Cell, seed: int) -> float:
    """Of the gradient of the reward alone."""
    _, norms = _still(values, cell, seed, diffusion_weight=0, reward_weight=1)
    return float(np.sqrt(np.mean(np.square(norms)))) if norms else 0.0


def _cost(values: Values, cell: Cell, seed: int) -> float:
    """Evaluations of the transformer that an update makes."""
    folder, _ = _still(values, cell, seed)
    made = json.loads((folder / products.TRAINING).read_text())
    return made["evaluations"] / made["updates"]


def train(
    values: Values, method: Method, recipe: Mapping[str, Any], points: Sequence[int]
) -> list[tuple[Path, list[float]]]:
    """Train, stopping after so many updates; a training that was killed goes on, one that was made is found again.

    Returns:
        For each point a folder with the LoRA as it is then, training.json, and spent.json: the seconds of its updates
        and the norms of their gradients; and those norms.
    """
    with space(values.with_recipe(recipe)):
        sections = params.load_all(params.SECTIONS)
        base, _ = stage.checked(cast(stage.Params, sections["train"]), cast(Machine, sections["machine"]), method)
        known = digest(
            method,
            base.model_dump_json(),
            weights_digest(base),
            tree_digest(products.EXPORTED),
            keys.code(stage.__name__),
        )
        folder = WORK.resolve() / "trained" / known[:16]
        run = folder / "-".join(map(str, ["run", *points]))  # another may have gone past these
        live, found = stage.live_folder(method, run), []
        for point in points:
            at = folder / f"at-{point}"
            if not at.exists():
                run.mkdir(parents=True, exist_ok=True)
                stage.fit(method, run, point)
                with replacing(at) as temporary:
                    shutil.copytree(run / "result", temporary)
                    spent = {
                        "seconds": max(_curve(live, "seconds"), default=0.0),
                        "norms": _curve(live, "gradient_norm"),
                    }
                    (temporary / SPENT).write_text(json.dumps(spent))
            found.append((at, json.loads((at / SPENT).read_text())["norms"]))
        shutil.rmtree(run, ignore_errors=True)
    return found


def _curve(live: Path, name: str) -> list[float]:
    """A figure of the training, update by update; an update that was skipped may have none."""
    path = live / f"plots/metrics/train/{name}.tsv"
    if not path.is_file():
        return []
    with path.open(newline="") as lines:
        return [float(row[name]) for row in csv.DictReader(lines, delimiter="\t")]
