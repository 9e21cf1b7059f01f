"""Methods against each other, paired by case and seed: exactly `umo compare`, for the pairs that params names.

Beside it `side_effects`: what a reward for likeness could ruin. The verdicts of all pairs are corrected together. And
`summary.json`, the means that `dvc metrics` shows.
"""

import json
from collections.abc import Mapping
from functools import partial
from itertools import chain
from pathlib import Path

from pydantic import Field

from pipelines.core.params import Section
from pipelines.core.products import COMPARISONS, EVALUATED, METRICS, SIDE_EFFECTS_TABLE, SUMMARY
from pipelines.core.shards import Counts, Machine, Shard, file_digest, tree_digest
from pipelines.core.shards import run as run_shards
from umo import records
from umo.evaluation import metrics
from umo.evaluation.comparison import compare, compare_rows, correct

SUMMARISED = ("id_sim_strict", "id_conf", "coverage", "copy_paste")


class Params(Section):
    """pairs: [A, B] compares A to B; the differences are A - B."""

    pairs: list[tuple[str, str]] = Field(min_length=1)


def run(params: Params, machine: Machine) -> None:
    """Compare runs/evaluate/A with runs/evaluate/B."""
    methods = sorted({method for pair in params.pairs for method in pair})
    inputs = {method: tree_digest(EVALUATED / method) for method in methods}
    run_shards("compare", partial(_compare, params), [Shard("", inputs)], COMPARISONS, params=params, machine=machine)
    scores = {path.parent.name: path for path in EVALUATED.glob(f"*/{METRICS}")}
    inputs = {f"metrics of {method}": file_digest(path) for method, path in scores.items()}
    run_shards("compare", partial(_summarise, scores), [Shard("", inputs)], SUMMARY, params=params, machine=machine)


def _compare(params: Params, shard: Shard, folder: Path) -> Counts:
    tables = {method: EVALUATED / method / SIDE_EFFECTS_TABLE for pair in params.pairs for method in pair}
    rows = {method: records.read(path, records.SIDE_EFFECTS).to_pylist() for method, path in tables.items()}
    found = {
        f"{a}-{b}": compare(EVALUATED / a, EVALUATED / b)
        | {"side_effects": compare_rows(rows[a], rows[b], metrics.SIDE_EFFECTS)}
        for a, b in params.pairs
    }
    compared = [[*(one[name] for name in metrics.METRICS), *one["side_effects"].values()] for one in found.values()]
    correct(list(chain.from_iterable(compared)))
    (folder / COMPARISONS.name).write_text(json.dumps(found, indent=1) + "\n")
    return Counts({"pairs": len(found)})


def _summarise(scores: Mapping[str, Path], shard: Shard, folder: Path) -> Counts:
    """Metric -> method -> mean, for every method that was evaluated."""
    found = {method: json.loads(path.read_text()) for method, path in sorted(scores.items())}
    means = {metric: {method: own[metric]["mean"] for method, own in found.items()} for metric in SUMMARISED}
    (folder / SUMMARY.name).write_text(json.dumps(means, indent=1) + "\n")
    return Counts({"methods": len(found)})
