"""Each method draws the same cases: pictures and a CASES.jsonl that any judge can score.

Three frame every other one: `target` is the real picture (ceiling), `pasted` has the reference photograph pasted over
each face (the copy-paste ceiling), `shuffled` is drawn by the base from somebody else's references (floor).
"""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import Field

from pipelines import products
from pipelines.bases import Base, find, refuse_seen, weights_digest
from pipelines.params import Section, load
from pipelines.shards import Counts, Machine, Shard, scratch, tree_digest
from pipelines.shards import run as run_shards
from umo import compositing
from umo.cases import Case, read_cases, write_cases
from umo.errors import WorkFailed
from umo.images import encode_png, read_image


class Params(Section):
    """
    base: the base that draws; a key of `bases`.
    seeds: pictures a case; a method that draws nothing has one.
    """

    base: str
    seeds: int = Field(ge=1)


def run(params: Params, machine: Machine, method: str) -> None:
    """Draw the cases of runs/cases.

    Raises:
        BadInput: the base is not there, or has seen somebody of the cases.
    """
    base = find(params.base)
    cases = read_cases(products.CASES / products.CASES_FILE, drawn=False)
    inputs = {str(product): tree_digest(product) for product in (products.CASES, products.EXPORTED)}
    if method in DRAWN:
        refuse_seen(base, (person for case in cases for person in case.people or ()))
        inputs |= {"base": base.model_dump_json(), "weights": weights_digest(base)}
    shard = Shard("", inputs | {"method": method}, method)
    out = products.GENERATED / method
    run_shards("generate", partial(_generate, params, base), [shard], out, params=params, machine=machine)


def _generate(params: Params, base: Base, shard: Shard, folder: Path) -> Counts:
    method = str(shard.task)
    cases = read_cases(products.CASES / products.CASES_FILE, drawn=False)
    if method in DRAWN:
        return _draw(params, base, method, DRAWN[method](cases), cases, folder)
    (folder / "images").mkdir()
    drawn = []
    for case, picture in zip(cases, MADE[method](cases), strict=True):
        image = f"images/{case.case_id}-0.png"
        (folder / image).write_bytes(picture)
        drawn.append(_moved(replace(case, images=(image,)), products.GENERATED / method))
    write_cases(folder / products.CASES_FILE, drawn)
    return Counts({"pictures": len(drawn)})


def _draw(
    params: Params, base: Base, method: str, asked: Sequence[Case], judged: Sequence[Case], folder: Path
) -> Counts:
    """Draw what is `asked`, and hand over the pictures under the cases as they will be judged.

    Pictures are drawn into a folder of their own, where a killed run finds them again by the key inside each.
    """
    from umo.generate import generate_cases

    kept = scratch(folder)
    kept.mkdir(parents=True, exist_ok=True)
    to = products.GENERATED / method
    write_cases(kept / "asked.jsonl", [_moved(case, kept) for case in asked])
    counts = generate_cases(
        base.folder, kept / "asked.jsonl", kept, params.seeds, steps=base.steps, guidance=base.guidance
    )
    images = {case.case_id: case.images for case in read_cases(kept / products.CASES_FILE)}
    (folder / "images").mkdir()
    for name in (name for names in images.values() for name in names):
        shutil.move(kept / name, folder / name)
    drawn = [_moved(replace(case, images=images[case.case_id]), to) for case in judged]
    write_cases(folder / products.CASES_FILE, drawn)
    shutil.rmtree(kept)
    return Counts({"pictures": counts.drawn + counts.kept})


def _moved(case: Case, to: Path) -> Case:
    """The case with the paths of its references and its target as seen from the folder `to`."""
    back = Path(os.path.relpath(products.CASES, to))
    references = tuple(tuple(str(back / path) for path in photos) for photos in case.references)
    return replace(case, references=references, target=case.target and str(back / case.target))


def _target(cases: Sequence[Case]) -> list[bytes]:
    return [(products.CASES / str(case.target)).read_bytes() for case in cases]


def _as_it_is(cases: Sequence[Case]) -> Sequence[Case]:
    return cases


def _shuffled(cases: Sequence[Case]) -> list[Case]:
    """Each case with the references of as many other people, from the cases that follow it round and round."""
    shuffled = []
    for k, case in enumerate(cases):
        own, n = set(case.people or ()), len(case.references)
        others: dict[str, tuple[str, ...]] = {}
        for other in [*cases[k + 1 :], *cases[:k]]:
            for person, photos in zip(other.people or (), other.references, strict=True):
                if person not in own and len(others) < n:
                    others.setdefault(person, photos)
        if len(others) < n:
            raise WorkFailed(
                f"shuffled: the cases show only {len(others)} people who are not in {case.case_id}: "
                "raise cases.per_n or add people to the split"
            )
        shuffled.append(replace(case, references=tuple(others.values()), people=tuple(others)))
    return shuffled


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


MADE: dict[str, Callable[[Sequence[Case]], list[bytes]]] = {"target": _target, "pasted": _pasted}
DRAWN: dict[str, Callable[[Sequence[Case]], Sequence[Case]]] = {"base": _as_it_is, "shuffled": _shuffled}
