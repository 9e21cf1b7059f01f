"""A tar file's members, however it is packed.

Three things are held against the standard library's reader: it takes a damaged header for the end of the archive, it
stops at the first end mark though more may follow, and it reads extended headers of any size.
"""

import gzip
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tarfile import EmptyHeaderError, EOFHeaderError, TruncatedHeaderError  # type: ignore[attr-defined]
from typing import IO, cast

import pyarrow as pa

from pipelines.ingest.readers import forms

MAX_EXPANSION = 100  # of a compressed tar; pictures are compressed already
MAX_HEADER_BYTES = 1 << 20
XZ_END, XZ_TAIL = b"YZ", 1 << 16
DAMAGE = (tarfile.TarError, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError)
_EXTENDED = {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME}
_EXTENDED |= {tarfile.GNUTYPE_LONGLINK}


class LimitError(tarfile.TarError):
    """It may be whole, and is not what we read, or more."""


class _Header(tarfile.TarInfo):
    """Damage is an error, and so is an end without its mark."""

    @classmethod
    def fromtarfile(cls, tarfile_: "Tar") -> "_Header":  # type: ignore[override]
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


class Tar(tarfile.TarFile):
    tarinfo = _Header
    ended = False  # the latest that was read is the mark at the end


@contextmanager
def opened(path: Path) -> Iterator[Tar]:
    """A tar, however it is packed; raises what `DAMAGE` names, `LimitError` for what is no tar at all."""
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
            raise LimitError(f"this is {packing.name} and no tar: unpack it, or give it a source of its kind")
        try:
            archive = Tar(
                fileobj=cast(IO[bytes], stream), encoding="utf-8", errors="surrogateescape", ignore_zeros=True
            )
        except tarfile.ReadError as error:
            if stream.is_plain or "header" not in str(error):
                raise
            raise LimitError("what it unpacks to is no tar: see what it is") from error
        with archive:
            yield archive
        if packing and packing.name == "xz":
            raw.seek(-min(size, XZ_TAIL), 2)
            if not raw.read().rstrip(b"\0").endswith(XZ_END):
                raise tarfile.ReadError("it is no xz")  # which lzma passes over


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
            raise LimitError(f"it unpacks to more than {MAX_EXPANSION} times its size: what follows is not read")
        return data

    def seek(self, position: int) -> None:
        """To the end, where the position lies behind it."""
        if self.is_plain:
            self._at = self._file.seek(min(position, self._size))
        while self._at < position and self.read(min(1 << 20, position - self._at)):
            pass
