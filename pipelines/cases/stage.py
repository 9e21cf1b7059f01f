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
    by_n: dict[int, list[dict]] = {}
    for row in sorted(products.exported(params.split), key=lambda row: digest(params.seed, row["set_id"])):
        by_n.setdefault(row["n"], []).append(row)
    chosen = sorted((row for same in by_n.values() for row in same[: params.per_n]), key=lambda row: row["set_id"])
    (folder / "references").mkdir()
    (folder / "targets").mkdir()
    cases = []
    for row in chosen:
        references = [f"references/{image['path']}" for image in row["references"]]
        for name, image in zip(references, row["references"], strict=True):
            (folder / name).write_bytes(image["bytes"])
        target = f"targets/{row['set_id']}{Path(row['target']['path']).suffix}"
        (folder / target).write_bytes(row["target"]["bytes"])
        people = tuple(row["person_ids"])
        cases.append(Case(row["set_id"], row["prompt"], tuple((path,) for path in references), (), target, people))
    write_cases(folder / products.CASES_FILE, cases)
    return Counts({"cases": len(cases)})
