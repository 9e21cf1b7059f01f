"""Exactly `umo evaluate` on the cases that a method drew."""

import shutil
from functools import partial
from pathlib import Path

from pipelines import products
from pipelines.params import Section, load
from pipelines.shards import WORK, Counts, Machine, Shard, tree_digest
from pipelines.shards import run as run_shards
from umo import faces
from umo.errors import BadInput
from umo.faces.calibration import SHIPPED


class Params(Section):
    """
    judge: the face model that evaluates; never the one that curated or gave the reward.
    """

    judge: str


def run(params: Params, machine: Machine, method: str) -> None:
    """Judge runs/generate/`method`."""
    curated = load("measure").model_dump()["faces"]
    if curated == params.judge:
        raise BadInput(
            f"params.yaml: evaluate.judge is '{curated}', which also curates (measure.faces): choose another"
        )
    drawn = products.GENERATED / method
    shard = Shard("", {"drawn": tree_digest(drawn), "cases": tree_digest(products.CASES)}, drawn)
    judge = faces.load(params.judge)
    calibration = SHIPPED / f"{params.judge}.calibration.json"
    files = [*judge.files, calibration] if calibration.exists() else judge.files
    run_shards(
        "evaluate",
        partial(_evaluate, params),
        [shard],
        products.EVALUATED / method,
        params=params,
        files=files,
        machine=machine,
    )


def _evaluate(params: Params, shard: Shard, folder: Path) -> Counts:
    from umo import evaluation  # with torch it takes a second, and every stage reads this module's Params

    assert isinstance(shard.task, Path)
    # The scorer keeps finished cases beside its results, under keys of their content: a killed stage goes on there.
    scratch = WORK / "evaluate" / f"{shard.task.name}.partial"
    result = evaluation.evaluate(shard.task / products.CASES_FILE, scratch, faces.load(params.judge))
    for name in (products.METRICS, products.SCORES_TABLE):
        shutil.move(scratch / name, folder / name)
    return Counts({"cases": result["cases"]}, {"failures": len(result["failures"])})
