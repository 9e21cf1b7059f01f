"""References: square crops around faces, each cut out of its picture once, however many sets show it.

Cutting goes shard of pictures by shard of pictures, so that a picture is decoded once, and the crops of a shard are cut
again only when its pictures, its faces or the wish for them change. The crops lie in Arrow files that are mapped into
memory and not read: any of them is at hand, and none is held.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from pipelines.core import products, store
from pipelines.core.params import Section
from pipelines.core.shards import Counts, Shard, digest, file_digest
from umo import records
from umo.errors import BadInput
from umo.images import ImageError, encode_jpeg, read_image
from umo.quality import clear_factor, square_crop

CROPS_TABLE = "crops.arrow"
# The landmarks are five times x, y in the crop's pixels.
CROPS = pa.schema({"face_id": pa.string(), "landmarks": pa.list_(pa.float32()), "jpeg": pa.binary()})
_BATCH = 64  # pictures that are cut together: what a worker holds
_MAPPED = 256  # files
_TAKEN = 1024  # crops: those that many sets show are taken out of their file once


class Cut(Section):
    """
    factor: side of the square in sides of the face's box; smaller where it would meet another face.
    max_side: a larger crop is scaled down to it (pixels).
    """

    factor: float
    max_side: int


def crop_shards(wanted: pl.DataFrame) -> list[Shard]:
    """The work of cutting, a shard for each shard of pictures.

    Args:
        wanted: faces, each once: face_id, image_id, product (its folder's name), shard, key.
    """
    parts = wanted.sort("face_id").partition_by("product", "shard", as_dict=True, maintain_order=True)
    shards = []
    for (product, shard), part in sorted(parts.items()):
        inputs = {
            "pictures": file_digest(products.DATASETS / product / shard / products.PICTURES),
            "faces": file_digest(products.MEASURED / product / shard / products.FACES_TABLE),
            "wanted": digest(part["face_id"].to_list()),
        }
        shards.append(Shard(crops_name(product, shard), inputs, (product, shard, part)))
    return shards


def crops_name(product: str, shard: str) -> str:
    """Name of the crops of a shard of pictures."""
    return f"{product}-{shard}"


def cut_references(cut: Cut, threads: int, shard: Shard, folder: Path) -> Counts:
    """Cut the wanted faces of a shard's pictures, so that nobody else is in the crops.

    Args:
        threads: that decode and encode beside each other; the result is the same with any number.

    Raises:
        BadInput: a wanted face is not among the measured ones, or its picture is damaged.
    """
    assert isinstance(shard.task, tuple)
    product, name, wanted = shard.task
    keys, asked = dict(wanted.select("image_id", "key").iter_rows()), set(wanted["face_id"])
    faces = _measured(product, name, asked)
    tar = products.DATASETS / product / name / products.PICTURES
    pictures = store.Pictures(products.DATASETS / product, keep=1)

    def crops_of(picture: tuple[str, bytes]) -> list[dict]:
        image_id, encoded = picture
        try:
            return _crops(read_image(encoded), faces[image_id], asked, cut)
        except ImageError as error:
            raise BadInput(f"{tar}: {keys[image_id]}: {error}; remove {tar.parent} and run dvc repro") from error

    names = sorted(keys)
    with (
        pa.OSFile(str(folder / CROPS_TABLE), "wb") as file,
        pa.ipc.new_file(file, CROPS) as writer,
        ThreadPoolExecutor(threads) as pool,
    ):
        for start in range(0, len(names), _BATCH):
            try:
                batch = [(image_id, pictures.bytes(name, keys[image_id])) for image_id in names[start : start + _BATCH]]
            except (OSError, ImageError) as error:
                fault = "not readable, cut short or without one of its pictures"
                raise BadInput(f"{tar}: {fault}; remove {tar.parent} and run dvc repro") from error
            rows = [row for crops in pool.map(crops_of, batch) for row in crops]
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=CROPS))
    return Counts({"references": len(asked)})


def _measured(product: str, shard: str, asked: set[str]) -> dict[str, list[dict]]:
    """image_id -> all its faces."""
    path = products.MEASURED / product / shard / products.FACES_TABLE
    columns = ["face_id", "image_id", "box", "landmarks"]
    faces: dict[str, list[dict]] = {}
    for face in records.read(path, records.measured_faces(1), columns).to_pylist():
        faces.setdefault(face["image_id"], []).append(face)
    lost = asked - {face["face_id"] for group in faces.values() for face in group}
    if lost:
        raise BadInput(f"{path}: a reference's face {min(lost)} is not in it; run dvc repro")
    return faces


def _crops(picture: np.ndarray, faces: Sequence[Mapping], asked: set[str], cut: Cut) -> list[dict]:
    """Rows of CROPS of the asked ones among a picture's faces."""
    boxes = [np.asarray(face["box"]) for face in faces]
    rows = []
    for face, box in zip(faces, boxes, strict=True):
        if face["face_id"] in asked:
            crop, matrix = square_crop(picture, box, min(cut.factor, clear_factor(box, boxes)), cut.max_side)
            landmarks = np.reshape(face["landmarks"], (5, 2)) @ matrix[:, :2].T + matrix[:, 2]
            flat = landmarks.ravel().astype(np.float32).tolist()
            rows.append({"face_id": face["face_id"], "landmarks": flat, "jpeg": encode_jpeg(crop)})
    return rows


class References:
    """Crops that were cut, by face.

    Args:
        folder: where `crop_shards` were published.
        places: face_id -> name of its crops.
    """

    def __init__(self, folder: Path, places: Mapping[str, str]) -> None:
        self._folder, self._places = folder, places
        self._mapped = lru_cache(_MAPPED)(self._map)
        self.get = lru_cache(_TAKEN)(self._get)

    def _get(self, face_id: str) -> tuple[dict, list[float]]:
        """The crop as an Image of `datasets` ({"bytes", "path"}), and its five landmarks (10,) in its pixels."""
        table, rows = self._mapped(self._places[face_id])
        row = rows[face_id]
        return {"bytes": table["jpeg"][row].as_py(), "path": f"{face_id}.jpg"}, table["landmarks"][row].as_py()

    def _map(self, name: str) -> tuple[pa.Table, dict[str, int]]:
        table = pa.ipc.open_file(pa.memory_map(str(self._folder / name / CROPS_TABLE))).read_all()
        return table, {face_id: row for row, face_id in enumerate(table["face_id"].to_pylist())}
