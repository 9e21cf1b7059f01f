"""What a composited scene costs where there are a hundred times as many faces to choose from.

All shards hold the same stored photographs under other names (one tar, linked), so that both sides read from memory:
what is measured is finding, choosing, reading and drawing. The whole stage counts, serially.
"""

import os
import shutil
import time
from contextlib import chdir
from pathlib import Path

import numpy as np
import polars as pl
import yaml

from bench.growth import knobs
from bench.photos import portraits
from bench.result import Result
from pipelines.core import products, store
from pipelines.core.params import PARAMS
from pipelines.core.shards import ROOT, WORK, Machine
from pipelines.synthesise import stage as synthesise
from umo import faces, records
from umo.images import encode_jpeg

NAME = "composite-growth"
BAR = 1.5
A_PERSON, A_SHARD, SCENES = 10, 1000, 600
FEW, MANY = 4_000, 400_000


def run() -> Result:
    """Seconds of 600 scenes among 400,000 faces / among 4,000."""
    seconds = {count: seconds_of(count) for count in (FEW, MANY)}
    return Result(
        name=NAME,
        value=seconds[MANY] / seconds[FEW],
        unit=f"seconds of a scene among {MANY:,} faces / among {FEW:,}",
        against=f"{FEW:,} faces of {FEW // A_PERSON} people",
        bar=BAR,
        lower_is_better=True,
        details={
            "scenes": SCENES,
            "milliseconds_a_scene": {f"{n:,}": round(1000 * value / SCENES, 2) for n, value in seconds.items()},
        },
    )


def seconds_of(count: int) -> float:
    """Of `synthesise` in a folder with so many faces; the better of two runs, after the first has warmed all up."""
    folder = WORK.resolve() / "bench" / f"{NAME}-{count}"
    shutil.rmtree(folder, ignore_errors=True)
    write(folder, count)
    params = yaml.safe_load((ROOT / PARAMS).read_text())
    params["synthesise"]["scenes"] = {"train": SCENES, "validation": 0, "test": 0}
    (folder / PARAMS).write_text(yaml.safe_dump(params))
    found = []
    with chdir(folder):
        for _ in range(3):
            shutil.rmtree(WORK, ignore_errors=True)
            started = time.perf_counter()
            synthesise.run(knobs("synthesise"), Machine())
            found.append(time.perf_counter() - started)
    return min(found[1:])


def write(folder: Path, count: int) -> None:
    """Photographs with a face each, ten a person, a thousand a shard."""
    pictures, boxes, landmarks, vectors = _measured()
    rows = [{"key": f"{k}.jpg"} | dict.fromkeys(set(records.IMAGES.names) - {"key"}) for k in range(len(pictures))]
    stock = folder / "stock"
    stock.mkdir(parents=True)
    store.write(stock, rows, {f"{k}.jpg": data for k, data in enumerate(pictures)})
    stored = pl.read_parquet(stock / products.IMAGES_TABLE).select("key", "offset", "size", "sha256")
    rng = np.random.default_rng(7)
    owners = []
    for start in range(0, count, A_SHARD):
        shard, number = f"{start // A_SHARD:04d}", np.arange(start, start + A_SHARD)
        which = number % len(pictures)
        digits = rng.bytes(32 * A_SHARD)
        ids = [digits[k : k + 32].hex() for k in range(0, len(digits), 32)]
        named = {"image_id": ids, "shard": shard, "source": "made-up", "path": ids, "licence": "CC0-1.0"}
        terms = {"consent": "given", "status": "ok", "width": 230, "height": 280}
        images = pl.DataFrame(named | terms).with_columns(stored[which])
        face = {"face_id": [f"{name[:16]}-0" for name in ids], "image_id": ids, "score": 0.9, "side_px": 90.0}
        found = {"box": boxes[which], "landmarks": landmarks[which], "pose": np.zeros((A_SHARD, 3), np.float32)}
        measured = pl.DataFrame(face | found | {"sharpness": 0.1, "embedder": faces.load("opencv_zoo").name})
        schema = records.measured_faces(vectors.shape[1])
        embedded = measured.with_columns(embedding=pl.Series(vectors[which]))
        _write(folder / products.INGESTED / shard / products.IMAGES_TABLE, images, records.IMAGES)
        _write(folder / products.MEASURED_PHOTOS / shard / products.FACES_TABLE, embedded, schema)
        os.link(stock / products.PICTURES, folder / products.INGESTED / shard / products.PICTURES)
        owners.append(measured.select("face_id", "image_id", person_id=pl.Series(number // A_PERSON).cast(pl.String)))
    owned = pl.concat(owners).with_columns(keep=pl.lit(True))
    people = owned.group_by("person_id", maintain_order=True).agg(n=pl.len().cast(pl.Int32))
    people = people.with_columns(split=pl.lit("train"), keep=pl.lit(True), component="person_id")
    _write(folder / products.PEOPLE / products.PEOPLE_TABLE, people, records.PEOPLE)
    _write(folder / products.PEOPLE / products.PEOPLE_FACES_TABLE, owned, records.PEOPLE_FACES)


def _measured() -> tuple[list[bytes], np.ndarray, np.ndarray, np.ndarray]:
    """Encoded portraits in which a face is found, with its box, landmarks and embedding."""
    model = faces.load("opencv_zoo")
    heads = [np.ascontiguousarray(head[..., ::-1]) for head in portraits()]
    found = [(head, one[0]) for head, one in zip(heads, model.detect(heads), strict=True) if one]
    vectors = model.embed([head for head, _ in found], [[face] for _, face in found])
    boxes = np.array([face.box for _, face in found], np.float32)
    landmarks = np.array([face.landmarks.ravel() for _, face in found], np.float32)
    return [encode_jpeg(head) for head, _ in found], boxes, landmarks, vectors.astype(np.float16)


def _write(path: Path, rows: pl.DataFrame, schema: records.pa.Schema) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    missing = [pl.lit(None).alias(name) for name in schema.names if name not in rows.columns]
    records.write(path, rows.with_columns(missing).select(schema.names).to_arrow().cast(schema), schema)
