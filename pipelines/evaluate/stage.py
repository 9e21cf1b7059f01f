"""Exactly `umo evaluate` on the cases that a method drew; beside it, what a reward for likeness could ruin."""

import json
import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path

from pipelines.core import products
from pipelines.core.params import Section, load
from pipelines.core.shards import Counts, Machine, Shard, scratch, tree_digest
from pipelines.core.shards import run as run_shards
from umo import faces, records
from umo.errors import BadInput
from umo.evaluation.cases import read_cases
from umo.evaluation.side_effects import side_effects, summarise, varieties


class Params(Section):
    """
    judge: the face model that evaluates; never the one that curated or gave the reward.
    """

    judge: str


def run(params: Params, machine: Machine, method: str) -> None:
    """Judge runs/generate/`method`.

    Raises:
        BadInput: the judge also curates or rewards. (Whom the base has seen, `generate` refuses to draw.)
    """
    for section, key, does in (("measure", "faces", "curates"), ("train", "reward", "gives the reward")):
        if load(section).model_dump()[key] == params.judge:
            raise BadInput(
                f"params.yaml: evaluate.judge is '{params.judge}', which also {does} ({section}.{key}): choose another"
            )
    drawn = products.GENERATED / method
    shard = Shard("", {"drawn": tree_digest(drawn), "cases": tree_digest(products.CASES)}, drawn)
    judge = faces.load(params.judge)
    run_shards(
        "evaluate",
        partial(_evaluate, params),
        [shard],
        products.EVALUATED / method,
        params=params,
        files=judge.files,
        machine=machine,
    )


def _evaluate(params: Params, shard: Shard, folder: Path) -> Counts:
    from umo.evaluation import scoring  # with torch it takes a second, and every stage reads this module's Params

    assert isinstance(shard.task, Path)
    # The scorer keeps finished cases beside its results, under keys of their content: a killed stage goes on there.
    kept = scratch(folder)
    result = scoring.evaluate(shard.task / products.CASES_FILE, kept, faces.load(params.judge))
    for name in (products.METRICS, products.SCORES_TABLE):
        shutil.move(kept / name, folder / name)
    shutil.rmtree(kept)
    _write_side_effects(shard.task, folder)
    return Counts({"cases": result["cases"]}, {"failures": len(result["failures"])})


def _write_side_effects(drawn: Path, folder: Path) -> None:
    """Of the pictures in `drawn`, whose scores lie in `folder` already; and beside them."""
    cases = read_cases(drawn / products.CASES_FILE)
    scores = records.read(folder / products.SCORES_TABLE, records.SCORES).to_pylist()
    rows = side_effects(cases, drawn, scores, _losses(drawn), _varieties(drawn))
    records.write(folder / products.SIDE_EFFECTS_TABLE, rows, records.SIDE_EFFECTS)
    text = json.dumps({name: asdict(estimate) for name, estimate in summarise(rows).items()}, indent=2)
    (folder / products.SIDE_EFFECTS).write_text(text + "\n")


def _losses(drawn: Path) -> dict[str, float]:
    """By case; none where no model drew, or where none were asked for (and so for `_varieties`)."""
    path = drawn / products.LOSSES_TABLE
    rows = records.read(path, records.LOSSES).to_pylist() if path.exists() else []
    return {row["case_id"]: row["diffusion_loss"] for row in rows}


def _varieties(drawn: Path) -> dict[str, float | None]:
    path = drawn / products.VARIETY / products.CASES_FILE
    return varieties(read_cases(path), path.parent) if path.exists() else {}
