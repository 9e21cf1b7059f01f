"""Pictures -> faces, embeddings, quality, perceptual hash. Measures everything once and decides nothing."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field

from pipelines.core import products, store
from pipelines.core.params import Section
from pipelines.core.shards import Counts, Machine, Shard, tree_digest
from pipelines.core.shards import run as run_shards
from pipelines.core.store import Opened
from umo import faces, quality, records
from umo.faces.base import Face, FaceModel
from umo.images import read_image

AT_ONCE = 16  # pictures
ENOUGH_SIDE = 150  # pixels of a face; the crops that embedders read have 112 to 150 a side


class Params(Section):
    """
    faces: the face model that curates; never the judge.
    min_score: a less certain detection is no face.
    min_side: a smaller face is not measured (pixels).
    max_side: a JPEG whose sides are both twice this or more is decoded smaller, though not below this (pixels). Where
        faces are small there, it is looked at whole after all; what is written is in the stored picture's pixels.
    """

    faces: str
    min_score: float = Field(ge=0, le=1)
    min_side: float = Field(ge=1)
    max_side: int = Field(ge=64)


def run(params: Params, machine: Machine, of: str) -> None:
    """Measure the pictures of datasets/`of`, shard by shard."""
    product = Path("datasets") / of
    shards = [
        Shard(folder.name, {folder.name: tree_digest(folder)}, folder)
        for folder in products.shard_folders(product, products.IMAGES_TABLE)
    ]
    model = faces.load(params.faces)
    device = machine.device if params.faces in faces.ON_DEVICES else "cpu"  # no GPU is taken that would lie idle
    run_shards(
        "measure",
        partial(_measure, params, device),
        shards,
        products.MEASURED / of,
        params=params,
        files=model.files,
        machine=machine.model_copy(update={"device": device}),
    )


def _measure(params: Params, device: str, shard: Shard, folder: Path) -> Counts:
    model = faces.load_on(device, params.faces)
    counts = Counts({"pictures": 0, "faces": 0})
    images: list[dict] = []
    found: list[dict] = []
    assert isinstance(shard.task, Path)
    opened = store.iterate(shard.task, params.max_side, _describe)
    rows = (one for one in opened if one.row["status"] != "duplicate")
    while some := list(islice(rows, AT_ONCE)):
        for one, theirs in zip(some, _faces(model, params, some), strict=True):
            images.append(_image(one, len(theirs)))
            found += theirs
            if reason := _without(one, theirs):
                counts.rejects[reason] = counts.rejects.get(reason, 0) + 1
    counts.made = {"pictures": len(images), "faces": len(found)}
    records.write(folder / products.MEASURED_IMAGES_TABLE, images, records.MEASURED_IMAGES)
    records.write(folder / products.FACES_TABLE, found, records.measured_faces(model.dimension))
    return counts


def _describe(picture: np.ndarray) -> dict[str, Any]:
    return {"phash": quality.perceptual_hash(picture), "sharpness": quality.sharpness(picture)}


def _image(one: Opened, n_faces: int) -> dict:
    described = one.description or {"phash": None, "sharpness": None}
    return {"image_id": one.row["image_id"], **described, "n_faces": n_faces, "error": one.error}


def _without(one: Opened, theirs: list[dict]) -> str | None:
    """Why nothing was found in a picture, where ingest has not said so already."""
    if one.picture is None:
        return "unreadable" if one.row["key"] else None
    return None if theirs else "without a face"


class _Seen(NamedTuple):
    """The faces of a picture.

    Attributes:
        picture: that they are cut from: as it was decoded, or whole.
        faces: in its pixels.
        stored: the same in the stored picture's pixels.
    """

    picture: np.ndarray
    faces: list[Face]
    stored: list[Face]


def _faces(model: FaceModel, params: Params, some: Sequence[Opened]) -> list[list[dict]]:
    """Rows of the faces of each picture; all of them are embedded together."""
    good = [(one, one.picture) for one in some if one.picture is not None]
    detected = model.detect([picture for _, picture in good])
    seen = [_see(model, params, one, picture, there) for (one, picture), there in zip(good, detected, strict=True)]
    vectors = iter(model.embed([its.picture for its in seen], [its.faces for its in seen]))
    rows = iter([_rows(model, one.row["image_id"], its, vectors) for (one, _), its in zip(good, seen, strict=True)])
    return [[] if one.picture is None else next(rows) for one in some]


def _see(model: FaceModel, params: Params, one: Opened, picture: np.ndarray, detected: Sequence[Face]) -> _Seen:
    """Keep the faces that are certain and large; where they are small in a reduced picture, look at the whole one."""
    scale = np.array([one.row["width"], one.row["height"]], np.float32) / np.array(picture.shape[1::-1], np.float32)
    pairs = [(face, _scaled(face, scale)) for face in detected if face.score >= params.min_score]
    pairs = [(face, stored) for face, stored in pairs if stored.side >= params.min_side]
    if scale.max() > 1 and any(face.side < ENOUGH_SIDE for face, _ in pairs):
        whole = read_image(one.data)
        return _see(model, params, one, whole, model.detect([whole])[0])
    return _Seen(picture, [face for face, _ in pairs], [stored for _, stored in pairs])


def _scaled(face: Face, scale: np.ndarray) -> Face:
    return Face((face.box.reshape(2, 2) * scale).ravel(), face.landmarks * scale, face.score)


def _rows(model: FaceModel, image_id: str, seen: _Seen, vectors: Iterator[np.ndarray]) -> list[dict]:
    return [
        {
            "face_id": f"{image_id[:16]}-{rank}",
            "image_id": image_id,
            "box": stored.box,
            "landmarks": stored.landmarks.ravel(),
            "score": stored.score,
            "side_px": stored.side,
            "pose": quality.pose(stored.landmarks),
            "sharpness": quality.sharpness(quality.crop(seen.picture, face.box)),
            "embedding": next(vectors).astype(np.float16),
            "embedder": model.name,
        }
        for rank, (face, stored) in enumerate(zip(seen.faces, seen.stored, strict=True))
    ]
