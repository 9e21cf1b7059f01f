"""Pictures -> faces, embeddings, quality, perceptual hash. Measures everything once and decides nothing."""

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
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
    folders = products.shard_folders(products.DATASETS / of, products.IMAGES_TABLE)
    shards = [Shard(folder.name, {folder.name: tree_digest(folder)}, folder) for folder in folders]
    files = faces.load(params.faces).files
    work = partial(_measure, params, machine.device)
    run_shards("measure", work, shards, products.MEASURED / of, params=params, files=files, machine=machine)


def _measure(params: Params, device: str, shard: Shard, folder: Path) -> Counts:
    """Measure the pictures of a shard, but for those that it held before with the same bytes."""
    model = faces.load_named(params.faces, device)
    images: list[dict] = []
    found: list[dict] = []
    assert isinstance(shard.task, Path)
    columns = ["image_id", "sha256", "status"]
    listed = records.read(shard.task / products.IMAGES_TABLE, records.IMAGES, columns).to_pylist()
    pieces = {row["image_id"]: row["sha256"] for row in listed if row["sha256"]}
    kept = shard.kept_pieces(pieces)
    opened = store.iterate(shard.task, params.max_side, _describe, without=kept)
    rows = (one for one in opened if one.row["status"] != "duplicate")
    while some := list(islice(rows, AT_ONCE)):
        for one, theirs in zip(some, _faces(model, params, some), strict=True):
            described = one.description or {"phash": None, "sharpness": None}
            its = {"image_id": one.row["image_id"], "n_faces": len(theirs), "error": one.error}
            images.append(its | described)
            found += theirs
    measured, vectors = images, records.table(found, records.measured_faces(model.dimension))
    if kept and shard.before:
        measured = _with_kept(shard.before, listed, kept, images)
        vectors = _faces_with_kept(shard.before, listed, kept, vectors)
    records.write(folder / products.MEASURED_IMAGES_TABLE, measured, records.MEASURED_IMAGES)
    records.write(folder / products.FACES_TABLE, vectors, vectors.schema)
    # What could not be read may be readable when it is looked at again.
    good = {row["image_id"]: pieces[row["image_id"]] for row in measured if not row["error"]}
    rejects = {
        # without a key ingest has said so already
        "unreadable": len(pieces) - len(good),
        "without a face": sum(not row["error"] and not row["n_faces"] for row in measured),
    }
    made = {"pictures": len(measured), "faces": len(vectors)}
    return Counts(made, {reason: count for reason, count in rejects.items() if count}, good)


def _with_kept(before: Path, listed: Sequence[dict], kept: Collection[str], new: Sequence[dict]) -> list[dict]:
    """New rows of records.MEASURED_IMAGES and the earlier ones of kept pictures, in the order of the listing.

    Args:
        listed: rows of the shard; another of the same image_id, without a stored picture, is not the picture that is
            kept.
    """
    earlier = records.read(before / products.MEASURED_IMAGES_TABLE, records.MEASURED_IMAGES).to_pylist()
    known, rest = {row["image_id"]: row for row in earlier if not row["error"]}, iter(new)
    return [
        known[row["image_id"]] if row["sha256"] and row["image_id"] in kept else next(rest)
        for row in listed
        if row["status"] != "duplicate"
    ]


def _faces_with_kept(before: Path, listed: Sequence[dict], kept: Collection[str], new: pa.Table) -> pa.Table:
    """`_with_kept` of records.measured_faces."""
    earlier = records.read(before / products.FACES_TABLE, new.schema)
    mask = [image_id in kept for image_id in earlier["image_id"].to_pylist()]
    both = pa.concat_tables([earlier.filter(pa.array(mask, pa.bool_())).cast(new.schema), new])
    ranks = {row["image_id"]: rank for rank, row in enumerate(listed) if row["sha256"]}
    return both.take(np.argsort([ranks[image_id] for image_id in both["image_id"].to_pylist()], kind="stable"))


def _describe(picture: np.ndarray) -> dict[str, Any]:
    return {"phash": quality.perceptual_hash(picture), "sharpness": quality.sharpness(picture)}


class _Seen(NamedTuple):
    picture: np.ndarray  # as it was decoded, or whole
    faces: list[Face]  # in its pixels
    stored: list[Face]  # the same in the stored picture's pixels


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

    def scaled(face: Face) -> Face:
        return Face((face.box.reshape(2, 2) * scale).ravel(), face.landmarks * scale, face.score)

    pairs = [(face, scaled(face)) for face in detected if face.score >= params.min_score]
    pairs = [(face, stored) for face, stored in pairs if stored.side >= params.min_side]
    if scale.max() > 1 and any(face.side < ENOUGH_SIDE for face, _ in pairs):
        whole = read_image(one.data)
        return _see(model, params, one, whole, model.detect([whole])[0])
    return _Seen(picture, [face for face, _ in pairs], [stored for _, stored in pairs])


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
