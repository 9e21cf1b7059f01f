"""Cases to evaluate on, drawn from the exported data set: prompts, references and targets of people not trained on."""

from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import Field

from pipelines.core import products
from pipelines.core.params import Section
from pipelines.core.shards import Counts, Machine, Shard, digest, tree_digest
from pipelines.core.shards import run as run_shards
from umo.evaluation.cases import Case, write_cases


class Params(Section):
    """
    split: whose people are drawn; validation while choosing, test for what is published.
    per_n: cases for every number of people, at most.
    seed: of the choice.
    """

    split: Literal["validation", "test"]
    per_n: int = Field(ge=1)
    seed: int


def run(params: Params, machine: Machine) -> None:
    """Choose the cases and write their pictures once, for all methods."""
    inputs = {"exported": tree_digest(products.EXPORTED)}
    run_shards("cases", partial(_cases, params), [Shard("", inputs)], products.CASES, params=params, machine=machine)


def _cases(params: Params, shard: Shard, folder: Path) -> Counts:
    sets = products.exported(params.split, ["set_id", "prompt", "references", "target", "person_ids"])
    by_n: dict[int, list[int]] = {}
    keys = sets.table("set_id", "n").to_pylist()
    for k in sorted(range(len(sets)), key=lambda k: digest(params.seed, keys[k]["set_id"])):
        by_n.setdefault(keys[k]["n"], []).append(k)
    chosen = sorted(k for same in by_n.values() for k in same[: params.per_n])
    (folder / "references").mkdir()
    (folder / "targets").mkdir()
    cases = []
    for row in map(sets.__getitem__, chosen):
        references = [f"references/{image['path']}" for image in row["references"]]
        for name, image in zip(references, row["references"], strict=True):
            (folder / name).write_bytes(image["bytes"])
        target = f"targets/{row['set_id']}{Path(row['target']['path']).suffix}"
        (folder / target).write_bytes(row["target"]["bytes"])
        people = tuple(row["person_ids"])
        cases.append(Case(row["set_id"], row["prompt"], tuple((path,) for path in references), (), target, people))
    write_cases(folder / products.CASES_FILE, sorted(cases, key=lambda case: case.case_id))
    return Counts({"cases": len(cases)})
