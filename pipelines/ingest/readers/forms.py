"""What a file is: by its suffix, where we read it, else by its first bytes; and how what is not read is counted."""

import re
import tarfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pipelines.core.sources import SUFFIXES, Kind

HEAD_BYTES = tarfile.BLOCKSIZE
APPLE_DOUBLE = b"\0\5\x16\7"  # what macOS lays beside a file, as ._NAME
# Camera files that begin as a TIFF does, and whose first picture is a thumbnail.
RAW_NAMES = ".3fr .arw .cr2 .dcr .dng .erf .gpr .iiq .kdc .mef .mos .nef .nrw .pef .raw .sr2 .srf .srw"
RAW = frozenset(RAW_NAMES.split())


class Form(NamedTuple):
    """What a file's bytes are."""

    name: str
    kind: Kind | None = None  # of the sources that read it


# A picture's suffix tells whether we read it.
_PICTURES = {
    ".jpg": (rb"\xff\xd8\xff", "a JPEG picture"),
    ".png": (rb"\x89PNG\r\n\x1a\n", "a PNG picture"),
    ".webp": (rb"RIFF....WEBP", "a WebP picture"),
    ".tif": (rb"II[*+]\0|MM\0[*+]", "a TIFF picture"),
    ".bmp": (rb"BM.{8}....[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", "a BMP picture"),
    ".pgm": (rb"P[2356]\s+(#[^\n]*\n\s*)*\d+\s", "a PGM or PPM picture"),
    ".pbm": (rb"P[14]\s+(#[^\n]*\n\s*)*\d+\s", "a PBM picture"),
    ".gif": (rb"GIF8[79]a", "a GIF picture"),
    ".avif": (rb"....ftypavi[fs]", "an AVIF picture"),
    ".heic": (rb"....ftyp(hei|hev|mif1|msf1)", "a HEIC picture"),
}
_PATTERNS: list[tuple[bytes, Form]] = [
    *((rx, Form(name, "folder" if suffix in SUFFIXES["folder"] else None)) for suffix, (rx, name) in _PICTURES.items()),
    (rb"\x1f\x8b\x08", Form("gzip", "archive")),
    (rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", Form("bzip2", "archive")),
    (rb"\xfd7zXZ\0", Form("xz", "archive")),
    (rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", Form("zstd", "archive")),
    (rb"\x04\x22\x4d\x18", Form("lz4", "archive")),
    (rb"PAR1", Form("Parquet", "table")),
    (rb"PARE", Form("encrypted Parquet", "table")),
    (rb"ARROW1\0\0", Form("an Arrow file", "table")),
    (rb"FEA1", Form("Feather, version 1", "table")),
    (rb"\xff{4}...[\0-\x0f].\0\0\0", Form("an Arrow stream", "table")),
    (rb"....ftyp(?!M4[AB] )|....(moov|mdat|wide)|\x1a\x45\xdf\xa3|RIFF....AVI |OggS|FLV\x01", Form("a video", "video")),
    (rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11|\0\0\x01[\xb3\xba]", Form("a video", "video")),
    (rb"(\x47.{187}){2}\x47|(.{4}\x47.{187}){2}", Form("a video", "video")),  # MPEG-TS, plain and with time codes
    (rb"PK(\x03\x04|\x05\x06)", Form("a zip archive")),
    (rb"7z\xbc\xaf\x27\x1c", Form("a 7z archive")),
    (rb"Rar!\x1a\x07", Form("a RAR archive")),
    (rb"LZIP|\x1f\x9d|\x5d\0\0", Form("an archive packed with lzip, compress or LZMA")),
    (rb"\s*<(?i:!doctype|html|\?xml)", Form("a web page")),
]
_FORMS = [(re.compile(pattern, re.DOTALL), of) for pattern, of in _PATTERNS]


def form(head: bytes) -> Form | None:
    """What begins with these `HEAD_BYTES`; None for what is not known."""
    try:
        tarfile.TarInfo.frombuf(head, "latin-1", "replace")
        return Form("a tar", "archive")
    except tarfile.HeaderError:
        return next((of for pattern, of in _FORMS if pattern.match(head)), None)


def head(file: Path) -> bytes:
    """A file's first bytes; none where it cannot be read, which is said when it is to be."""
    try:
        with file.open("rb") as opened:
            return opened.read(HEAD_BYTES)
    except OSError:
        return b""


def belongs(kind: Kind, name: str, read: Callable[[], bytes]) -> bool:
    """Whether a file is one of those that a kind of source reads.

    Args:
        read: gives its first bytes, which are asked for where the name does not tell.
    """
    path = PurePosixPath(name)
    suffix = path.suffix.lower()
    if _is_apple_double(path.name, read):
        return False
    if suffix in SUFFIXES[kind]:
        return True
    known = RAW.union(*(suffixes for other, suffixes in SUFFIXES.items() if other != kind))
    found = None if suffix in known else form(read())
    return found is not None and found.kind == kind


def _is_apple_double(name: str, read: Callable[[], bytes]) -> bool:
    return name.startswith("._") and read().startswith(APPLE_DOUBLE)


def label(name: str, read: Callable[[], bytes]) -> str:
    """As what a file that is not read is counted: its suffix, or a hidden file's name."""
    path = PurePosixPath(name)
    if _is_apple_double(path.name, read):
        return "._* of macOS"
    suffix = path.suffix.lower() or (path.name if path.name.startswith(".") else "")
    return suffix if re.fullmatch(r"\.\w{1,15}", suffix) else "without a suffix"


def told(others: Mapping[str, int]) -> str:
    """What was counted, on one line."""
    some, rest = Counter(others).most_common(20), Counter(others).most_common()[20:]
    kinds = [f"{count} {of}" for of, count in sorted(some)]
    return ", ".join(kinds + ([f"{sum(count for _, count in rest)} others"] if rest else []))
