"""Where pictures come from: one module a kind of source (`kind` in datasets/sources.yaml)."""

from collections.abc import Iterator
from pathlib import Path

from pipelines.core.shards import digest, file_digest
from pipelines.core.sources import Kind, Source, text
from pipelines.ingest.readers import archive, single, table
from pipelines.ingest.readers.base import Container, Found, Limits, Member, Video


def files(name: str, source: Source, kind: Kind, root: Path) -> Iterator[Found]:
    """Pictures that are files of their own; none where the kind has containers."""
    if kind == "folder":
        yield from single.of_folder(name, source, root)
    elif kind == "uno":
        yield from single.of_uno(name, root)


def containers(name: str, source: Source, kind: Kind, root: Path) -> Iterator[Container]:
    """Files that hold many pictures, in order; BadInput where there is none, or a table lacks the columns.

    Of kinds where each picture is a file there are none.
    """
    if kind in ("folder", "uno"):
        return
    for file in single.below(name, source, kind, root):
        if kind == "table" and file.name.startswith("cache-"):  # what Hugging Face's map and filter leave behind
            continue
        path = text(str(file.relative_to(root)) if file != root else file.name)
        try:
            sha256 = file_digest(file)
        except OSError:
            sha256 = digest(name, path)
        container = Container(kind, name, path, file, sha256)
        if kind == "table":
            table.check(container, source)
        yield container


def members(container: Container, source: Source, limits: Limits, frames: Video | None = None) -> Iterator[Member]:
    """What a container holds, always in the same order; at least one member, if only to say that there is none.

    Args:
        frames: which of a video are taken; the other kinds need none.
    """
    if container.kind == "archive":
        found = archive.read(container, limits, tuple(source.columns.values()))
    elif container.kind == "table":
        found = table.read(container, limits, source.image_column, tuple(source.columns.values()))
    else:
        assert frames is not None
        from pipelines.ingest.readers import video  # its libraries are slow to load, and most sources have none

        found = video.read(container, limits, frames)
    n = 0
    for n, member in enumerate(found, start=1):
        if n > limits.max_members:
            fault = f"holds more than {limits.max_members} pictures: split it, or raise ingest.max_members"
            yield Member(container.path, error=fault)
            return
        yield member
    if n == 0:
        yield Member(container.path, error="holds no picture: remove it, or see what is in it")
