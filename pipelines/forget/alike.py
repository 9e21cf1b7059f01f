"""A page of thumbnails of people who may be the same, for somebody to look at before they name all of one's ids.

It shows faces, so that it is a place that forget clears; the next page takes its place.
"""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

import cv2
import numpy as np
import polars as pl

from pipelines.core import products, store
from pipelines.forget.search import FOLDER
from umo.files import write_text
from umo.images import encode_jpeg

PAGE = FOLDER / "alike.html"
SHOWN, FACES, SIDE = 60, 8, 96  # people, faces of each, px
STYLE = "body{font:14px sans-serif}section{margin:1em 0}img{margin-right:4px}code{font-size:1.1em}"


def write_page(people: Sequence[tuple[str, str]], page: Path = PAGE) -> Path:
    """Write some faces of each person: (person_id, what is said of them)."""
    shown = [person_id for person_id, _ in people]
    theirs = products.people_faces().filter(pl.col("person_id").is_in(shown)).sort("cosine", descending=True)
    theirs = theirs.group_by("person_id", maintain_order=True).head(FACES).select("face_id", "person_id")
    boxes = products.faces(products.MEASURED_PHOTOS, ["face_id", "image_id", "box"]).join(theirs, on="face_id")
    places = products.images(products.INGESTED).select("image_id", "shard", "offset", "size", "sha256")
    pictures = store.Pictures(products.INGESTED, keep=1)
    thumbnails: dict[str, list[str]] = {}
    for row in boxes.join(places, on="image_id").sort("shard", "offset", "face_id").iter_rows(named=True):
        data = base64.b64encode(encode_jpeg(_face(pictures.read(row), row["box"]), 80)).decode()
        thumbnails.setdefault(row["person_id"], []).append(f'<img alt="" src="data:image/jpeg;base64,{data}">')
    sections = [
        f"<section><p><code>{escape(name)}</code> {escape(said)}</p>{''.join(thumbnails.get(name, []))}</section>"
        for name, said in people
    ]
    page.parent.mkdir(parents=True, exist_ok=True)
    head = f'<!doctype html><meta charset="utf-8"><title>Who is alike</title><style>{STYLE}</style>'
    write_text(page, "\n".join([head, *sections]))
    return page


def _face(picture: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """(SIDE, SIDE, 3) of a picture (H, W, 3): the square around a face's box x0, y0, x1, y1, as far as it is there."""
    x0, y0, x1, y1 = box
    half = 0.7 * max(x1 - x0, y1 - y0)
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    bounds = np.round([y - half, y + half, x - half, x + half]).astype(int).clip(0)
    cut = picture[bounds[0] : max(bounds[1], bounds[0] + 1), bounds[2] : max(bounds[3], bounds[2] + 1)]
    return cv2.resize(cut, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
