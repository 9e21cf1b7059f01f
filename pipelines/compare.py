"""Methods against each other, paired by case and seed: exactly `umo compare`, for the pairs that params names."""

import json
from functools import partial
from pathlib import Path

from pydantic import Field

from pipelines.params import Section
from pipelines.products import COMPARISONS, EVALUATED
from pipelines.shards import Counts, Machine, Shard, tree_digest
from pipelines.shards import run as run_shards
from umo.comparison import compare


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
    found = {f"{a}-{b}": compare(EVALUATED / a, EVALUATED / b) for a, b in params.pairs}
    (folder / COMPARISONS.name).write_text(json.dumps(found, indent=1) + "\n")
    return Counts({"pairs": len(found)})
