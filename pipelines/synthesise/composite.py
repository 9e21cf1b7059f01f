"""Scenes composited from the photographs of people of one split."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipelines.core import products, store
from pipelines.core.ledger import SPLITS, Split
from pipelines.core.params import load
from pipelines.core.shards import Shard, digest
from pipelines.core.store import PLACE
from pipelines.synthesise.base import (
    Earlier,
    Photographs,
    Scenes,
    layout_row,
    numbers,
    photos,
    require_people,
    scene_of,
    terms,
)
from pipelines.synthesise.params import Params
from umo import records
from umo.errors import BadInput
from umo.images import encode_png
from umo.quality import square_crop
from umo.scenes import compositing
from umo.scenes.compositing import Light
from umo.scenes.prompts import COLOURS, TEXTURES, open_prompt, prompt

# A photograph of somebody to be shown, and the one that guides where the head stands, if any.
Chosen = tuple[dict, dict | None]


class Scene(NamedTuple):
    """A scene that is asked for."""

    split: Split
    number: int
    chosen: list[Chosen]

    @property
    def name(self) -> str:
        """SPLIT/NUMBER, its path in the product."""
        return f"{self.split}/{self.number}"

    def piece(self, crop: float) -> str:
        """Digest of what it depends on beside params."""
        seen = [{key: row[key] for key in row.keys() - PLACE} if row else None for pair in self.chosen for row in pair]
        return digest(self.name, seen, crop)


@dataclass(frozen=True)
class Composite:
    """The generator `composite`: a scene depends on the photographs of the people in it and on no others."""

    params: Params

    def shards(self) -> list[Shard]:
        """The pieces of the work; raises BadInput where a split has too few people."""
        found, slots = photos(), self.params.placement == "slots"
        crop = load("export").model_dump()["reference_crop"]
        of_split = {split: Photographs(found.filter(split=split)) for split in SPLITS}
        for split in SPLITS:
            require_people(self.params, split, len(of_split[split].people))
        shards = []
        for name, split, which in numbers(self.params):
            scenes = []
            for number in which:
                n, _ = scene_of(self.params, split, number)
                people = of_split[split].choose(n, f"{self.params.seed}/{split}/{number}")
                chosen = [(own[0], own[min(1, len(own) - 1)] if slots else None) for own in people]
                scenes.append(Scene(split, number, chosen))
            pieces = {scene.name: scene.piece(crop) for scene in scenes}
            shards.append(Shard(name, pieces, (scenes, crop)))
        return shards

    def scenes(self, shard: Shard) -> Scenes:
        """The scenes of a shard: those that it had before are taken over."""
        assert isinstance(shard.task, tuple)
        asked, crop = shard.task
        made, pictures = Scenes(pieces=shard.inputs), store.Pictures(products.INGESTED)
        layout, scenes = products.LAYOUT_TABLE, products.SCENES_TABLE
        earlier = Earlier(shard, shard.inputs, {layout: records.LAYOUT, scenes: records.SCENES})
        for scene in asked:
            if taken := earlier.of(scene.name):
                made.images += taken.images
                made.pictures |= taken.pictures
                made.layout += taken.rows[layout]
                made.scenes += taken.rows[scenes]
            else:
                self._add(made, shard.name, scene, crop, pictures)
        return made

    def _add(self, made: Scenes, shard: str, asked: Scene, crop: float, pictures: store.Pictures) -> None:
        n, rng = scene_of(self.params, asked.split, asked.number)
        is_open = _is_open(self.params, asked.number)
        scene, boxes, ground = _draw(self.params, crop, asked.chosen, is_open, pictures, rng)
        taken = terms([face for face, _ in asked.chosen])
        origin = {"source": "composite", "path": asked.name, "group": f"composite/{asked.name}", **taken}
        image_id = made.add(shard, encode_png(scene), scene.shape[:2], **origin)
        centres = [float((box[0] + box[2]) / 2 / scene.shape[1]) for box in boxes]
        text = open_prompt(n, ground) if is_open else prompt(centres, ground)
        described = {"generator": "composite", "background": ground, "prompt": text}
        made.scenes.append({"image_id": image_id, "n": n, "split": asked.split, **described})
        for position, ((face, guide), box) in enumerate(zip(asked.chosen, boxes, strict=True)):
            made.layout.append(layout_row(image_id, position, face["person_id"], box, source=face, guide=guide))


def _is_open(params: Params, number: int) -> bool:
    """Whether a scene's prompt leaves open who stands where: of each number of people a share, evenly spread."""
    turn = number // len(params.people)
    return int((turn + 1) * params.open_prompts) > int(turn * params.open_prompts)


def _draw(
    params: Params,
    crop: float,
    chosen: Sequence[Chosen],
    is_open: bool,
    pictures: store.Pictures,
    rng: np.random.Generator,
) -> tuple[np.ndarray, list[np.ndarray], str]:
    """A scene (H, W, 3) uint8, the box of each chosen face, the background's name."""
    width = _width(params, len(chosen), rng)
    ground = f"{rng.choice(TEXTURES)} {rng.choice(list(COLOURS))}"
    scene = compositing.background(ground, (params.height, width), rng)
    n, boxes = len(chosen), []
    places = rng.permutation(n) if is_open else range(n)
    for place, (face, guide) in zip(places, chosen, strict=True):
        photo = pictures.read(face)
        landmarks = np.reshape(face["landmarks"], (5, 2))
        if guide:
            # One person stands left, in the middle or right; several fill the width.
            slot = rng.integers(3) / 2 if n == 1 else place / (n - 1)
            there = _in_square(guide, pictures.read(guide), crop, params.height)
            # The head takes the guide's place, scale and roll.
            centre, scale, roll = compositing.head_frame(there + np.array([slot * (width - params.height), 0]))
            turn = np.degrees(roll - compositing.head_frame(landmarks)[2])
            matrix = compositing.placement(landmarks, (float(centre[0]), float(centre[1])), scale, float(turn))
        else:
            matrix = _anywhere(params, landmarks, (width * place / n, width * (place + 1) / n), rng)
        gain, warmth, slope = rng.uniform(-params.max_light, params.max_light, 3)
        light = Light(1 + gain, (1 + warmth / 2, 1, 1 - warmth / 2), slope)
        scene = compositing.place_face(scene, photo, landmarks, matrix, light)
        boxes.append(compositing.transform_box(np.asarray(face["box"]), matrix))
    return scene.round().astype(np.uint8), boxes, ground


def _width(params: Params, n: int, rng: np.random.Generator) -> int:
    """The narrowest width with a slot a person; or any in which the largest heads, about 2.7 scales wide, fit."""
    slots = params.placement == "slots"
    needed = n * params.height if slots else n * 2.7 * params.max_scale * params.height
    fitting = [width for width in params.widths if width >= needed]
    if not fitting:
        raise BadInput(
            f"{n} people need a width of {needed:.0f} and synthesise.widths has at most {max(params.widths)}: "
            "add a wider one"
        )
    return min(fitting) if slots else int(rng.choice(fitting))


def _in_square(face: dict, photo: np.ndarray, crop: float, side: int) -> np.ndarray:
    """Landmarks (5, 2) of a face in the square crop around it, scaled to `side` pixels."""
    cut, matrix = square_crop(photo, np.asarray(face["box"]), crop, side)
    points = compositing.transform(np.reshape(face["landmarks"], (5, 2)), matrix)
    return (points + 0.5) * side / cut.shape[0] - 0.5  # pixel centres


def _anywhere(params: Params, landmarks: np.ndarray, part: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """(2, 3) matrix that puts a face somewhere in its part of the width."""
    height = params.height
    scale = rng.uniform(params.min_scale, params.max_scale) * height
    x_low, x_high = part[0] + 1.35 * scale, part[1] - 1.35 * scale
    y_low, y_high = 1.9 * scale, height - 1.35 * scale
    centre = (rng.uniform(x_low, max(x_low, x_high)), rng.uniform(min(y_low, y_high), y_high))
    return compositing.placement(landmarks, centre, scale, rng.uniform(-params.max_roll, params.max_roll))
