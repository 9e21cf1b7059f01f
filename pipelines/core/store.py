"""Shards of pictures: `images.parquet` (who, what and where) beside `images.tar` (the bytes), in a folder a shard.

A row says where in the tar its picture lies, so that any picture is read by itself: no tar is ever listed.
"""

import hashlib
import io
import os
import tarfile
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from pipelines.core.products import IMAGES_TABLE, PICTURES
from umo import records
from umo.images import ImageError, read_image

_OPEN_TARS = 64
PLACE = ("shard", "key", "offset", "size")  # of a stored picture; what it looks like is known by its sha256
_READ_BY = ("shard", "offset", "size", "sha256")


def write(folder: Path, rows: Sequence[Mapping[str, object]], pictures: Mapping[str, bytes]) -> None:
    """Write a shard: records.IMAGES rows, and pictures by member name, in whose order they lie in the tar."""
    with Writer(folder) as writer:
        for name, data in pictures.items():
            writer.add(name, data)
        writer.rows += rows


class Writer:
    """`write` for a shard that is larger than memory: pictures go to the tar one by one, `rows` are written last.

    Where a picture lies, and the checksum of its bytes, are filled in here.
    """

    def __init__(self, folder: Path) -> None:
        self.rows: list[Mapping[str, object]] = []
        self._folder = folder
        self._stored: dict[object, dict[str, object]] = {}
        self._archive = tarfile.open(folder / PICTURES, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115

    def add(self, name: str, data: bytes) -> None:
        """Append a picture."""
        member = tarfile.TarInfo(name)
        member.size = len(data)
        place = self._archive.offset + tarfile.BLOCKSIZE  # after the header, which is one block in USTAR
        self._archive.addfile(member, io.BytesIO(data))
        self._stored[name] = {"offset": place, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._archive.close()
        if error is None:
            nowhere = dict.fromkeys(("offset", "size", "sha256"))
            rows = [{**row, **self._stored.get(row["key"], nowhere)} for row in self.rows]
            records.write(self._folder / IMAGES_TABLE, rows, records.IMAGES)


def picture_bytes(tar: BinaryIO, row: Mapping, prefix: str = "") -> bytes:
    """The stored bytes of a picture, by its row of records.IMAGES; raises ImageError where the tar has others there.

    Args:
        prefix: of the row's keys.
    """
    data = os.pread(tar.fileno(), row[f"{prefix}size"], row[f"{prefix}offset"])
    if hashlib.sha256(data).hexdigest() != row[f"{prefix}sha256"]:
        raise ImageError(f"not in {tar.name} as it was stored there: remove that and run dvc repro")
    return data


class Pictures:
    """Pictures of a product by their rows of records.IMAGES; tars stay open, decoded pictures are kept for a while.

    Raises ImageError where a tar has not what was stored, OSError where there is none.
    """

    def __init__(self, product: Path, keep: int = 256) -> None:
        self._product = product
        self._tar = lru_cache(_OPEN_TARS)(self._opened)
        self._decoded = lru_cache(keep)(self._read)

    def bytes(self, row: Mapping) -> bytes:
        """The stored bytes of a picture."""
        return picture_bytes(self._tar(row["shard"]), row)

    def read(self, row: Mapping) -> np.ndarray:
        """(H, W, 3) uint8 RGB, not to be written to."""
        return self._decoded(*(row[name] for name in _READ_BY))

    def _opened(self, shard: str) -> BinaryIO:
        return (self._product / shard / PICTURES).open("rb")

    def _read(self, *place: object) -> np.ndarray:
        picture = read_image(self.bytes(dict(zip(_READ_BY, place, strict=True))))
        picture.flags.writeable = False
        return picture


class Opened(NamedTuple):
    """A row of a shard with its picture, or with the reason why there is none."""

    row: dict
    picture: np.ndarray | None
    error: str | None
    description: dict  # of the picture, as the caller asked; empty without one
    data: bytes  # the picture as it is stored


def iterate(
    folder: Path,
    max_side: int | None = None,
    describe: Callable[[np.ndarray], dict] = lambda picture: {},
    ahead: int = 16,
    without: Collection[str] = (),
) -> Iterator[Opened]:
    """Rows of a shard with their pictures, in order, read, decoded and described in a thread while the caller works.

    Args:
        without: image_ids of stored pictures that are passed over.
        max_side: as `read_image` takes it: a much longer JPEG comes out smaller than it is stored.
        ahead: pictures that may wait for the caller.
    """
    rows = records.read(folder / IMAGES_TABLE, records.IMAGES).to_pylist()
    with (folder / PICTURES).open("rb") as tar, ThreadPoolExecutor(1) as reader:

        def opened(row: dict) -> Opened:
            if not row["key"]:
                return Opened(row, None, row["error"], {}, b"")
            try:
                data = picture_bytes(tar, row)
                picture = read_image(data, max_side=max_side)
            except ImageError as error:
                return Opened(row, None, str(error), {}, b"")
            return Opened(row, picture, row["error"], describe(picture), data)

        waiting: deque[Future[Opened]] = deque()
        for row in (row for row in rows if not (row["key"] and row["image_id"] in without)):
            waiting.append(reader.submit(opened, row))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
