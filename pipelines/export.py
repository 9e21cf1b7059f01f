"""Reference sets -> a data set that others can take away: Parquet that `datasets` opens, card, checksums, sheets."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from pipelines import products, store
from pipelines.card import data_set_card
from pipelines.ledger import SPLITS
from pipelines.params import Section
from pipelines.shards import Counts, Machine, Shard, tree_digest
from pipelines.shards import run as run_shards
from pipelines.sheets import contact_sheet
from pipelines.sources import SOURCES, Source, read_sources
from umo.images import encode_jpeg, read_image
from umo.quality import clear_factor, square_crop

INPUTS = (products.CURATED, products.CAPTIONED, products.MEASURED_PHOTOS, products.INGESTED, products.SYNTHESISED)
SHEET_ROWS = 6


class Params(Section):
    """
    reference_crop: side of the square cut around a reference's face, in sides of its box.
    reference_side: a larger crop is scaled down to it (pixels).
    rows_per_file: sets a Parquet file.
    """

    reference_crop: float = Field(ge=1, le=10)
    reference_side: int = Field(ge=64)
    rows_per_file: int = Field(ge=1)


def run(params: Params, machine: Machine) -> None:
    """Write the kept sets of datasets/curated with their pictures."""
    inputs = {str(product): tree_digest(product) for product in (*INPUTS, SOURCES)}
    run_shards(
        "export", partial(_export, params), [Shard("", inputs)], products.EXPORTED, params=params, machine=machine
    )


def _export(params: Params, shard: Shard, folder: Path) -> Counts:
    sets = products.captioned_sets().sort("set_id")
    cutter = _Cutter(params)
    schema = _schema()
    counts: dict[str, int] = {}
    for split in SPLITS:
        rows = list(_rows(sets.filter(pl.col("split") == split), cutter))
        counts[split] = len(rows)
        for start in range(0, len(rows), params.rows_per_file):
            part = pa.Table.from_pylist(rows[start : start + params.rows_per_file], schema=schema)
            name = f"{split}-{start // params.rows_per_file:05d}.parquet"
            # Small row groups: a reader that streams holds a few pictures, not a file of them.
            pq.write_table(part, folder / name, row_group_size=50, compression="zstd")
        if rows:
            _write_sheet(rows[:SHEET_ROWS], folder / f"contact_sheet_{split}.jpg")
    funnel = json.loads((products.CURATED / products.FUNNEL).read_text())
    (folder / "README.md").write_text(data_set_card(sets, funnel, _present_sources(sets)))
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(folder.glob("*.*"))]
    (folder / "SHA256SUMS").write_text("".join(sums))
    return Counts(counts)


def _present_sources(sets: pl.DataFrame) -> dict[str, Source]:
    """The sources of the photographs that the sets show or were made from."""
    references = sets.select(pl.col("pool").explode().explode().struct.field("image_id"))
    shown = pl.concat([references, sets.select(image_id=pl.col("target_sources").explode())]).unique()
    present = set(products.images(products.INGESTED).join(shown, on="image_id")["source"])
    return {name: source for name, source in read_sources().items() if name in present}


def _schema() -> pa.Schema:
    """The columns, with the metadata from which `datasets` knows which of them are pictures."""
    from datasets import Features, Image, List, Value

    boxes, numbers = List(List(Value("float32"))), List(Value("float32"))
    features = Features(
        {
            "set_id": Value("string"),
            "n": Value("int32"),
            "prompt": Value("string"),
            "background": Value("string"),
            "target": Image(),
            "references": List(Image()),  # one a person, from left to right in the target
            "pool": List(List(Image())),  # further photographs of each person
            "person_ids": List(Value("string")),
            "target_boxes": boxes,
            "target_landmarks": boxes,
            "reference_landmarks": boxes,  # in the reference's pixels
            "pool_landmarks": List(boxes),
            "reference_cosine": numbers,
            "split": Value("string"),
            "source": Value("string"),
            "licence": Value("string"),
            "consent": Value("string"),
        }
    )
    return features.arrow_schema


class _Cutter:
    """Cuts references out of their photographs, so that nobody else is in them; each is cut once."""

    def __init__(self, params: Params) -> None:
        self.params = params
        self.pictures = store.Pictures(products.INGESTED)
        self.scenes = store.Pictures(products.SYNTHESISED)
        self.place = {
            row["image_id"]: (row["shard"], row["key"])
            for product in (products.INGESTED, products.SYNTHESISED)
            for row in products.images(product).to_dicts()
            if row["status"] == "ok"
        }
        faces = products.faces(products.MEASURED_PHOTOS, ["face_id", "image_id", "box", "landmarks"]).to_dicts()
        self.faces = {face["face_id"]: face for face in faces}
        self.boxes: dict[str, list[np.ndarray]] = {}
        for face in faces:
            self.boxes.setdefault(face["image_id"], []).append(np.asarray(face["box"]))
        self.cut: dict[str, tuple[dict, list[float]]] = {}

    def target(self, row: dict) -> dict:
        """The target's stored bytes, as an Image of `datasets`."""
        pictures = self.pictures if row["target_kind"] == "ingested" else self.scenes
        shard, key = self.place[row["target_image_id"]]
        return {"bytes": pictures.bytes(shard, key), "path": key}

    def reference(self, entry: dict) -> tuple[dict, list[float]]:
        """A reference's crop as an Image of `datasets`, and its landmarks (10,) in the crop's pixels."""
        face_id = entry["face_id"]
        if face_id not in self.cut:
            face = self.faces[face_id]
            picture = self.pictures.read(*self.place[entry["image_id"]])
            box = np.asarray(face["box"])
            factor = min(self.params.reference_crop, clear_factor(box, self.boxes[face["image_id"]]))
            crop, matrix = square_crop(picture, box, factor, self.params.reference_side)
            landmarks = np.reshape(face["landmarks"], (5, 2)) @ matrix[:, :2].T + matrix[:, 2]
            image = {"bytes": encode_jpeg(crop), "path": f"{face_id}.jpg"}
            self.cut[face_id] = (image, landmarks.ravel().astype(np.float32).tolist())
        return self.cut[face_id]


def _rows(sets: pl.DataFrame, cutter: _Cutter) -> Iterator[dict]:
    same = "set_id n prompt background person_ids target_boxes target_landmarks reference_cosine split source licence"
    for row in sets.to_dicts():
        pools = [[cutter.reference(entry) for entry in pool] for pool in row["pool"]]
        yield {
            **{name: row[name] for name in [*same.split(), "consent"]},
            "target": cutter.target(row),
            "references": [pool[0][0] for pool in pools],
            "reference_landmarks": [pool[0][1] for pool in pools],
            "pool": [[image for image, _ in pool[1:]] for pool in pools],
            "pool_landmarks": [[landmarks for _, landmarks in pool[1:]] for pool in pools],
        }


def _write_sheet(rows: Sequence[dict], path: Path) -> None:
    lines = []
    for row in rows:
        references = [read_image(image["bytes"]) for image in row["references"]]
        lines.append([*references, read_image(row["target"]["bytes"])])
    path.write_bytes(encode_jpeg(contact_sheet(lines), 90))
