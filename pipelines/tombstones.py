"""datasets/tombstones.csv: pictures of people who asked to be forgotten, known by content and by look."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from umo.quality import perceptual_hash

TOMBSTONES = Path("datasets/tombstones.csv")
MAX_BITS = 4  # of 64: what scaling and JPEG change


class Tombstone(NamedTuple):
    """A picture; `phash` is 16 hexadecimal digits, or "" where it could not be read."""

    image_id: str
    phash: str


class Tombstones:
    """The rows of the file."""

    def __init__(self, rows: Iterable[Tombstone] = ()) -> None:
        self._rows = {row.image_id: row for row in rows}

    @classmethod
    def read(cls, path: Path = TOMBSTONES) -> "Tombstones":
        """An absent file holds none."""
        if not path.exists():
            return cls()
        with path.open(newline="") as file:
            return cls([Tombstone(row["image_id"], row["phash"]) for row in csv.DictReader(file)])

    def rows(self) -> list[Tombstone]:
        """All of them."""
        return list(self._rows.values())

    def reason(self, image_id: str, picture: np.ndarray) -> str | None:
        """Why a picture may not be taken, or None.

        Args:
            picture: (H, W, 3) uint8 RGB as it was photographed, before any padding.
        """
        if image_id in self._rows:
            return f"forgotten: it shows somebody who was to be forgotten ({TOMBSTONES})"
        hashes = [int(row.phash, 16) for row in self._rows.values() if row.phash]
        if hashes:
            found = int(perceptual_hash(picture), 16)
            if any((found ^ known).bit_count() <= MAX_BITS for known in hashes):
                return f"forgotten: it looks like a picture that was to be forgotten ({TOMBSTONES})"
        return None
