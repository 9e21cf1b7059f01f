"""How photographs look: perceptual hashes of what was photographed, padded or not when it was ingested."""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import polars as pl

from pipelines.core import products, store
from pipelines.core.sources import read_sources
from pipelines.core.tombstones import hashes, near, unpadded
from umo.quality import perceptual_hash


class Look(NamedTuple):
    """Perceptual hashes of a photograph without padding and with it, as a tight crop gets it."""

    plain: str
    padded: str


def looks(image_ids: Collection[str], pad: float) -> dict[str, Look]:
    """By image_id, of the ingested pictures among these.

    Args:
        pad: of tight crops, as a part of each side.
    """
    sources, pictures = read_sources(), store.Pictures(products.INGESTED, keep=1)
    images = products.images(products.INGESTED)
    rows = images.filter((pl.col("status") == "ok") & pl.col("image_id").is_in(list(image_ids))).sort("image_id")
    found = {}
    for row in rows.iter_rows(named=True):
        picture = pictures.read(row["shard"], row["key"])
        if row["source"] in sources and sources[row["source"]].tight_crop:
            picture = unpadded(picture, pad)
        margins = [round(side * pad) for side in picture.shape[:2]]
        padded = np.pad(picture, [(margin, margin) for margin in margins] + [(0, 0)], mode="edge")
        found[row["image_id"]] = Look(perceptual_hash(picture), perceptual_hash(padded))
    return found


def near_copies(known: Collection[Look]) -> set[str]:
    """image_ids of the ingested pictures that look like one of these, by the hashes that measure took."""
    measured = products.measured_images(products.MEASURED_PHOTOS).filter(pl.col("phash").is_not_null())
    wanted = hashes(value for look in known for value in look)
    return set(measured["image_id"].to_numpy()[near(hashes(measured["phash"]), wanted)])
