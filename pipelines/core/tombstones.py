"""datasets/tombstones.csv: pictures that were to be forgotten, by hashes alone, so that they do not come back.

In git and only ever appended to. `ingest` refuses an exact copy wherever it turns up, for the tombstone is part of its
shard's key; a near copy, known once it is decoded, when its shard is next done. Shards that were done before are
removed by `forget` itself.
"""

import base64
import csv
import io
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from umo.errors import BadInput
from umo.files import write_text
from umo.quality import perceptual_hash
from umo.texts import read_text

TOMBSTONES = Path("datasets/tombstones.csv")
COLUMNS = ("image_id", "phash", "embedder", "embedding")
FORGOTTEN = "forgotten"
# Of 64. On the ORL photographs all copies at JPEG quality 90 lie within it, 93 % at quality 50, 99.8 % at three times
# the size and 68 % at half of it, and no two photographs of different people do (there the least is 6).
MAX_PHASH_BITS = 4


class Tombstone(NamedTuple):
    """A row: one picture.

    Attributes:
        image_id: sha256 of the source file's bytes.
        phash: of the picture as it was photographed, without the padding of tight crops: 16 hexadecimal digits; ""
            where it could not be read.
        embedder, embedding: the face model, and the centre of the person's faces as base64 of float16, from which
            identify knows their other photographs; "" but where `forget.keep_embedding` says so.
    """

    image_id: str
    phash: str
    embedder: str = ""
    embedding: str = ""


class Tombstones:
    """The rows in the order they were written, by picture."""

    def __init__(self, rows: Iterable[Tombstone] = ()) -> None:
        self._rows = {row.image_id: row for row in rows}

    @classmethod
    def read(cls, path: Path = TOMBSTONES) -> "Tombstones":
        """The tombstones of a file, none where there is no file; raises BadInput where a row does not fit."""
        if not path.exists():
            return cls()
        try:
            lines = list(csv.reader(io.StringIO(read_text(path))))
        except csv.Error as error:
            raise BadInput(f"{path}: not CSV ({error}); restore it from git") from error
        if not lines or tuple(lines[0]) != COLUMNS:
            raise BadInput(f"{path}: first line must be {','.join(COLUMNS)}; restore it from git")
        for number, line in enumerate(lines[1:], 2):
            if not _fits(line):
                raise BadInput(f"{path}:{number}: not a row of {','.join(COLUMNS)}; restore it from git")
        return cls(Tombstone(*line) for line in lines[1:])

    def rows(self) -> list[Tombstone]:
        """All rows, oldest first."""
        return list(self._rows.values())

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._rows

    def reason(self, image_id: str, picture: np.ndarray) -> str | None:
        """Why a picture (H, W, 3) uint8, unpadded, may not be taken, for its bytes or its looks; None for others."""
        if image_id in self or (len(self._hashes) and near(self._hashes, hashes([perceptual_hash(picture)])).any()):
            return f"{FORGOTTEN}: it shows somebody who was to be forgotten ({TOMBSTONES}): delete the file"
        return None

    @cached_property
    def _hashes(self) -> np.ndarray:
        """(n,) uint64 perceptual hashes, for the many pictures that are held against them."""
        return hashes(row.phash for row in self.rows() if row.phash)

    def centres(self, embedder: str) -> np.ndarray:
        """(n, d) float32 unit vectors of the people kept by an embedding of this face model; (0, 0) for none."""
        found = [row.embedding for row in self.rows() if row.embedder == embedder and row.embedding]
        vectors = [np.frombuffer(base64.b64decode(text), np.float16).astype(np.float32) for text in found]
        return np.stack([vector / np.linalg.norm(vector) for vector in vectors]) if vectors else np.zeros((0, 0))

    def extend(self, rows: Iterable[Tombstone]) -> None:
        """Add pictures that are not there yet."""
        for row in rows:
            self._rows.setdefault(row.image_id, row)
        self.__dict__.pop("_hashes", None)

    def write(self, path: Path = TOMBSTONES) -> None:
        """Replace the file whole."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([COLUMNS, *self.rows()])
        write_text(path, text.getvalue())


def encoded(centre: np.ndarray) -> str:
    """A vector (d,) as a row holds it."""
    return base64.b64encode(centre.astype(np.float16).tobytes()).decode()


def hashes(texts: Iterable[str]) -> np.ndarray:
    """Perceptual hashes of 16 hexadecimal digits as (n,) uint64."""
    return np.array([int(text, 16) for text in texts], np.uint64)


def near(found: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(n,) bool: which of the hashes (n,) differ from one of the known (m,) in at most MAX_PHASH_BITS bits."""
    close = np.zeros(len(found), bool)
    for value in known:
        close |= np.bitwise_count(found ^ value) <= MAX_PHASH_BITS
    return close


def unpadded(picture: np.ndarray, pad: float) -> np.ndarray:
    """A stored tight crop (H, W, 3) without its padding, `pad` of the photographed side on each end."""
    y, x = (round(round(side / (1 + 2 * pad)) * pad) for side in picture.shape[:2])
    return picture[y : picture.shape[0] - y, x : picture.shape[1] - x]


def _fits(line: list[str]) -> bool:
    if len(line) != len(COLUMNS) or not re.fullmatch("[0-9a-f]{64},([0-9a-f]{16})?", ",".join(line[:2])):
        return False
    try:
        centre = np.frombuffer(base64.b64decode(line[3], validate=True), np.float16)
    except ValueError:
        return False
    return bool(line[2]) == bool(centre.size) and bool(np.isfinite(centre).all())
