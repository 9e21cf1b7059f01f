"""Methods against each other, paired by case and seed: exactly `umo compare`, for the pairs that params names.

Beside it, in the same form, `side_effects`: what a reward for likeness could ruin.
"""

import json
from functools import partial
from pathlib import Path

from pydantic import Field

from pipelines.params import Section
from pipelines.products import COMPARISONS, EVALUATED, SIDE_EFFECTS_TABLE
from pipelines.shards import Counts, Machine, Shard, tree_digest
from pipelines.shards import run as run_shards
from umo import metrics, records
from umo.comparison import compare, compare_rows


class Params(Section):
    """
    pairs: [A, B] compares A to B; the differences are A - B.
    """

    pairs: list[tuple[str, str]] = Field(min_length=1)


def run(params: Params, machine: Machine) -> None:
    """Compare runs/evaluate/A with runs/evaluate/B."""
    methods = sorted({method for pair in params.pairs for method in pair})
    inputs = {method: tree_digest(EVALUATED / method) for method in methods}
    run_shards("compare", partial(_compare, params), [Shard("", inputs)], COMPARISONS, params=params, machine=machine)


def _compare(params: Params, shard: Shard, folder: Path) -> Counts:
    found = {f"{a}-{b}": _compare_pair(EVALUATED / a, EVALUATED / b) for a, b in params.pairs}
    (folder / COMPARISONS.name).write_text(json.dumps(found, indent=1) + "\n")
    return Counts({"pairs": len(found)})


def _compare_pair(a: Path, b: Path) -> dict:
    side_effects = compare_rows(_side_effects(a), _side_effects(b), metrics.SIDE_EFFECTS)
    return compare(a, b) | {"side_effects": side_effects}


def _side_effects(folder: Path) -> list[dict]:
    return records.read(folder / SIDE_EFFECTS_TABLE, records.SIDE_EFFECTS).to_pylist()
