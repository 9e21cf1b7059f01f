"""Each method draws the same cases from the same noise: pictures and a CASES.jsonl that any judge can score.

`base` is the model as it was; `sft`, `sir`, `mimr` and `ours` draw with the LoRA that they trained. Three frame them:
`target` is the real picture (ceiling), `pasted` has the reference photograph pasted over each face (the copy-paste
ceiling), `shuffled` is drawn by the base from somebody else's references (floor).

Of every model there is more, to see what a reward cost it (umo/evaluation/side_effects.py): `variety`, some of the
cases with several seeds each, and `losses.parquet`, its loss on the targets.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from pydantic import Field

from pipelines.core import products
from pipelines.core.bases import Base, chosen, lora_of, refuse_seen, weights_digest
from pipelines.core.params import Section, load
from pipelines.core.shards import WORK, Counts, Machine, Shard, tree_digest
from pipelines.core.shards import run as run_shards
from pipelines.generate.drawing import DRAWN_FILE, Piece, draw, moved
from umo import records
from umo.errors import WorkFailed
from umo.evaluation.cases import Case, read_cases, write_cases
from umo.images import encode_png, read_image
from umo.scenes import compositing

MODELS = ("base", *products.TRAINED_METHODS)
DRAWINGS = WORK / "drawings"  # by method, what its pieces drew
PIECE = 24  # pictures


class Params(Section):
    """
    seeds: pictures a case; a method that draws nothing has one.
    variety_cases: cases that each model also draws with several seeds, at most; 0 is none.
    variety_seeds: how many.
    loss_draws: noises that the loss on a case's target is averaged over; 0 measures none.
    """

    seeds: int = Field(ge=1)
    variety_cases: int = Field(ge=0)
    variety_seeds: int = Field(ge=2)
    loss_draws: int = Field(ge=0)


def run(params: Params, machine: Machine, method: str) -> None:
    """Draw the cases of runs/cases.

    Raises:
        BadInput: the base is not there, the method is not trained yet, or either has seen somebody of the cases.
    """
    base = chosen()
    cases = read_cases(products.CASES / products.CASES_FILE, drawn=False)
    inputs = {"method": method, "cases": tree_digest(products.CASES)}
    if method == "pasted":
        inputs["exported"] = tree_digest(products.EXPORTED)
    if method not in MADE:
        refuse_seen(base, (person for case in cases for person in case.people or ()), method)
        inputs |= _model_inputs(base, method)
    where = products.GENERATED / method
    if method in MADE:
        run_shards("generate", _make, [Shard("", inputs, (method, cases))], where, params=params, machine=machine)
        return
    parts = {"": (cases, params.seeds, params.loss_draws if method in MODELS else 0)}
    if method in MODELS and params.variety_cases:
        parts[products.VARIETY] = (_spread(cases, params.variety_cases), params.variety_seeds, 0)
    asked = {case.case_id: case for case in (_shuffled(cases) if method == "shuffled" else cases)}
    pieces = {part: list(_pieces(part, asked, *of, inputs)) for part, of in parts.items()}
    work = partial(draw, base, lora_of(base, method), machine.device)
    run_shards("generate", work, list(chain(*pieces.values())), DRAWINGS / method, params=params, machine=machine)
    shards = [Shard(part, inputs, (parts[part][0], [piece.name for piece in pieces[part]])) for part in parts]
    run_shards("generate", partial(_gather, method), shards, where, params=params, machine=machine)


def _pieces(
    part: str, asked: Mapping[str, Case], cases: Sequence[Case], seeds: int, draws: int, inputs: Mapping[str, str]
) -> Iterator[Shard]:
    """Some of the cases each; those of as many people, which are drawn together, beside one another."""
    ordered = sorted(cases, key=lambda case: len(case.references))
    at_once = max(1, PIECE // seeds)
    for start in range(0, len(ordered), at_once):
        judged = ordered[start : start + at_once]
        yield Shard(f"{part}{start}", inputs, Piece([asked[case.case_id] for case in judged], judged, seeds, draws))


def _model_inputs(base: Base, method: str) -> dict[str, str]:
    """What a model's drawings depend on; a base's do not on the recipe that it is tuned by."""
    own = base.model_dump_json(exclude={"train"})
    inputs = {"base": own, "precision": base.precision, "weights": weights_digest(base)}
    if lora := lora_of(base, method):
        inputs["lora"] = tree_digest(lora)
    return inputs


def _gather(method: str, shard: Shard, folder: Path) -> Counts:
    """What the pieces of a part drew, under the cases as they will be judged."""
    assert isinstance(shard.task, tuple)
    cases, names = shard.task
    images: dict[str, Sequence[str]] = {}
    losses: dict[str, float] = {}
    for piece in (DRAWINGS / method / name for name in names):
        shutil.copytree(piece / "images", folder / "images", dirs_exist_ok=True)
        drawn = json.loads((piece / DRAWN_FILE).read_text())
        images |= drawn["images"]
        losses |= drawn["losses"]
    to = products.GENERATED / method / shard.name
    judged = [moved(replace(case, images=tuple(images[case.case_id])), to) for case in cases]
    write_cases(folder / products.CASES_FILE, judged)
    if losses:
        rows = [{"case_id": case.case_id, "diffusion_loss": losses[case.case_id]} for case in cases if case.target]
        records.write(folder / products.LOSSES_TABLE, rows, records.LOSSES)
    return Counts({"pictures": sum(map(len, images.values()))})


def _make(shard: Shard, folder: Path) -> Counts:
    assert isinstance(shard.task, tuple)
    method, cases = shard.task
    (folder / "images").mkdir()
    made = []
    for case, picture in zip(cases, MADE[method](cases), strict=True):
        image = f"images/{case.case_id}-0.png"
        (folder / image).write_bytes(picture)
        made.append(moved(replace(case, images=(image,)), products.GENERATED / method))
    write_cases(folder / products.CASES_FILE, made)
    return Counts({"pictures": len(made)})


def _spread(cases: Sequence[Case], count: int) -> list[Case]:
    """So many of the cases, evenly over the numbers of people."""
    ordered = sorted(cases, key=lambda case: len(case.references))
    count = min(count, len(ordered))
    return [ordered[(2 * k + 1) * len(ordered) // (2 * count)] for k in range(count)]


def _target(cases: Sequence[Case]) -> Iterator[bytes]:
    return ((products.CASES / str(case.target)).read_bytes() for case in cases)


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


def _pasted(cases: Sequence[Case]) -> Iterator[bytes]:
    columns = ["target", "references", "target_landmarks", "reference_landmarks"]
    sets = products.exported(load("cases").model_dump()["split"], columns)
    places = {set_id: k for k, set_id in enumerate(sets.table("set_id")["set_id"].to_pylist())}
    return (encode_png(_paste(sets[places[case.case_id]])) for case in cases)


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


MADE: dict[str, Callable[[Sequence[Case]], Iterator[bytes]]] = {"target": _target, "pasted": _pasted}
