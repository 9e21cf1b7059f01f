"""Pictures as files below a folder."""

from collections.abc import Iterator
from pathlib import Path

from pipelines.core.shards import digest, file_digest
from pipelines.core.sources import Source, text
from pipelines.ingest.readers.base import Found, files_below


def find(name: str, source: Source, root: Path) -> Iterator[Found]:
    """The source's pictures in order; an unreadable file still gets a row, by the digest of its path.

    Raises:
        BadInput: there are none.
    """
    for path in files_below(name, source, "folder", root):
        yield found(name, text(str(path.relative_to(root))), path)


def found(name: str, path: str, file: Path) -> Found:
    """A file with its digest."""
    try:
        return Found(file_digest(file), name, path, file)
    except OSError:
        return Found(digest(name, str(file)), name, path, file)
