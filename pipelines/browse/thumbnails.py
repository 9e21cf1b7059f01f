"""Thumbnails of faces and pictures as JPEG files, each picture decoded once."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import polars as pl

from pipelines.browse.looks import there
from pipelines.core import products, store
from umo import records
from umo.images import ImageError, encode_jpeg, read_image
from umo.quality import square_crop

FACTOR = 1.5  # a face's square in sides of its box
SIDE, HEIGHT = 128, 240  # of a face's square, of a picture; pixels
QUALITY = 85
BATCH = 64  # pictures that are decoded beside each other: what is in memory
PRODUCTS = ((products.INGESTED, products.MEASURED_PHOTOS), (products.SYNTHESISED, products.MEASURED_SCENES))


def write(faces: set[str], pictures: set[str], folder: Path) -> set[str]:
    """Write FOLDER/ID.jpg of faces by face_id and of pictures by image_id; returns the ids of those that were written.

    What is in no product, or cannot be read, has none.
    """
    folder.mkdir(parents=True)
    written: set[str] = set()
    for product, measured in PRODUCTS:
        if there(product, products.IMAGES_TABLE):
            boxes = _boxes(measured, faces) if there(measured, products.FACES_TABLE) else {}
            written |= _of_product(product, boxes, pictures - written, folder)
    return written


def _boxes(measured: Path, faces: set[str]) -> dict[str, list[tuple[str, list[float]]]]:
    """image_id -> face_id and box (4,) of the wanted ones."""
    table = products.scan(measured, products.FACES_TABLE, records.measured_faces(1))
    rows = table.select("face_id", "image_id", "box").filter(pl.col("face_id").is_in(list(faces))).collect()
    found: dict[str, list[tuple[str, list[float]]]] = {}
    for face_id, image_id, box in rows.iter_rows():
        found.setdefault(image_id, []).append((face_id, box))
    return found


def _of_product(product: Path, boxes: dict, pictures: set[str], folder: Path) -> set[str]:
    columns = ("image_id", "shard", "key", "offset", "size", "sha256")
    table = products.scan(product, products.IMAGES_TABLE, records.IMAGES).select(columns)
    wanted = table.filter(pl.col("key").is_not_null() & pl.col("image_id").is_in([*boxes, *pictures]))
    written: set[str] = set()

    def cut(given: tuple[str, bytes]) -> list[str]:
        image_id, data = given
        try:
            picture = read_image(data)
        except ImageError:
            return []
        made = [
            (face_id, square_crop(picture, np.asarray(box), FACTOR, SIDE)[0])
            for face_id, box in boxes.get(image_id, [])
        ]
        if image_id in pictures:
            scale = min(1.0, HEIGHT / picture.shape[0])
            size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
            made.append((image_id, cv2.resize(picture, size, interpolation=cv2.INTER_AREA)))
        for name, image in made:
            (folder / f"{name}.jpg").write_bytes(encode_jpeg(image, QUALITY))
        return [name for name, _ in made]

    rows = wanted.unique("image_id", keep="first").sort("shard", "offset").collect()
    stored = store.Pictures(product, keep=1)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for batch in rows.iter_slices(BATCH):
            for names in pool.map(cut, _stored(stored, batch)):
                written |= set(names)
    return written


def _stored(pictures: store.Pictures, rows: pl.DataFrame) -> list[tuple[str, bytes]]:
    found = []
    for row in rows.iter_rows(named=True):
        try:
            found.append((row["image_id"], pictures.bytes(row)))
        except ImageError:
            continue
    return found
