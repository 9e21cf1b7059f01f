"""Photographs of the people of some splits, as a folder and a CSV: what `umo calibrate` reads. Not a stage."""

import csv
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from pipelines.core import products, store
from pipelines.core.shards import WORK


def write_photos(splits: Sequence[str] = ("train",), out: Path = WORK / "photos") -> Path:
    """Write the photographs that show somebody of `splits` and nobody else; returns the CSV (path, person)."""
    people = products.people().filter(pl.col("keep") & pl.col("split").is_in(splits)).select("person_id")
    images = products.images(products.INGESTED).filter(status="ok").select("image_id", "shard", "key", "offset", "size")
    owners = products.people_faces().filter("keep").join(people, on="person_id")
    alone = products.measured_images(products.MEASURED_PHOTOS).filter(n_faces=1).select("image_id")
    rows = owners.join(images, on="image_id").join(alone, on="image_id").sort("person_id", "image_id")
    pictures = store.Pictures(products.INGESTED)
    out.mkdir(parents=True, exist_ok=True)
    for row in rows.iter_rows(named=True):
        (out / row["key"]).write_bytes(pictures.bytes(row))
    table = out / "photos.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "person"), *rows.select("key", "person_id").iter_rows()])
    return table
