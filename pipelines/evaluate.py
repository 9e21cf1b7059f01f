"""Exactly `umo evaluate` on the cases that a method drew; beside it, whether the pictures do as their prompt says."""

import json
import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path

from pipelines import products
from pipelines.bases import find, refuse_seen
from pipelines.params import Section, load
from pipelines.shards import Counts, Machine, Shard, scratch, tree_digest
from pipelines.shards import run as run_shards
from umo import faces, records
from umo.adherence import adherence
from umo.cases import read_cases
from umo.errors import BadInput


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
    cases = read_cases(drawn / products.CASES_FILE)
    refuse_seen(find(load("generate").model_dump()["base"]), (person for case in cases for person in case.people or ()))
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
    from umo import evaluation  # with torch it takes a second, and every stage reads this module's Params

    assert isinstance(shard.task, Path)
    # The scorer keeps finished cases beside its results, under keys of their content: a killed stage goes on there.
    kept = scratch(folder)
    result = evaluation.evaluate(shard.task / products.CASES_FILE, kept, faces.load(params.judge))
    for name in (products.METRICS, products.SCORES_TABLE):
        shutil.move(kept / name, folder / name)
    shutil.rmtree(kept)
    rows = records.read(folder / products.SCORES_TABLE, records.SCORES).to_pylist()
    found = adherence(read_cases(shard.task / products.CASES_FILE), shard.task, rows)
    text = json.dumps({name: asdict(estimate) for name, estimate in found.items()}, indent=2)
    (folder / products.ADHERENCE).write_text(text + "\n")
    return Counts({"cases": result["cases"]}, {"failures": len(result["failures"])})
