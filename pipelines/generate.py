"""Each method draws the same cases: pictures and a CASES.jsonl that any judge can score.

The methods here need no model and frame every other one: `target` is the real picture (ceiling), `pasted` has the
reference photograph pasted over each face (the copy-paste ceiling), `shuffled` is a real picture of other people
(floor).
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from pipelines import products
from pipelines.params import Section, load
from pipelines.shards import Counts, Machine, Shard, tree_digest
from pipelines.shards import run as run_shards
from umo import compositing
from umo.cases import Case, read_cases, write_cases
from umo.errors import WorkFailed
from umo.images import encode_png, read_image


class Params(Section):
    """No knobs yet: these methods need no model."""


def run(params: Params, machine: Machine, method: str) -> None:
    """Draw the cases of runs/cases."""
    inputs = {str(product): tree_digest(product) for product in (products.CASES, products.EXPORTED)}
    shard = Shard("", inputs | {"method": method}, method)
    out = products.GENERATED / method
    run_shards("generate", partial(_generate, params), [shard], out, params=params, machine=machine)


def _generate(params: Params, shard: Shard, folder: Path) -> Counts:
    method = str(shard.task)
    cases = read_cases(products.CASES / products.CASES_FILE, drawn=False)
    (folder / "images").mkdir()
    drawn = []
    for case, picture in zip(cases, METHODS[method](cases), strict=True):
        image = f"images/{case.case_id}-0.png"
        (folder / image).write_bytes(picture)
        drawn.append(_moved(replace(case, images=(image,)), products.GENERATED / method))
    write_cases(folder / products.CASES_FILE, drawn)
    return Counts({"pictures": len(drawn)})


def _moved(case: Case, to: Path) -> Case:
    """The case with the paths of its references and its target as seen from the folder `to`."""
    back = Path(os.path.relpath(products.CASES, to))
    references = tuple(tuple(str(back / path) for path in photos) for photos in case.references)
    return replace(case, references=references, target=case.target and str(back / case.target))


def _target(cases: Sequence[Case]) -> list[bytes]:
    return [(products.CASES / str(case.target)).read_bytes() for case in cases]


def _shuffled(cases: Sequence[Case]) -> list[bytes]:
    """For each case the target of another set of its split with as many people, all of them others."""
    sets = _evaluation_sets(["set_id", "n", "person_ids", "target"])
    place = {row["set_id"]: k for k, row in enumerate(sets)}
    pictures = []
    for case in cases:
        start = place[case.case_id]
        people = set(case.people or ())
        following = (
            other
            for other in [*sets[start + 1 :], *sets[:start]]
            if other["n"] == len(people) and not people & set(other["person_ids"])
        )
        other = next(following, None)
        if other is None:
            raise WorkFailed(
                f"shuffled: no set shows {len(people)} people other than those of {case.case_id}: "
                "make more scenes of the split (synthesise.scenes) or add people to it"
            )
        pictures.append(other["target"]["bytes"])
    return pictures


def _pasted(cases: Sequence[Case]) -> list[bytes]:
    columns = ["set_id", "target", "references", "target_landmarks", "reference_landmarks"]
    sets = {row["set_id"]: row for row in _evaluation_sets(columns)}
    return [encode_png(_paste(sets[case.case_id])) for case in cases]


def _evaluation_sets(columns: list[str]) -> list[dict]:
    return products.exported(load("cases").model_dump()["split"], columns)


def _paste(row: dict) -> np.ndarray:
    """The target with each person's reference laid over the face, at its place and scale."""
    scene = read_image(row["target"]["bytes"]).astype(np.float32)
    people = zip(row["references"], row["reference_landmarks"], row["target_landmarks"], strict=True)
    for image, landmarks, place in people:
        centre, scale, roll = compositing.head_frame(np.array(place))
        reference = np.reshape(landmarks, (5, 2))
        turn = np.degrees(roll - compositing.head_frame(reference)[2])
        matrix = compositing.placement(reference, (float(centre[0]), float(centre[1])), scale, float(turn))
        scene = compositing.place_face(scene, read_image(image["bytes"]), reference, matrix)
    return scene.round().astype(np.uint8)


METHODS: dict[str, Callable[[Sequence[Case]], list[bytes]]] = {
    "target": _target,
    "pasted": _pasted,
    "shuffled": _shuffled,
}
