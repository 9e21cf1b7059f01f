"""What a file holds of somebody, whatever its name: Parquet, Arrow, tar, SQLite, text, picture; DVC's objects too.

Files are known by their first bytes, so that DVC's cache, whose names say nothing, is read like the products.
Found is: an id (of the person, a picture, a face, a set or a scene, for all of them begin alike), a file with the
bytes of a photograph or of a scene, a picture that looks like a photograph, an embedding that is the person's.
"""

import base64
import hashlib
import re
import sqlite3
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.core.tombstones import hashes, near, unpadded
from pipelines.forget.traces import nearest_is, unit
from umo.images import ImageError, read_image
from umo.quality import perceptual_hash

PERSON = re.compile(rb"(?<![0-9A-Za-z])p[0-9a-f]{12}(?![0-9a-f])")
DIGEST = re.compile(rb"(?<![0-9a-f])[0-9a-f]{16,}")
INLINE = re.compile(rb"data:image/[a-z+]+;base64,([A-Za-z0-9+/=]+)")
IMAGES = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"P5", b"P6", b"GIF8")
AT_ONCE = 2**26  # bytes of a file in memory
OVERLAP = 2**22  # of what is searched as text, window by window: no inline picture is longer
UNREAD = "unread"
KINDS = ("ids", "bytes", "looks", "embeddings")


@dataclass(frozen=True)
class Wanted:
    """What is looked for."""

    person_ids: frozenset[str]
    image_ids: frozenset[str]  # of photographs and of scenes made from them
    phashes: np.ndarray  # (n,) uint64 of the photographs, without the padding of tight crops
    pad: float  # that padding, as a part of each side
    centres: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))  # (k, d) of their faces
    others: Path | None = None  # .npy of (m, d): centres of people who stay
    min_cosine: float = 1.0  # two faces at or above it are the same person


class Found(NamedTuple):
    """In a file: kinds of what is theirs (KINDS, or UNREAD where it is not whole), and how many pictures it has."""

    kinds: frozenset[str]
    pictures: int

    def __bool__(self) -> bool:
        """Whether anything is theirs."""
        return bool(self.kinds - {UNREAD})


class Reader:
    """Looks into one file at a time."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self._short = {image_id[:16].encode() for image_id in wanted.image_ids}
        self._people = {person_id.encode() for person_id in wanted.person_ids}

    @cached_property
    def _others(self) -> np.ndarray:
        others = self.wanted.others
        return np.load(others, mmap_mode="r") if others else np.zeros((0, 0), np.float32)

    def named(self, path: Path) -> bool:
        """Whether a path has an id in it."""
        return self.mentioned(str(path).encode())

    def mentioned(self, text: bytes) -> bool:
        """Whether a text has an id in it."""
        if self._people and any(found[0] in self._people for found in PERSON.finditer(text)):
            return True
        return any(found[0][:16] in self._short for found in DIGEST.finditer(text))

    def content(self, path: Path, sha256: str) -> Found:
        """What a file holds, whatever its name is."""
        counts = Counter(bytes=int(sha256 in self.wanted.image_ids))
        with path.open("rb") as file:
            head = file.read(512)
        try:
            self._search(path, head, counts)
        except (pa.ArrowException, tarfile.TarError, sqlite3.Error, EOFError, OSError):
            counts[UNREAD] += 1
            self._text(path, counts)
        pictures = counts.pop("pictures", 0)
        return Found(frozenset(+counts), pictures)

    def _search(self, path: Path, head: bytes, counts: Counter[str]) -> None:
        if head[:4] == b"PAR1":
            with pq.ParquetFile(path) as file:
                counts["ids"] += self.mentioned(str(file.schema_arrow.metadata).encode())
                size = sum(file.metadata.row_group(k).total_byte_size for k in range(file.num_row_groups))
                rows = max(1, min(2**16, AT_ONCE * file.metadata.num_rows // max(1, size)))
                for batch in file.iter_batches(rows):
                    self._table(pa.Table.from_batches([batch]), counts)
        elif head[:6] == b"ARROW1":
            with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as table:
                for k in range(table.num_record_batches):
                    self._table(pa.Table.from_batches([table.get_batch(k)]), counts)
        elif head[257:262] == b"ustar":
            with tarfile.open(path) as archive:
                for member in archive:
                    counts["ids"] += self.mentioned(member.name.encode(errors="surrogateescape"))
                    content = archive.extractfile(member) if member.isfile() else None
                    self._bytes(content.read() if content else b"", counts)
        elif head.startswith(b"SQLite format 3\0"):
            self._text(path, counts)  # what was deleted is still in it
            with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
                for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                    for row in database.execute('SELECT * FROM "{}"'.format(name.replace('"', '""'))):
                        counts["ids"] += self.mentioned(repr(row).encode())
        elif head[8:10] == b'{"' and int.from_bytes(head[:8], "little") <= AT_ONCE:  # safetensors: weights tell nothing
            with path.open("rb") as weights:
                counts["ids"] += self.mentioned(weights.read(8 + int.from_bytes(head[:8], "little")))
        elif head.startswith(IMAGES) and path.stat().st_size <= AT_ONCE:
            self._bytes(path.read_bytes(), counts)
        else:
            self._text(path, counts)

    def _text(self, path: Path, counts: Counter[str]) -> None:
        """Anything, window by window."""
        with path.open("rb") as file:
            carried = b""
            while window := file.read(AT_ONCE):
                self._window(carried + window, counts)
                carried = window[-OVERLAP:]

    def _window(self, text: bytes, counts: Counter[str]) -> None:
        counts["ids"] += self.mentioned(text)
        for inline in INLINE.finditer(text):
            with suppress(ValueError):  # cut off, or no base64: no picture
                self._bytes(base64.b64decode(inline[1]), counts)

    def _bytes(self, data: bytes, counts: Counter[str]) -> None:
        """A picture, or anything else, which is searched as text."""
        counts["bytes"] += hashlib.sha256(data).hexdigest() in self.wanted.image_ids
        if data.startswith(IMAGES):
            with suppress(ImageError):
                picture = read_image(data)
                counts["pictures"] += 1
                found = hashes(perceptual_hash(view) for view in (picture, unpadded(picture, self.wanted.pad)))
                counts["looks"] += bool(near(found, self.wanted.phashes).any())
                return
        self._window(data, counts)

    def _table(self, table: pa.Table, counts: Counter[str]) -> None:
        kept = _without_refusals(table)
        for name in kept.column_names:
            self._column(kept.column(name).combine_chunks(), counts)

    def _column(self, column: pa.Array, counts: Counter[str]) -> None:
        kind = column.type
        if isinstance(column, pa.ExtensionArray):
            self._column(column.storage, counts)
        elif pa.types.is_dictionary(kind):
            self._column(column.dictionary_decode(), counts)
        elif pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
            self._column(column.cast(pa.large_binary()), counts)
        elif pa.types.is_struct(kind):
            for part in column.flatten():
                self._column(part, counts)
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            counts["embeddings"] += self._embedded(column)
            self._column(column.flatten(), counts)
        elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
            counts["ids"] += self.mentioned("\n".join(filter(None, column.unique().to_pylist())).encode())
        elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            for data in column:
                self._bytes(data.as_py() or b"", counts)

    def _embedded(self, column: pa.Array) -> int:
        """How many rows of a column of vectors are the person's."""
        centres = self.wanted.centres
        if not len(centres) or not pa.types.is_floating(column.type.value_type):
            return 0
        rows = column.filter(pc.equal(pc.list_value_length(column), centres.shape[1]))
        vectors = rows.flatten().to_numpy(zero_copy_only=False).reshape(-1, centres.shape[1])
        return int(nearest_is(unit(vectors), centres, self._others, self.wanted.min_cosine).sum())


def _without_refusals(table: pa.Table) -> pa.Table:
    """Without what says which files lie there and why they were refused: hashes, as the tombstone's, and no picture.

    Those are rows with an error, and the listings that ingest makes of tars and tables.
    """
    if "licensed" in table.column_names:
        return table.slice(0, 0)
    if not {"image_id", "error"} <= set(table.column_names):
        return table
    return table.filter(table["error"].is_null())


@dataclass
class Seen:
    """What was looked at in a place, in which files something was found, and which were not whole."""

    files: int = 0
    pictures: int = 0
    found: dict[Path, frozenset[str]] = field(default_factory=dict)
    unread: list[Path] = field(default_factory=list)


def summary(seen: dict[str, Seen]) -> Iterator[str]:
    """Lines of a table: what was looked at and what was found, by place."""
    yield f"{'scanned':<28}{'files':>8}{'pictures':>10}" + "".join(f"{kind:>12}" for kind in KINDS)
    for place, part in seen.items():
        found = Counter(kind for kinds in part.found.values() for kind in kinds)
        yield f"{place:<28}{part.files:>8}{part.pictures:>10}" + "".join(f"{found[kind]:>12}" for kind in KINDS)
