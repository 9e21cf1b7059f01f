"""Shards of pictures: `images.parquet` (who and what) beside `images.tar` (the bytes), in a folder a shard."""

import io
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from pipelines.products import IMAGES_TABLE, PICTURES
from umo import records
from umo.errors import BadInput
from umo.images import read_image


def write(folder: Path, rows: Sequence[Mapping[str, object]], pictures: Mapping[str, bytes]) -> None:
    """Write a shard.

    Args:
        rows: records.IMAGES rows.
        pictures: member name -> bytes; the tar keeps their order and nothing of the machine or the day.
    """
    records.write(folder / IMAGES_TABLE, rows, records.IMAGES)
    with tarfile.open(folder / PICTURES, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in pictures.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def places(product: Path, shard: str) -> dict[str, tuple[int, int]]:
    """Where the pictures of a shard lie in its tar: key -> offset and length in bytes.

    Raises:
        BadInput: the tar is missing or damaged.
    """
    path = product / shard / PICTURES
    try:
        with tarfile.open(path) as archive:
            return {member.name: (member.offset_data, member.size) for member in archive}
    except (OSError, tarfile.TarError) as error:
        raise BadInput(f"{path}: not a readable tar ({error}); remove it and run dvc repro") from error


class Pictures:
    """Pictures of a product by shard and key; tars stay open, decoded pictures are kept for a while."""

    def __init__(self, product: Path, keep: int = 256) -> None:
        self._product = product
        self._archives: dict[str, tarfile.TarFile] = {}
        self.read = lru_cache(keep)(self._read)

    def bytes(self, shard: str, key: str) -> bytes:
        """The stored bytes of a picture."""
        if shard not in self._archives:
            self._archives[shard] = tarfile.open(self._product / shard / PICTURES)  # noqa: SIM115
        member = self._archives[shard].extractfile(key)
        assert member is not None
        return member.read()

    def _read(self, shard: str, key: str) -> np.ndarray:
        picture = read_image(self.bytes(shard, key))
        picture.flags.writeable = False
        return picture


def iterate(folder: Path) -> Iterator[tuple[dict, np.ndarray | None]]:
    """Rows of a shard with their pictures, in order; None where the picture cannot be used."""
    pictures = Pictures(folder.parent, keep=1)
    for row in records.read(folder / IMAGES_TABLE, records.IMAGES).to_pylist():
        yield row, pictures.read(folder.name, row["key"]) if row["key"] else None
