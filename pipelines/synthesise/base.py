"""The one interface of all generators, and what they share."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import polars as pl

from pipelines.core import products
from pipelines.core.ledger import SPLITS, Split
from pipelines.core.shards import Shard
from pipelines.core.sources import CONSENT_WEAKEST_FIRST
from pipelines.synthesise.params import Params
from umo.errors import BadInput


@dataclass
class Scenes:
    """What came of a shard: rows of records.IMAGES, LAYOUT and SCENES, pictures by key, rejects by reason."""

    images: list[dict] = field(default_factory=list)
    layout: list[dict] = field(default_factory=list)
    scenes: list[dict] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)
    rejects: dict[str, int] = field(default_factory=dict)

    def add(self, shard: str, data: bytes, size: Sequence[int], **row: object) -> str:
        """Take a picture of height and width `size`; `row` names its source, path, group, licence and consent.

        Returns:
            The image_id.
        """
        image_id = hashlib.sha256(data).hexdigest()
        key = f"{image_id}.png"
        self.pictures[key] = data
        place = {"shard": shard, "key": key, "width": size[1], "height": size[0]}
        self.images.append({"image_id": image_id, **place, **EMPTY, "status": "ok", "error": None, **row})
        return image_id

    def reject(self, shard: str, image_id: str, reason: str, **row: object) -> None:
        """Keep a row of a drawing that was turned away, and count the reason."""
        place = {"shard": shard, "key": None, "width": None, "height": None}
        self.images.append({"image_id": image_id, **place, **EMPTY, "status": "rejected", "error": reason, **row})
        self.rejects[reason] = self.rejects.get(reason, 0) + 1


EMPTY = {"clip": None, "time": None, "label": None}


class Generator(Protocol):
    """Draws scenes shard by shard; picklable, so that other processes can do it."""

    @property
    def knobs(self) -> Params:
        """The parameters that its scenes depend on; how many there are is in the shards."""
        ...

    @property
    def files(self) -> Sequence[Path]:
        """Data files that its scenes depend on."""
        ...

    def shards(self) -> list[Shard]:
        """The pieces of the work.

        Raises:
            BadInput: the people, the model or the parameters cannot make them.
        """
        ...

    def scenes(self, shard: Shard) -> Scenes:
        """The scenes of a shard."""
        ...

    def finish(self) -> None:
        """Clear up once all shards are published."""
        ...


def numbers(params: Params) -> Iterator[tuple[str, Split, range]]:
    """The shards of each split: name, split, numbers of its scenes. Where none are asked for, one without any.

    Whoever has photographs of several people needs no scenes, and the stages after need their tables all the same.
    """
    if not any(params.scenes.get(split, 0) for split in SPLITS):
        yield f"{SPLITS[0]}-0000", SPLITS[0], range(0)
    for split in SPLITS:
        count = params.scenes.get(split, 0)
        for start in range(0, count, params.shard_size):
            yield (
                f"{split}-{start // params.shard_size:04d}",
                split,
                range(start, min(start + params.shard_size, count)),
            )


def photos() -> pl.DataFrame:
    """A row a usable face: whose, where, and in which stored picture."""
    people = products.people().filter("keep").select("person_id", "split")
    faces = products.people_faces().filter("keep").select("face_id", "image_id", "person_id")
    landmarks = products.faces(products.MEASURED_PHOTOS, ["face_id", "box", "landmarks"])
    images = products.images(products.INGESTED).filter(pl.col("status") == "ok")
    wanted = images.select("image_id", "shard", "key", "licence", "consent")
    return faces.join(people, on="person_id").join(landmarks, on="face_id").join(wanted, on="image_id")


def require_people(params: Params, split: Split, n_people: int) -> None:
    """Raises BadInput where a split has fewer people than its largest scenes show."""
    if params.scenes.get(split, 0) and n_people < max(params.people):
        raise BadInput(
            f"{split} has {n_people} people and synthesise.people asks for {max(params.people)}: add photographs "
            "of more people, or ask for fewer"
        )


def terms(chosen: Sequence[Mapping]) -> dict[str, str]:
    """The licences and the weakest consent of the photographs that a scene was made from."""
    return {
        "licence": " + ".join(sorted({face["licence"] or "none stated" for face in chosen})),
        "consent": min((face["consent"] for face in chosen), key=CONSENT_WEAKEST_FIRST.index),
    }


def layout_row(image_id: str, position: int, person_id: str, box: np.ndarray, role: str = "target") -> dict:
    """A row of records.LAYOUT for somebody who was made from no photograph."""
    nobody = {"source_face_id": None, "source_image_id": None, "guide_face_id": None}
    return {"image_id": image_id, "position": position, "person_id": person_id, "role": role, "box": box, **nobody}
