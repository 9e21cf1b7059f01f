"""Scenes composited from the photographs of people of one split."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.core import products, store
from pipelines.core.ledger import SPLITS
from pipelines.core.params import load
from pipelines.core.shards import Shard, digest, tree_digest
from pipelines.synthesise.base import Scenes, layout_row, numbers, photos, require_people, scene_of, terms
from pipelines.synthesise.params import Params
from umo.errors import BadInput
from umo.images import encode_png
from umo.quality import square_crop
from umo.scenes import compositing
from umo.scenes.compositing import Light
from umo.scenes.prompts import COLOURS, TEXTURES, prompt

# A photograph of somebody to be shown, and the one that guides where the head stands, if any.
Chosen = tuple[dict, dict | None]


@dataclass(frozen=True)
class Composite:
    """The generator `composite`."""

    params: Params

    def shards(self) -> list[Shard]:
        """The pieces of the work; raises BadInput where a split has too few people."""
        found = photos()
        pictures = [tree_digest(file) for file in sorted(products.INGESTED.glob(f"*/{products.PICTURES}"))]
        crop = load("export").model_dump()["reference_crop"]
        faces = {split: found.filter(split=split).sort("face_id").to_dicts() for split in SPLITS}
        for split in SPLITS:
            require_people(self.params, split, len({face["person_id"] for face in faces[split]}))
        common = {"pictures": digest(pictures), "crop": str(crop)}
        of_split = {split: {split: digest(faces[split]), **common} for split in SPLITS}
        return [
            Shard(name, of_split[split] | {"scenes": str(which)}, (split, list(which), faces[split], crop))
            for name, split, which in numbers(self.params)
        ]

    def scenes(self, shard: Shard) -> Scenes:
        """The scenes of a shard."""
        params, made = self.params, Scenes()
        pictures = store.Pictures(products.INGESTED)
        assert isinstance(shard.task, tuple)
        split, which, faces, crop = shard.task
        for number in which:
            n, rng = scene_of(params, split, number)
            chosen = _choose(params, faces, n, rng)
            scene, boxes, ground = _draw(params, crop, chosen, pictures, rng)
            name, taken = f"{split}/{number}", terms([face for face, _ in chosen])
            origin = {"source": "composite", "path": name, "group": f"composite/{name}", **taken}
            image_id = made.add(shard.name, encode_png(scene), scene.shape[:2], **origin)
            centres = [float((box[0] + box[2]) / 2 / scene.shape[1]) for box in boxes]
            described = {"generator": "composite", "background": ground, "prompt": prompt(centres, ground)}
            made.scenes.append({"image_id": image_id, "n": n, "split": split, **described})
            for position, ((face, guide), box) in enumerate(zip(chosen, boxes, strict=True)):
                made.layout.append(layout_row(image_id, position, face["person_id"], box, source=face, guide=guide))
        return made


def _choose(params: Params, faces: Sequence[dict], n: int, rng: np.random.Generator) -> list[Chosen]:
    people = sorted({face["person_id"] for face in faces})
    chosen: list[Chosen] = []
    for k in rng.choice(len(people), n, replace=False):
        photos = [face for face in faces if face["person_id"] == people[k]]
        order = rng.permutation(len(photos))
        guide = photos[order[min(1, len(photos) - 1)]] if params.placement == "slots" else None
        chosen.append((photos[order[0]], guide))
    return chosen


def _draw(
    params: Params, crop: float, chosen: Sequence[Chosen], pictures: store.Pictures, rng: np.random.Generator
) -> tuple[np.ndarray, list[np.ndarray], str]:
    """A scene (H, W, 3) uint8, the box of each face from left to right, the background's name."""
    width = _width(params, len(chosen), rng)
    ground = f"{rng.choice(TEXTURES)} {rng.choice(list(COLOURS))}"
    scene = compositing.background(ground, (params.height, width), rng)
    n, boxes = len(chosen), []
    for position, (face, guide) in enumerate(chosen):
        photo = pictures.read(face["shard"], face["key"])
        landmarks = np.reshape(face["landmarks"], (5, 2))
        if guide:
            # One person stands left, in the middle or right; several fill the width.
            slot = rng.integers(3) / 2 if n == 1 else position / (n - 1)
            there = _in_square(guide, pictures.read(guide["shard"], guide["key"]), crop, params.height)
            # The head takes the guide's place, scale and roll.
            centre, scale, roll = compositing.head_frame(there + np.array([slot * (width - params.height), 0]))
            turn = np.degrees(roll - compositing.head_frame(landmarks)[2])
            matrix = compositing.placement(landmarks, (float(centre[0]), float(centre[1])), scale, float(turn))
        else:
            matrix = _anywhere(params, landmarks, (width * position / n, width * (position + 1) / n), rng)
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
