"""Shards of pictures: `images.parquet` (who and what) beside `images.tar` (the bytes), in a folder a shard."""

import io
import tarfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.products import IMAGES_TABLE, PICTURES
from umo import records
from umo.errors import BadInput
from umo.images import ImageError, read_image

AHEAD = 16  # pictures


def write(folder: Path, rows: Sequence[Mapping[str, object]], pictures: Mapping[str, bytes]) -> None:
    """Write a shard.

    Args:
        rows: records.IMAGES rows.
        pictures: member name -> bytes; the tar keeps their order and nothing of the machine or the day.
    """
    with Writer(folder) as writer:
        for name, data in pictures.items():
            writer.add(name, data)
        writer.rows += rows


class Writer:
    """`write` for a shard that is larger than memory: pictures go to the tar one by one, `rows` are written last."""

    def __init__(self, folder: Path) -> None:
        self.rows: list[Mapping[str, object]] = []
        self._folder = folder
        self._archive = tarfile.open(folder / PICTURES, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115

    def add(self, name: str, data: bytes) -> None:
        """Append a picture."""
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self._archive.addfile(member, io.BytesIO(data))

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._archive.close()
        if error is None:
            records.write(self._folder / IMAGES_TABLE, self.rows, records.IMAGES)


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
        """The stored bytes of a picture.

        Raises:
            ImageError: the tar does not hold it, or ends within it.
            BadInput: the tar is none.
        """
        try:
            member = self._archive(shard).extractfile(key)
            data = member.read() if member else b""
        except (KeyError, tarfile.ReadError) as error:
            raise ImageError(f"{key} is not whole in {shard}/{PICTURES}: remove that and run dvc repro") from error
        return data

    def close(self) -> None:
        """Shut the tars."""
        for archive in self._archives.values():
            archive.close()
        self._archives.clear()

    def _archive(self, shard: str) -> tarfile.TarFile:
        if shard not in self._archives:
            path = self._product / shard / PICTURES
            try:
                self._archives[shard] = tarfile.open(path)  # noqa: SIM115
            except tarfile.ReadError as error:
                raise BadInput(f"{path}: not a readable tar ({error}); remove it and run dvc repro") from error
        return self._archives[shard]

    def _read(self, shard: str, key: str) -> np.ndarray:
        picture = read_image(self.bytes(shard, key))
        picture.flags.writeable = False
        return picture


class Opened(NamedTuple):
    """A row of a shard with its picture, or with the reason why there is none.

    Attributes:
        data: the picture as it is stored.
    """

    row: dict
    picture: np.ndarray | None
    error: str | None
    data: bytes


def iterate(folder: Path, max_side: int | None = None, ahead: int = AHEAD) -> Iterator[Opened]:
    """Rows of a shard with their pictures, in order, read and decoded in a thread while the caller works.

    Args:
        max_side: as `read_image` takes it: a much longer JPEG comes out smaller than it is stored.
        ahead: pictures that may wait for the caller.

    Raises:
        BadInput: the tar is none.
    """
    rows = records.read(folder / IMAGES_TABLE, records.IMAGES).to_pylist()
    with closing(Pictures(folder.parent)) as pictures, ThreadPoolExecutor(1) as reader:
        waiting: deque[Future[Opened]] = deque()
        for row in rows:
            waiting.append(reader.submit(_open, pictures, folder.name, row, max_side))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _open(pictures: Pictures, shard: str, row: dict, max_side: int | None) -> Opened:
    if not row["key"]:
        return Opened(row, None, row["error"], b"")
    try:
        data = pictures.bytes(shard, row["key"])
        return Opened(row, read_image(data, max_side=max_side), row["error"], data)
    except ImageError as error:
        return Opened(row, None, str(error), b"")
