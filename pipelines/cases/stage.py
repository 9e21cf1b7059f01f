"""Cases to evaluate on, drawn from the exported data set: prompts, references and targets of people not trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import Field

from pipelines.core import products
from pipelines.core.params import Section
from pipelines.core.shards import Counts, Machine, Shard, digest, tree_digest
from pipelines.core.shards import run as run_shards
from umo.evaluation.cases import Case, write_cases

# Tags: the prompt says who stands where, or not; two of the people look alike.
PLACED, OPEN, ALIKE = "placed", "open", "alike"


class Params(Section):
    """
    split: whose people are drawn; validation while choosing, test for what is published.
    per_n: cases for every number of people, at most.
    alike: further cases for every number of people from two on, at most: those with the most alike two people, by the
        network that curated. They are tagged `alike`.
    seed: of the choice.
    """

    split: Literal["validation", "test"]
    per_n: int = Field(ge=1)
    alike: int = Field(ge=0)
    seed: int


def run(params: Params, machine: Machine) -> None:
    """Choose the cases and write their pictures once, for all methods."""
    inputs = {"exported": tree_digest(products.EXPORTED)}
    run_shards("cases", partial(_cases, params), [Shard("", inputs)], products.CASES, params=params, machine=machine)


def _cases(params: Params, shard: Shard, folder: Path) -> Counts:
    sets = products.exported(params.split, ["set_id", "prompt", "references", "target", "person_ids"])
    tags = _chosen(params, sets.table("set_id", "n", "cross_cosine").to_pylist())
    (folder / "references").mkdir()
    (folder / "targets").mkdir()
    cases = []
    for k in sorted(tags):
        row = sets[k]
        references = [f"references/{image['path']}" for image in row["references"]]
        for name, image in zip(references, row["references"], strict=True):
            (folder / name).write_bytes(image["bytes"])
        target = f"targets/{row['set_id']}{Path(row['target']['path']).suffix}"
        (folder / target).write_bytes(row["target"]["bytes"])
        photos = tuple((path,) for path in references)
        case = Case(row["set_id"], row["prompt"], photos, (), target, tuple(row["person_ids"]))
        said = PLACED if case.asked_places else OPEN
        cases.append(replace(case, tags=(said, *tags[k])))
    write_cases(folder / products.CASES_FILE, sorted(cases, key=lambda case: case.case_id))
    return Counts({"cases": len(cases)})


def _chosen(params: Params, sets: Sequence[Mapping]) -> dict[int, tuple[str, ...]]:
    """The chosen rows of `sets` (set_id, n, cross_cosine), and ALIKE for those chosen for it."""
    drawn = sorted(range(len(sets)), key=lambda k: digest(params.seed, sets[k]["set_id"]))
    chosen: dict[int, tuple[str, ...]] = {}
    for n in {row["n"] for row in sets}:
        same = [k for k in drawn if sets[k]["n"] == n]
        alike = sorted(same, key=lambda k: -sets[k]["cross_cosine"])[: params.alike] if n > 1 else []
        chosen |= dict.fromkeys([k for k in same if k not in alike][: params.per_n], ())
        chosen |= dict.fromkeys(alike, (ALIKE,))
    return chosen
