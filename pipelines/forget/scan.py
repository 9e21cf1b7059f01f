"""A scan of products for somebody: every Parquet or Arrow file, tar, text, picture, whatever its name; DVC's cache too.

Files are known by their first bytes, so that DVC's cache, whose names say nothing, is read like the products.
Found is: an id (of the person, a picture, a face, a set or a scene, for all of them begin alike), a file with the
bytes of a photograph or of a scene, a picture that looks like a photograph, an embedding that is the person's.
"""

import base64
import hashlib
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.core.digests import read_digest
from pipelines.core.tombstones import hashes, near, unpadded
from pipelines.forget.traces import nearest_is, unit
from umo.images import ImageError, read_image
from umo.quality import perceptual_hash

PERSON = re.compile(rb"(?<![0-9A-Za-z])p[0-9a-f]{12}(?![0-9a-f])")
DIGEST = re.compile(rb"(?<![0-9a-f])[0-9a-f]{16,}")
INLINE = re.compile(rb"data:image/[a-z+]+;base64,([A-Za-z0-9+/=]+)")
IMAGES = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"P5", b"P6", b"GIF8")
BATCH = 512
KINDS = ("ids", "bytes", "looks", "embeddings")


@dataclass(frozen=True)
class Wanted:
    """What is looked for."""

    person_id: str | None  # None where there is none
    image_ids: frozenset[str]  # of photographs and of scenes made from them
    phashes: np.ndarray  # (n,) uint64 of the photographs, without the padding of tight crops
    pad: float  # that padding, as a part of each side
    centre: np.ndarray | None = None  # (d,) of the person's faces; None looks at no embedding
    others: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))  # (m, d) of people who stay
    min_cosine: float = 1.0  # two faces at or above it are the same person


@dataclass
class Seen:
    """What was looked at, and in which files something was found: path -> kinds."""

    files: int = 0
    pictures: int = 0
    found: dict[Path, set[str]] = field(default_factory=dict)


class Scan:
    """Looks for one person; a file's content is read once, however many copies and links of it there are."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self._short = {image_id[:16].encode() for image_id in wanted.image_ids}
        self._person = (wanted.person_id or "").encode()
        self._known: dict[str, tuple[frozenset[str], int]] = {}

    def walk(self, root: Path, leave: Iterable[Path] = ()) -> Seen:
        """All files below a folder (or one file), but those below `leave`."""
        seen, left = Seen(), tuple(leave)
        for path in [root] if root.is_file() else sorted(root.rglob("*")):
            if path.is_file() and not any(path.is_relative_to(folder) for folder in left):
                kinds, pictures = self.file(path)
                seen.files += 1
                seen.pictures += pictures
                if kinds:
                    seen.found[path] = set(kinds)
        return seen

    def holds(self, root: Path) -> bool:
        """Whether anything is found below a folder; stops at the first."""
        paths = [root] if root.is_file() else root.rglob("*")
        return any(self._mentioned(path.name.encode()) or self.file(path)[0] for path in paths if path.is_file())

    def file(self, path: Path) -> tuple[frozenset[str], int]:
        """Kinds of what is found in a file or in its name, and how many pictures were looked at."""
        key = read_digest(path)
        if key not in self._known:
            counts = Counter(bytes=int(key in self.wanted.image_ids))
            self._search(path, counts)
            pictures = counts.pop("pictures", 0)
            self._known[key] = frozenset(+counts), pictures
        kinds, pictures = self._known[key]
        return kinds | ({"ids"} if self._mentioned(path.name.encode()) else set()), pictures

    def _mentioned(self, text: bytes) -> bool:
        named = bool(self._person) and self._person in PERSON.findall(text)
        return named or any(found[:16] in self._short for found in DIGEST.findall(text))

    def _search(self, path: Path, counts: Counter[str]) -> None:
        with path.open("rb") as file:
            head = file.read(512)
        if head[:4] == b"PAR1":
            with pq.ParquetFile(path) as file:
                counts["ids"] += self._mentioned(str(file.schema_arrow.metadata).encode())
                for batch in file.iter_batches(BATCH):
                    table = _without_refusals(pa.Table.from_batches([batch]))
                    for name in table.column_names:
                        self._column(table.column(name).combine_chunks(), counts)
        elif head[:6] == b"ARROW1":
            with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as table:
                for k in range(table.num_record_batches):
                    for column in table.get_batch(k).columns:
                        self._column(column, counts)
        elif head[257:262] == b"ustar":
            with tarfile.open(path) as archive:
                for member in archive:
                    counts["ids"] += self._mentioned(member.name.encode())
                    content = archive.extractfile(member) if member.isfile() else None
                    self._bytes(content.read() if content else b"", counts)
        else:
            self._bytes(path.read_bytes(), counts)

    def _bytes(self, data: bytes, counts: Counter[str]) -> None:
        """A picture, or anything else, which is searched as text."""
        if not data.startswith(IMAGES):
            counts["ids"] += self._mentioned(data)
            for inline in INLINE.findall(data):
                self._bytes(base64.b64decode(inline), counts)
            return
        counts["bytes"] += hashlib.sha256(data).hexdigest() in self.wanted.image_ids
        with suppress(ImageError):  # what cannot be decoded shows nobody
            picture = read_image(data)
            counts["pictures"] += 1
            found = hashes(perceptual_hash(view) for view in (picture, unpadded(picture, self.wanted.pad)))
            counts["looks"] += bool(near(found, self.wanted.phashes).any())

    def _column(self, column: pa.Array, counts: Counter[str]) -> None:
        kind = column.type
        if isinstance(column, pa.ExtensionArray):
            self._column(column.storage, counts)
        elif pa.types.is_struct(kind):
            for part in column.flatten():
                self._column(part, counts)
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            counts["embeddings"] += self._embedded(column)
            self._column(column.flatten(), counts)
        elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
            counts["ids"] += any(self._mentioned(text.encode()) for text in column.unique().to_pylist() if text)
        elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            for data in column.to_pylist():
                self._bytes(data or b"", counts)

    def _embedded(self, column: pa.Array) -> int:
        """How many rows of a column of vectors are the person's."""
        centre = self.wanted.centre
        if centre is None or not pa.types.is_floating(column.type.value_type):
            return 0
        rows = [row for row in column.to_pylist() if row is not None and len(row) == len(centre)]
        vectors = unit(np.array(rows, np.float32).reshape(len(rows), len(centre)))
        return int(nearest_is(vectors, centre, self.wanted.others, self.wanted.min_cosine).sum())


def _without_refusals(table: pa.Table) -> pa.Table:
    """Without what says which files lie there and why they were refused: hashes, as the tombstone's, and no picture.

    Those are rows with an error, and the listings that ingest makes of tars and tables.
    """
    if "licensed" in table.column_names:
        return table.slice(0, 0)
    if not {"image_id", "error"} <= set(table.column_names):
        return table
    return table.filter(table["error"].is_null())


def summary(seen: Mapping[str, Seen]) -> Iterator[str]:
    """Lines of a table: what was looked at and what was found, by place."""
    yield f"{'scanned':<28}{'files':>8}{'pictures':>10}" + "".join(f"{kind:>12}" for kind in KINDS)
    for place, part in seen.items():
        found = Counter(kind for kinds in part.found.values() for kind in kinds)
        yield f"{place:<28}{part.files:>8}{part.pictures:>10}" + "".join(f"{found[kind]:>12}" for kind in KINDS)
