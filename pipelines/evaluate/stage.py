"""Exactly `umo evaluate` on the cases that a method drew; beside it, what a reward for likeness could ruin.

The judge looks at a picture once, whichever methods name it: references and targets are the same for all of them.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np

from pipelines.core import products
from pipelines.core.bases import chosen, refuse_seen
from pipelines.core.params import Section, load
from pipelines.core.shards import WORK, Counts, Machine, Shard, file_digest, scratch, tree_digest
from pipelines.core.shards import run as run_shards
from umo import faces, records
from umo.errors import BadInput
from umo.evaluation.cases import read_cases
from umo.evaluation.judges import Gallery, Seen
from umo.evaluation.side_effects import side_effects, summarise, varieties

SEEN = WORK / "seen"  # what the judge saw, by method; the embeddings are as private as the pictures
AT_ONCE = 25  # pictures


class Params(Section):
    """
    judge: the face model that evaluates; never the one that curated or gave the reward.
    """

    judge: str


def run(params: Params, machine: Machine, method: str) -> None:
    """Judge runs/generate/`method`.

    Raises:
        BadInput: the judge also curates or rewards, or the base has seen somebody of the cases.
    """
    for section, key, does in (("measure", "faces", "curates"), ("train", "reward", "gives the reward")):
        if load(section).model_dump()[key] == params.judge:
            raise BadInput(
                f"params.yaml: evaluate.judge is '{params.judge}', which also {does} ({section}.{key}): choose another"
            )
    drawn, seen = products.GENERATED / method, SEEN / method
    refuse_seen(chosen(), (person for case in read_cases(drawn / products.CASES_FILE) for person in case.people or ()))
    in_shards = partial(run_shards, "evaluate", params=params, files=faces.load(params.judge).files, machine=machine)
    in_shards(partial(_look, params.judge, machine.device), list(_pictures(drawn)), seen)
    shard = Shard("", {"drawn": tree_digest(drawn), "cases": tree_digest(products.CASES)}, drawn)
    in_shards(partial(_evaluate, params, seen), [shard], products.EVALUATED / method)


def _pictures(drawn: Path) -> Iterator[Shard]:
    """The pictures that the cases name, a few a shard: what is given, which all methods share, and what is drawn."""
    cases, known = read_cases(drawn / products.CASES_FILE), set[str]()
    given = [path for case in cases for path in case.paths if path not in case.images]
    for kind, paths in (("given", given), ("drawn", [path for case in cases for path in case.images])):
        by_digest = {file_digest(drawn / path): drawn / path for path in sorted(set(paths))}
        new = [(digest, path) for digest, path in by_digest.items() if digest not in known]
        known |= by_digest.keys()
        for start in range(0, len(new), AT_ONCE):
            piece = dict(new[start : start + AT_ONCE])
            yield Shard(f"{kind}-{start}", {"pictures": " ".join(piece)}, piece)


def _look(judge: str, device: str, shard: Shard, folder: Path) -> Counts:
    assert isinstance(shard.task, dict)
    gallery = Gallery(faces.load_named(judge, device), Path(), kept=folder)
    gallery.look(map(str, shard.task.values()))
    return Counts({"pictures": len(gallery.seen)})


def _evaluate(params: Params, looked: Path, shard: Shard, folder: Path) -> Counts:
    from umo.evaluation import scoring  # with torch it takes a second, and every stage reads this module's Params

    assert isinstance(shard.task, Path)
    seen = {path.stem: Seen(**np.load(path)) for path in looked.glob("*/*.npz")}
    # The scorer keeps what the judge has seen beside its results, which move as a whole: a killed stage goes on there.
    kept = scratch(folder)
    result = scoring.evaluate(shard.task / products.CASES_FILE, kept, faces.load(params.judge), seen)
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
