"""WebDataset tars, read as a stream from front to back: nothing is ever unpacked to a file.

Three things are held against the standard library's reader: it takes a damaged header for the end of the archive, it
stops at the first end mark though more may follow, and it reads extended headers of any size.
"""

import gzip
import json
import lzma
import posixpath
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from tarfile import EmptyHeaderError, EOFHeaderError, TruncatedHeaderError  # type: ignore[attr-defined]
from typing import IO, cast

import pyarrow as pa

from pipelines.core.sources import text
from pipelines.ingest.readers import forms
from pipelines.ingest.readers.base import Container, Limits, Member, over_limit, reason

MAX_EXPANSION = 100  # of a compressed tar; pictures are compressed already
MAX_JSON_BYTES = 1 << 20
MAX_HEADER_BYTES = 1 << 20
MAX_NOTES = 16  # .json files that may wait for the first picture of their sample
MAX_LINKS = 40  # from one to the next
XZ_END = b"YZ"
_EXTENDED = {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME}
_EXTENDED |= {tarfile.GNUTYPE_LONGLINK}
_DAMAGE = (tarfile.TarError, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError)


@dataclass(frozen=True)
class _Link(Member):
    """A picture's other name."""

    name: str = ""  # both from the archive's root on
    target: str = ""


class _Limit(tarfile.TarError):
    """It may be whole, and is not what we read, or more."""


def read(container: Container, limits: Limits, columns: tuple[str, ...], others: Counter[str]) -> Iterator[Member]:
    """The pictures in their order; what is no usable member, and where the archive breaks off, as errors.

    Pictures that are links to others come last, for which the archive is read again.

    Args:
        columns: keys of each sample's .json that are wanted. A sample is what has one name up to the first dot; its
            pictures follow each other, and are held in memory until it ends.
        others: members that are not read are counted here, by what they are.
    """
    found = _members(container, limits, bool(columns), others)
    links: list[_Link] = []
    for member in _with_fields(found, limits, columns, others) if columns else (member for _, member in found):
        if isinstance(member, _Link) and not member.error and len(links) < limits.max_members:
            links.append(member)
        else:
            yield member
    if links:
        yield from _linked(container, limits, links)


def _with_fields(
    found: Iterable[tuple[str | None, Member]], limits: Limits, columns: tuple[str, ...], others: Counter[str]
) -> Iterator[Member]:
    """Pictures with what their sample's .json says; where it cannot be read, nobody knows their terms: refused.

    Between a sample's members may lie those of no sample, and .json files that belong to no picture.
    """
    notes: dict[str | None, dict[str, object] | str] = {}  # by sample, what its .json says, or what is wrong with it
    pictures: list[Member] = []
    present, size = None, 0
    for sample, member in chain(found, [(None, None)]):
        if member and sample is not None and member.path.lower().endswith(".json"):
            if not isinstance(notes.get(sample), str):
                notes[sample] = _note(member, columns)
            if len(notes) > MAX_NOTES:
                del notes[next(other for other in notes if other != present)]
                others[".json without a picture"] += 1
            continue
        if sample != present or member is None:
            note = notes.pop(present, {}) if pictures else {}
            for picture in pictures:
                if isinstance(note, str):
                    yield picture if picture.error else Member(picture.path, error=note)
                else:
                    yield replace(picture, fields=note)
            pictures, present, size = [], sample, 0
        if member:
            size += len(member.data)
            if size > limits.max_bytes:
                large = f"its sample is over the limit of {limits.max_bytes} bytes: raise ingest.max_bytes"
                member = replace(member, data=b"", error=large)
            pictures.append(member)
    if notes:
        others[".json without a picture"] += len(notes)


def _note(member: Member, columns: tuple[str, ...]) -> dict[str, object] | str:
    """The wanted keys, or why there are none."""
    if member.error or isinstance(member, _Link):
        return f"{text(member.path)}: {member.error or 'a link: put the file itself into the archive'}"
    try:
        found = json.loads(member.data)
        note = {column: found.get(column) for column in columns}
    except (ValueError, RecursionError, AttributeError):
        return f"{text(member.path)} is no JSON object: write it again, or remove it"
    if odd := [column for column, value in note.items() if isinstance(value, list | dict)]:
        return f"{text(member.path)}: '{odd[0]}' is neither text nor a number: write it as text"
    return note


def _members(
    container: Container, limits: Limits, with_json: bool, others: Counter[str]
) -> Iterator[tuple[str | None, Member]]:
    """Pictures (and .json, and links) with the name of their sample: folder and name up to the first dot."""
    n, archive = 0, None
    try:
        with _opened(container.file) as archive:
            while header := archive.next():
                archive.members.clear()  # type: ignore[attr-defined]  # or they all stay in memory
                n += 1
                if member := _member(container, archive, header, limits, with_json, others):
                    folder, _, base = header.name.rpartition("/")
                    yield f"{folder}/{base.split('.')[0]}", member
        _check_end(container.file)
    except _Limit as error:
        yield None, Member(container.path, error=f"{error} ({n} members are read)")
    except _DAMAGE as error:
        if "too much memory" in reason(error):
            fault = f"packed with a larger window than is read ({reason(error)}): pack it again without --long"
        elif archive and archive.ended:
            fault = (
                f"behind the end mark after {n} members it is damaged, or no tar ({reason(error)}): see what is there"
            )
        else:
            fault = f"cut short or damaged after {n} members ({reason(error)}): copy it again from its origin"
        yield None, Member(container.path, error=fault)


def _member(
    container: Container,
    archive: tarfile.TarFile,
    header: tarfile.TarInfo,
    limits: Limits,
    with_json: bool,
    others: Counter[str],
) -> Member | None:
    """None for what is no picture and harms nobody; it is counted."""
    path = f"{container.path}/{text(header.name)}"
    if header.isdir() or header.type == b"V":  # GNU's name for the whole
        return None
    if fault := _fault(header):
        return Member(path, error=fault)
    if header.issym() or header.islnk():
        folder = posixpath.dirname(header.name) if header.issym() else ""
        target = posixpath.normpath(posixpath.join(folder, header.linkname))
        return _Link(path, name=posixpath.normpath(header.name), target=target)
    with cast(IO[bytes], archive.extractfile(header)) as file:
        start = b""

        def head() -> bytes:
            nonlocal start
            start = start or file.read(forms.HEAD_BYTES)
            return start

        is_json = with_json and forms.belongs("uno", header.name, head)
        if not is_json and not forms.belongs("folder", header.name, head):
            others[forms.label(header.name, head)] += 1
            return None
        if fault := over_limit(header.size, MAX_JSON_BYTES if is_json else limits.max_bytes):
            return Member(path, error=fault)
        return Member(path, start + file.read())


def _fault(header: tarfile.TarInfo) -> str | None:
    parts = header.name.replace("\\", "/").split("/")
    if header.name.startswith("/") or ".." in parts or "\0" in header.name:
        return "a name that leads out of the archive: write it again with plain relative names"
    if not (header.isreg() or header.issparse() or header.issym() or header.islnk()):
        return "a device, a pipe or another special file: put the picture itself into the archive"
    return None


def _linked(container: Container, limits: Limits, links: list[_Link]) -> Iterator[Member]:
    """The pictures that links lead to, which may lie before them or after."""
    targets = {link.name: link.target for link in links}
    wanted: dict[str, list[_Link]] = {}
    for link in links:
        target = link.target
        for _ in range(MAX_LINKS):
            target = targets.get(target, target)
        wanted.setdefault(text(target), []).append(link)
    inside = len(container.path) + 1
    for _, member in _members(container, limits, False, Counter()):
        for link in wanted.pop(posixpath.normpath(member.path[inside:]), ()) if not isinstance(member, _Link) else ():
            yield replace(member, path=link.path, fields=link.fields)
    for link in chain.from_iterable(wanted.values()):
        fault = f"a link to {text(link.target)}, which is no picture in the archive: put the picture itself there"
        yield Member(link.path, error=fault, fields=link.fields)


class _Header(tarfile.TarInfo):
    """Damage is an error, and so is an end without its mark."""

    @classmethod
    def fromtarfile(cls, tarfile_: "_Tar") -> "_Header":  # type: ignore[override]
        try:
            header = super().fromtarfile(tarfile_)
        except EOFHeaderError:
            tarfile_.ended = True
            raise
        except EmptyHeaderError as error:
            if tarfile_.ended:
                raise
            raise tarfile.ReadError("unexpected end of data") from error
        except TruncatedHeaderError as error:
            raise tarfile.ReadError("unexpected end of data") from error
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"damaged header: {error}") from error
        tarfile_.ended = False
        return header

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        if buf and not any(buf):  # padding may be of any length
            raise EOFHeaderError("end of file header")
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0 or (header.type in _EXTENDED and header.size > MAX_HEADER_BYTES):
            raise tarfile.ReadError("damaged header: its size")
        return header


class _Tar(tarfile.TarFile):
    tarinfo = _Header
    ended = False  # the latest that was read is the mark at the end


@contextmanager
def _opened(path: Path) -> Iterator[_Tar]:
    """A tar, however it is packed; raises what `_DAMAGE` names, `_Limit` for what is no tar at all."""
    packing = forms.form(forms.head(path))
    size = path.stat().st_size
    with path.open("rb") as raw:
        stream: _Stream
        if packing is None or packing.name == "a tar":
            stream = _Stream(raw, size, is_plain=True)
        elif packing.name in ("bzip2", "zstd", "lz4"):
            unpacked = pa.CompressedInputStream(pa.PythonFile(raw, "r"), packing.name.replace("bzip2", "bz2"))
            stream = _Stream(unpacked, size)
        elif packing.name in ("gzip", "xz"):
            stream = _Stream((gzip if packing.name == "gzip" else lzma).open(raw), size)
        else:
            raise _Limit(f"this is {packing.name} and no tar: unpack it, or give it a source of its kind")
        try:
            archive = _Tar(
                fileobj=cast(IO[bytes], stream), encoding="utf-8", errors="surrogateescape", ignore_zeros=True
            )
        except tarfile.ReadError as error:
            if stream.is_plain or "header" not in str(error):
                raise
            raise _Limit("what it unpacks to is no tar: see what it is") from error
        with archive:
            yield archive


def _check_end(path: Path) -> None:
    """What lies behind an xz file's end is passed over by the library."""
    packing = forms.form(forms.head(path))
    if packing and packing.name == "xz":
        with path.open("rb") as file:
            file.seek(-min(path.stat().st_size, 1 << 16), 2)
            if not file.read().rstrip(b"\0").endswith(XZ_END):
                raise tarfile.ReadError("behind its end lies something else")


class _Stream:
    """A tar's bytes, read forwards. Far more than the file holds is an error."""

    def __init__(self, file: IO[bytes] | pa.NativeFile, size: int, is_plain: bool = False) -> None:
        self._file, self._size, self.is_plain = file, size, is_plain
        self._limit = max(1 << 26, size * MAX_EXPANSION)
        self._at = 0

    def tell(self) -> int:
        return self._at

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._at += len(data)
        if not self.is_plain and self._at > self._limit:
            raise _Limit(f"it unpacks to more than {MAX_EXPANSION} times its size: what follows is not read")
        return data

    def seek(self, position: int) -> None:
        """To the end, where the position lies behind it."""
        if self.is_plain:
            self._at = self._file.seek(min(position, self._size))
        while self._at < position and self.read(min(1 << 20, position - self._at)):
            pass
