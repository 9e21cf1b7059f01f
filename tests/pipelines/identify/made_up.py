"""Faces of made-up people, as `ingest` and `measure` would have left them, for `identify`."""

from collections.abc import Callable, Collection, Iterable

import numpy as np
import polars as pl

from pipelines.core import products
from pipelines.core.shards import Machine
from pipelines.identify.stage import Params, run
from umo import records

FRACTIONS = {"train": 0.5, "validation": 0.25, "test": 0.25}
PARAMS = {
    "min_score": 0.5,
    "min_side": 40,
    "min_sharpness": 0,
    "max_duplicate_bits": 0,
    "min_cosine": 0.4,
    "min_cosine_across": 0.8,
    "max_group": 1000,
    "min_face_cosine": 0.5,
    "min_faces": 3,
    "max_person_cosine": 0.6,
    "max_component": 3,
    "fractions": FRACTIONS,
    "seed": 1,
}


def album(number: int) -> str | None:
    """The group of every picture, where nothing else is asked for."""
    return "album"


def write(
    pictures: Iterable[tuple[int, ...]],
    alone: Iterable[int] = range(8),
    alike: Collection[int] = (),
    group: Callable[[int], str | None] = album,
) -> None:
    """Write the two products into the current folder.

    Args:
        pictures: of people by number.
        alone: who is also shown four times alone, before the other pictures.
        alike: people who look alike.
        group: of a picture, by its number.
    """
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(8, 128))
    for person in alike:
        centres[person] = centres[next(iter(alike))] * 0.7 + centres[person] * 0.7
    images, faces, measured = [], [], []
    portraits = [(person,) for person in alone for _ in range(4)]
    for number, shown in enumerate([*portraits, *pictures]):
        one = image_id(number)
        images.append(
            dict.fromkeys(records.IMAGES.names)
            | {"image_id": one, "status": "ok", "source": "s", "licence": "l", "consent": "given"}
            | {"group": group(number)}
        )
        phash = f"{rng.integers(2**63):016x}"
        measured.append({"image_id": one, "phash": phash, "sharpness": 1.0, "n_faces": len(shown), "error": None})
        for rank, person in enumerate(shown):
            vector = centres[person] + 0.3 * rng.normal(size=128)
            faces.append(
                {
                    "face_id": f"{one[:16]}-{rank}",
                    "image_id": one,
                    "box": [0, 0, 60, 60],
                    "landmarks": [0.0] * 10,
                    "score": 0.9,
                    "side_px": 60,
                    "pose": [0, 0, 0],
                    "sharpness": 1.0,
                    "embedding": (vector / np.linalg.norm(vector)).astype(np.float16),
                    "embedder": "made up",
                }
            )
    ingested, photos = products.INGESTED / "0000", products.MEASURED_PHOTOS / "0000"
    for folder in (ingested, photos):
        folder.mkdir(parents=True)
    records.write(ingested / products.IMAGES_TABLE, images, records.IMAGES)
    records.write(photos / products.MEASURED_IMAGES_TABLE, measured, records.MEASURED_IMAGES)
    records.write(photos / products.FACES_TABLE, faces, records.measured_faces(128))


def blur(face_ids: list[str]) -> None:
    """Make faces too poor to join anybody."""
    poor = pl.col("face_id").is_in(face_ids)
    faces = products.faces(products.MEASURED_PHOTOS).with_columns(score=pl.when(poor).then(0.1).otherwise("score"))
    path = products.MEASURED_PHOTOS / "0000" / products.FACES_TABLE
    records.write(path, faces.to_arrow(), records.measured_faces(128))


def identify(**changes: object) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Run the stage; returns people and their faces."""
    run(Params(**(PARAMS | changes)), Machine())
    return products.people(), products.people_faces()


def image_id(number: int) -> str:
    """Of a picture, by its number."""
    return f"{number:064x}"[::-1]


def faces_of(person: int, among: Iterable[int] = range(8)) -> list[str]:
    """face_ids of somebody's four portraits."""
    first = 4 * list(among).index(person)
    return [f"{image_id(number)[:16]}-0" for number in range(first, first + 4)]
