"""Shards of pictures: `images.parquet` (who and what) beside `images.tar` (the bytes), in a folder a shard."""

import io
import tarfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.core.products import IMAGES_TABLE, PICTURES
from umo import records
from umo.errors import BadInput
from umo.images import ImageError, read_image


def write(folder: Path, rows: Sequence[Mapping[str, object]], pictures: Mapping[str, bytes]) -> None:
    """Write a shard: records.IMAGES rows, and pictures by member name, in whose order they lie in the tar."""
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

    Raises BadInput where the tar is missing or damaged.
    """
    path = product / shard / PICTURES
    try:
        with tarfile.open(path) as archive:
            return {member.name: (member.offset_data, member.size) for member in archive}
    except (OSError, tarfile.TarError) as error:
        raise BadInput(f"{path}: not a readable tar ({error}); remove it and run dvc repro") from error


class Archive:
    """A shard's tar, open, with a list of what is in it: of one that is cut short, what comes before the cut.

    Raises BadInput where it is no tar.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._tar = tarfile.open(path, "r:")  # noqa: SIM115
        except tarfile.ReadError as error:
            raise BadInput(f"{path}: not a readable tar ({error}); remove it and run dvc repro") from error
        self._path, self._members = path, dict[str, tarfile.TarInfo]()
        with suppress(tarfile.ReadError):
            for member in self._tar:
                self._members[member.name] = member

    def bytes(self, key: str) -> bytes:
        """A member; raises ImageError where it is not there, or not whole."""
        try:
            file = self._tar.extractfile(self._members[key])
            return file.read() if file else b""
        except (KeyError, tarfile.ReadError) as error:
            raise ImageError(f"not whole in {self._path}: remove that and run dvc repro") from error

    def close(self) -> None:
        self._tar.close()


class Pictures:
    """Pictures of a product by shard and key; tars stay open, decoded pictures are kept for a while."""

    def __init__(self, product: Path, keep: int = 256) -> None:
        self._product = product
        self._archives: dict[str, Archive] = {}
        self.read = lru_cache(keep)(self._read)

    def bytes(self, shard: str, key: str) -> bytes:
        """The stored bytes of a picture; errors as of `Archive`."""
        if shard not in self._archives:
            self._archives[shard] = Archive(self._product / shard / PICTURES)
        return self._archives[shard].bytes(key)

    def _read(self, shard: str, key: str) -> np.ndarray:
        picture = read_image(self.bytes(shard, key))
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
) -> Iterator[Opened]:
    """Rows of a shard with their pictures, in order, read, decoded and described in a thread while the caller works.

    Args:
        max_side: as `read_image` takes it: a much longer JPEG comes out smaller than it is stored.
        ahead: pictures that may wait for the caller.
    """
    rows = records.read(folder / IMAGES_TABLE, records.IMAGES).to_pylist()
    with closing(Archive(folder / PICTURES)) as archive, ThreadPoolExecutor(1) as reader:

        def opened(row: dict) -> Opened:
            if not row["key"]:
                return Opened(row, None, row["error"], {}, b"")
            try:
                data = archive.bytes(row["key"])
                picture = read_image(data, max_side=max_side)
            except ImageError as error:
                return Opened(row, None, str(error), {}, b"")
            return Opened(row, picture, row["error"], describe(picture), data)

        waiting: deque[Future[Opened]] = deque()
        for row in rows:
            waiting.append(reader.submit(opened, row))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
