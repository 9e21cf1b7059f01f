"""Scenes with several people, composited from the photographs of people of one split; the layout is kept."""

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from pipelines import products, store
from pipelines.ledger import SPLITS, Split
from pipelines.params import Section, load
from pipelines.shards import Counts, Machine, Shard, digest, tree_digest
from pipelines.shards import run as run_shards
from pipelines.sources import CONSENT_WEAKEST_FIRST
from umo import compositing, records
from umo.compositing import Light
from umo.errors import BadInput
from umo.images import encode_png
from umo.prompts import COLOURS, TEXTURES, prompt
from umo.quality import square_crop

Fraction = Annotated[float, Field(gt=0, le=1)]


class Params(Section):
    """
    generator: what draws the scenes.
    scenes: how many, by split.
    shard_size: scenes a shard.
    height, widths: of a scene in pixels; each scene takes the smallest width that fits or a larger one.
    people: numbers of people, in equal shares.
    placement: `slots`: side by side, each head in a square as high as the scene, where another photograph of the
        person has it when exported as a reference (`export.reference_crop`), which is how the embedded base draws;
        `free`: anywhere in its part of the width, at another scale and turned.
    min_scale, max_scale: distance from the eyes to the mouth, as a part of the height; only for `free`.
    max_roll: a head is turned by up to so many degrees; only for `free`.
    max_light: brightness and the slope of the light vary by up to this part, warmth by up to half of it.
    seed: of every draw.
    """

    generator: Literal["composite"]
    scenes: dict[Split, Annotated[int, Field(ge=0)]]
    shard_size: int = Field(ge=1)
    height: int = Field(ge=64, multiple_of=16)
    widths: list[Annotated[int, Field(ge=64, multiple_of=16)]] = Field(min_length=1)
    people: list[Annotated[int, Field(ge=1, le=6)]] = Field(min_length=1)
    placement: Literal["slots", "free"]
    min_scale: Fraction
    max_scale: Fraction
    max_roll: float = Field(ge=0, le=45)
    max_light: float = Field(ge=0, le=0.5)
    seed: int = Field(ge=0)

    @model_validator(mode="after")
    def _scales_fit(self) -> "Params":
        if self.min_scale > self.max_scale:
            raise ValueError("min_scale must not exceed max_scale")
        return self


def run(params: Params, machine: Machine) -> None:
    """Draw the scenes of each split."""
    photos = _photos()
    pictures = [tree_digest(file) for file in sorted(products.INGESTED.glob(f"*/{products.PICTURES}"))]
    crop = load("export").model_dump()["reference_crop"]
    shards = []
    for split in SPLITS:
        rows = photos.filter(pl.col("split") == split).sort("face_id")
        faces = rows.to_dicts()
        n_people = rows["person_id"].n_unique()
        if params.scenes.get(split, 0) and n_people < max(params.people):
            raise BadInput(
                f"{split} has {n_people} people and synthesise.people asks for {max(params.people)}: add photographs "
                "of more people, or ask for fewer"
            )
        inputs = {split: digest(faces), "pictures": digest(pictures), "crop": str(crop)}
        for start in range(0, params.scenes.get(split, 0), params.shard_size):
            numbers = range(start, min(start + params.shard_size, params.scenes[split]))
            name = f"{split}-{start // params.shard_size:04d}"
            shards.append(Shard(name, inputs, (split, list(numbers), faces, crop)))
    run_shards("synthesise", partial(_synthesise, params), shards, products.SYNTHESISED, params=params, machine=machine)


def _photos() -> pl.DataFrame:
    """A row a usable face: whose, where, and in which stored picture."""
    people = products.people().filter("keep").select("person_id", "split")
    faces = products.people_faces().filter("keep").select("face_id", "image_id", "person_id")
    landmarks = products.faces(products.MEASURED_PHOTOS, ["face_id", "box", "landmarks"])
    images = products.images(products.INGESTED).filter(pl.col("status") == "ok")
    wanted = images.select("image_id", "shard", "key", "licence", "consent")
    return faces.join(people, on="person_id").join(landmarks, on="face_id").join(wanted, on="image_id")


def _synthesise(params: Params, shard: Shard, folder: Path) -> Counts:
    pictures = store.Pictures(products.INGESTED)
    images, layout, scenes, encoded = [], [], [], {}
    assert isinstance(shard.task, tuple)
    split, numbers, faces, crop = shard.task
    for number in numbers:
        rng = np.random.default_rng([params.seed, SPLITS.index(split), number])
        chosen, guides = _choose(params, faces, params.people[number % len(params.people)], rng)
        scene, boxes, ground = _draw(params, crop, chosen, guides, pictures, rng)
        data = encode_png(scene)
        image_id = hashlib.sha256(data).hexdigest()
        key = f"{image_id}.png"
        encoded[key] = data
        images.append(_image_row(image_id, shard.name, key, scene, f"{split}/{number}", chosen))
        centres = [float((box[0] + box[2]) / 2 / scene.shape[1]) for box in boxes]
        scenes.append(
            {
                "image_id": image_id,
                "n": len(chosen),
                "split": split,
                "generator": params.generator,
                "background": ground,
                "prompt": prompt(centres, ground),
            }
        )
        layout += [
            {
                "image_id": image_id,
                "position": position,
                "person_id": face["person_id"],
                "role": "target",
                "source_face_id": face["face_id"],
                "source_image_id": face["image_id"],
                "guide_face_id": guide["face_id"] if guide else None,
                "box": box,
            }
            for position, (face, guide, box) in enumerate(zip(chosen, guides, boxes, strict=True))
        ]
    store.write(folder, images, encoded)
    records.write(folder / products.LAYOUT_TABLE, layout, records.LAYOUT)
    records.write(folder / products.SCENES_TABLE, scenes, records.SCENES)
    return Counts({"scenes": len(scenes), "faces": len(layout)})


def _choose(
    params: Params, faces: Sequence[dict], n: int, rng: np.random.Generator
) -> tuple[list[dict], list[dict | None]]:
    """n different people: the photograph of each that is shown, and the one that guides where its head stands."""
    people = sorted({face["person_id"] for face in faces})
    shown: list[dict] = []
    guides: list[dict | None] = []
    for k in rng.choice(len(people), n, replace=False):
        photos = [face for face in faces if face["person_id"] == people[k]]
        order = rng.permutation(len(photos))
        shown.append(photos[order[0]])
        guides.append(photos[order[min(1, len(photos) - 1)]] if params.placement == "slots" else None)
    return shown, guides


def _draw(
    params: Params,
    crop: float,
    chosen: Sequence[dict],
    guides: Sequence[dict | None],
    pictures: store.Pictures,
    rng: np.random.Generator,
) -> tuple[np.ndarray, list[np.ndarray], str]:
    """A scene (H, W, 3) uint8, the box of each face from left to right, the background's name."""
    width = _width(params, len(chosen), rng)
    ground = f"{rng.choice(TEXTURES)} {rng.choice(list(COLOURS))}"
    scene = compositing.background(ground, (params.height, width), rng)
    n, boxes = len(chosen), []
    for position, (face, guide) in enumerate(zip(chosen, guides, strict=True)):
        photo = pictures.read(face["shard"], face["key"])
        landmarks = np.reshape(face["landmarks"], (5, 2))
        if guide:
            # One person stands left, in the middle or right; several fill the width.
            slot = rng.integers(3) / 2 if n == 1 else position / (n - 1)
            there = _in_square(guide, pictures.read(guide["shard"], guide["key"]), crop, params.height)
            matrix = _as_there(landmarks, there + np.array([slot * (width - params.height), 0]))
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


def _as_there(landmarks: np.ndarray, there: np.ndarray) -> np.ndarray:
    """(2, 3) matrix that lays a head onto another's place, scale and roll."""
    centre, scale, roll = compositing.head_frame(there)
    turn = np.degrees(roll - compositing.head_frame(landmarks)[2])
    return compositing.placement(landmarks, (float(centre[0]), float(centre[1])), scale, float(turn))


def _anywhere(params: Params, landmarks: np.ndarray, part: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """(2, 3) matrix that puts a face somewhere in its part of the width."""
    height = params.height
    scale = rng.uniform(params.min_scale, params.max_scale) * height
    x_low, x_high = part[0] + 1.35 * scale, part[1] - 1.35 * scale
    y_low, y_high = 1.9 * scale, height - 1.35 * scale
    centre = (rng.uniform(x_low, max(x_low, x_high)), rng.uniform(min(y_low, y_high), y_high))
    return compositing.placement(landmarks, centre, scale, rng.uniform(-params.max_roll, params.max_roll))


def _image_row(
    image_id: str, shard: str, key: str, scene: np.ndarray, number: str, chosen: Sequence[dict]
) -> dict[str, object]:
    return {
        "image_id": image_id,
        "shard": shard,
        "key": key,
        "width": scene.shape[1],
        "height": scene.shape[0],
        "source": "composite",
        "path": number,
        "group": f"composite/{number}",
        "clip": None,
        "time": None,
        "licence": " + ".join(sorted({face["licence"] or "none stated" for face in chosen})),
        "consent": min((face["consent"] for face in chosen), key=CONSENT_WEAKEST_FIRST.index),
        "label": None,
        "status": "ok",
        "error": None,
    }
