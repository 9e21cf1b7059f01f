"""WebDataset tars, read as a stream from front to back: nothing is ever unpacked to a file.

Two things are held against the standard library's reader: it takes a damaged header for the end of the archive, and
it reads extended headers of any size.
"""

import gzip
import json
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import IO

from pipelines.core.sources import SUFFIXES, text
from pipelines.ingest.readers.base import Container, Limits, Member, over_limit, reason

MAX_EXPANSION = 100  # of a compressed tar; pictures are compressed already
MAX_JSON_BYTES = 1 << 20
MAX_HEADER_BYTES = 1 << 20
_EXTENDED = {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME}
_EXTENDED |= {tarfile.GNUTYPE_LONGLINK}
_DAMAGE = (tarfile.TarError, OSError, EOFError, ValueError, zlib.error)


def read(container: Container, limits: Limits, columns: tuple[str, ...]) -> Iterator[Member]:
    """The pictures in their order; what is no usable member, and where the archive breaks off, as errors.

    Args:
        columns: keys of each sample's .json that are wanted. A sample is what has one name up to the first dot; its
            members follow each other, and it is held in memory until it ends.
    """
    if not columns:
        yield from (member for _, member in _members(container, limits, False))
        return
    for _, sample in groupby(_members(container, limits, True), key=itemgetter(0)):
        yield from _with_fields((member for _, member in sample), limits, columns)


def _with_fields(sample: Iterable[Member], limits: Limits, columns: tuple[str, ...]) -> Iterator[Member]:
    """Pictures of one name, and what their .json says; where it cannot be read, nobody knows their terms: refused."""
    pictures: list[Member] = []
    fields: dict[str, object] = {}
    size, fault = 0, None
    for member in sample:
        if not member.path.lower().endswith(".json"):
            size += len(member.data)
            if size > limits.max_bytes:
                large = f"its sample is over the limit of {limits.max_bytes} bytes: raise ingest.max_bytes"
                member = replace(member, data=b"", error=large)
            pictures.append(member)
            continue
        try:
            found = json.loads(member.data)
            fields = {column: found.get(column) for column in columns}
        except (ValueError, RecursionError, AttributeError):
            fault = f"{text(member.path)} is no JSON object: write it again, or remove it"
    for member in pictures:
        if fault and not member.error:
            yield replace(member, data=b"", error=fault)
        else:
            yield replace(member, fields=fields)


def _members(container: Container, limits: Limits, with_json: bool) -> Iterator[tuple[str | None, Member]]:
    """Pictures (and .json) with the name of their sample: folder and name up to the first dot."""
    n = 0
    try:
        with (
            container.file.open("rb") as raw,
            tarfile.open(  # type: ignore[call-overload]
                fileobj=_Stream(raw, container.file),
                mode="r|",
                tarinfo=_Header,
                encoding="utf-8",
                errors="surrogateescape",
            ) as archive,
        ):
            while header := archive.next():
                archive.members.clear()  # or they all stay in memory
                n += 1
                if member := _member(container, archive, header, limits, with_json):
                    folder, _, base = header.name.rpartition("/")
                    yield f"{folder}/{base.split('.')[0]}", member
    except _DAMAGE as error:
        fault = f"cut short or damaged after {n} members ({reason(error)}): copy it again from its origin"
        yield None, Member(container.path, error=fault)


def _member(
    container: Container, archive: tarfile.TarFile, header: tarfile.TarInfo, limits: Limits, with_json: bool
) -> Member | None:
    """None for what holds no picture and harms nobody."""
    path = f"{container.path}/{text(header.name)}"
    suffix = PurePosixPath(header.name).suffix.lower()
    is_json = with_json and suffix == ".json" and header.isreg()
    if header.isdir() or (header.isreg() and suffix not in SUFFIXES["folder"] and not is_json):
        return None
    if fault := _fault(header) or over_limit(header.size, MAX_JSON_BYTES if is_json else limits.max_bytes):
        return Member(path, error=fault)
    file = archive.extractfile(header)
    assert file is not None
    return Member(path, file.read())


def _fault(header: tarfile.TarInfo) -> str | None:
    parts = header.name.replace("\\", "/").split("/")
    if header.name.startswith("/") or ".." in parts or "\0" in header.name:
        return "a name that leads out of the archive: write it again with plain relative names"
    if header.issym() or header.islnk():
        return "a link: put the picture itself into the archive"
    if not header.isreg() or header.issparse():
        return "a device, a pipe or a sparse file: put the picture itself into the archive"
    return None


class _Header(tarfile.TarInfo):
    """Damage is an error."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if buf and not any(buf):  # the mark at the end
                raise
            raise tarfile.ReadError(f"damaged header: {error}") from error
        if header.size < 0 or (header.type in _EXTENDED and header.size > MAX_HEADER_BYTES):
            raise tarfile.ReadError("damaged header: its size")
        return header


class _Stream:
    """A tar's bytes. Its end before the archive's, or far more than the file holds, is an error.

    (tarfile would go on asking an ended file for as many bytes as a header promises, exabytes if it likes.)
    """

    def __init__(self, raw: IO[bytes], file: Path) -> None:
        packed = file.suffix.lower() in {".gz", ".tgz"}
        self._file: IO[bytes] | gzip.GzipFile = gzip.GzipFile(fileobj=raw) if packed else raw
        self._left = max(1 << 26, file.stat().st_size * (MAX_EXPANSION if packed else 1))

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._left -= len(data)
        if not data:
            raise tarfile.ReadError("unexpected end of data")
        if self._left < 0:
            raise tarfile.ReadError(f"it unpacks to more than {MAX_EXPANSION} times its size")
        return data
