"""References: square crops around faces, each cut out of its picture once, however many sets show it.

Cutting goes shard of pictures by shard of pictures, so that a picture is decoded once, and a face is cut again only
when its picture or the faces in it change. The crops lie in Arrow files that are mapped into memory and not read: any
of them is at hand, and none is held.
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
from pipelines.core.shards import Counts, Shard
from umo import records
from umo.errors import BadInput
from umo.images import ImageError, encode_jpeg, read_image
from umo.quality import clear_factor, square_crop

CROPS_TABLE = "crops.arrow"
# The landmarks are five times x, y in the crop's pixels.
CROPS = pa.schema({"face_id": pa.string(), "landmarks": pa.list_(pa.float32()), "jpeg": pa.binary()})
FACE = ["face_id", "image_id", "box", "landmarks"]
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
        wanted: faces, each once: face_id, image_id, product (its folder's name), shard, offset, size, sha256, look.
    """
    parts = wanted.sort("face_id").partition_by("product", "shard", as_dict=True, maintain_order=True)
    return [
        Shard(f"{product}-{shard}", dict(part.select("face_id", "look").iter_rows()), (product, shard, part))
        for (product, shard), part in sorted(parts.items())
    ]


def crops_name() -> pl.Expr:
    """Name of the crops of a shard of pictures."""
    return pl.format("{}-{}", "product", "shard")


def with_looks(references: pl.DataFrame) -> pl.DataFrame:
    """References with `look`: a hash of what decides how their crops look: the picture, and the faces in it.

    Raises BadInput where a reference's face is not among the measured ones.
    """
    products_of = references["product"].unique().sort()
    measured = pl.concat(products.faces(products.MEASURED / of, FACE) for of in products_of)
    measured = measured.join(references.select("image_id").unique(), on="image_id", how="semi")
    lost = references.join(measured, on="face_id", how="anti").sort("face_id").select("face_id", "product", "shard")
    for face, product, shard in lost.head(1).iter_rows():
        path = products.MEASURED / product / shard / products.FACES_TABLE
        raise BadInput(f"{path}: a reference's face {face} is not in it; run dvc repro")
    numbers = [pl.col(name).cast(pl.List(pl.Float32)).list.eval(pl.element().cast(pl.String)) for name in FACE[2:]]
    text = pl.concat_str("face_id", *(column.list.join(",") for column in numbers), separator=" ")
    faces = measured.sort("face_id").group_by("image_id", maintain_order=True).agg(faces=text.str.join("; "))
    look = pl.concat_str("face_id", "sha256", "faces", separator=" ").hash().cast(pl.String)
    return references.join(faces, on="image_id", how="left").with_columns(look=look).drop("faces")


def cut_references(cut: Cut, threads: int, shard: Shard, folder: Path) -> Counts:
    """Cut the wanted faces of a shard's pictures, so that nobody else is in the crops; those that were cut before, and
    would look the same, are taken over.

    Args:
        threads: that decode and encode beside each other; the result is the same with any number.

    Raises:
        BadInput: a picture is damaged.
    """
    assert isinstance(shard.task, tuple)
    product, name, wanted = shard.task
    kept = shard.kept_pieces(shard.inputs)
    rows = {row["image_id"]: row for row in wanted.filter(~pl.col("face_id").is_in(list(kept))).iter_rows(named=True)}
    asked = set(wanted["face_id"]) - kept
    faces = _measured(product, name)
    tar = products.DATASETS / product / name / products.PICTURES
    pictures = store.Pictures(products.DATASETS / product, keep=1)

    def crops_of(picture: tuple[str, bytes]) -> list[dict]:
        image_id, encoded = picture
        try:
            return _crops(read_image(encoded), faces[image_id], asked, cut)
        except ImageError as error:
            fault = f"{rows[image_id]['key']}: {error}"
            raise BadInput(f"{tar}: {fault}; remove {tar.parent} and run dvc repro") from error

    names = sorted(rows)
    with (
        pa.OSFile(str(folder / CROPS_TABLE), "wb") as file,
        pa.ipc.new_file(file, CROPS) as writer,
        ThreadPoolExecutor(threads) as pool,
    ):
        if kept:
            assert shard.before
            earlier = pa.ipc.open_file(pa.memory_map(str(shard.before / CROPS_TABLE))).read_all()
            writer.write_table(earlier.filter(pa.array([face in kept for face in earlier["face_id"].to_pylist()])))
        for start in range(0, len(names), _BATCH):
            try:
                batch = [(image_id, pictures.bytes(rows[image_id])) for image_id in names[start : start + _BATCH]]
            except (OSError, ImageError) as error:
                fault = "not readable, cut short or without one of its pictures"
                raise BadInput(f"{tar}: {fault}; remove {tar.parent} and run dvc repro") from error
            found = [row for crops in pool.map(crops_of, batch) for row in crops]
            writer.write_batch(pa.RecordBatch.from_pylist(found, schema=CROPS))
    return Counts({"references": len(shard.inputs)}, pieces=shard.inputs)


def _measured(product: str, shard: str) -> dict[str, list[dict]]:
    """image_id -> all its faces."""
    path = products.MEASURED / product / shard / products.FACES_TABLE
    faces: dict[str, list[dict]] = {}
    for face in records.read(path, records.measured_faces(1), FACE).to_pylist():
        faces.setdefault(face["image_id"], []).append(face)
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
