"""Pictures -> faces, embeddings, quality, perceptual hash. Measures everything once and decides nothing."""

from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import Field

from pipelines import products, store
from pipelines.params import Section
from pipelines.shards import Counts, Machine, Shard, tree_digest
from pipelines.shards import run as run_shards
from umo import faces, quality, records
from umo.faces.base import FaceModel


class Params(Section):
    """
    faces: the face model that curates; never the judge.
    min_score: a less certain detection is no face.
    min_side: a smaller face is not measured (pixels).
    """

    faces: str
    min_score: float = Field(ge=0, le=1)
    min_side: float = Field(ge=1)


def run(params: Params, machine: Machine, of: str) -> None:
    """Measure the pictures of datasets/`of`, shard by shard."""
    product = Path("datasets") / of
    shards = [
        Shard(folder.name, {folder.name: tree_digest(folder)}, folder)
        for folder in products.shard_folders(product, products.IMAGES_TABLE)
    ]
    model = faces.load(params.faces)
    run_shards(
        "measure",
        partial(_measure, params),
        shards,
        products.MEASURED / of,
        params=params,
        files=model.files,
        machine=machine,
    )


def _measure(params: Params, shard: Shard, folder: Path) -> Counts:
    model = faces.load(params.faces)
    counts = Counts({"pictures": 0, "faces": 0})
    images, found = [], []
    assert isinstance(shard.task, Path)
    for row, picture in store.iterate(shard.task):
        if row["status"] == "duplicate":
            continue
        measured = [] if picture is None else _faces(model, params, row["image_id"], picture)
        images.append(
            {
                "image_id": row["image_id"],
                "phash": None if picture is None else quality.perceptual_hash(picture),
                "sharpness": None if picture is None else quality.sharpness(picture),
                "n_faces": len(measured),
                "error": row["error"],
            }
        )
        found += measured
        if picture is not None and not measured:
            counts.rejects["without a face"] = counts.rejects.get("without a face", 0) + 1
    counts.made = {"pictures": len(images), "faces": len(found)}
    records.write(folder / products.MEASURED_IMAGES_TABLE, images, records.MEASURED_IMAGES)
    records.write(
        folder / products.FACES_TABLE, _table(found, model.dimension), records.measured_faces(model.dimension)
    )
    return counts


def _faces(model: FaceModel, params: Params, image_id: str, picture: np.ndarray) -> list[dict]:
    detected = [
        face for face in model.detect([picture])[0] if face.score >= params.min_score and face.side >= params.min_side
    ]
    embeddings = model.embed([picture], [detected])
    return [
        {
            "face_id": f"{image_id[:16]}-{rank}",
            "image_id": image_id,
            "box": face.box,
            "landmarks": face.landmarks.ravel(),
            "score": face.score,
            "side_px": face.side,
            "pose": quality.pose(face.landmarks),
            "sharpness": quality.sharpness(quality.crop(picture, face.box)),
            "embedding": embedding.astype(np.float16),
            "embedder": model.name,
        }
        for rank, (face, embedding) in enumerate(zip(detected, embeddings, strict=True))
    ]


def _table(rows: list[dict], dimension: int) -> pa.Table:
    return records.table(rows, records.measured_faces(dimension))
