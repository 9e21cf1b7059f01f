"""Where pictures come from: one module a kind of source (`kind` in datasets/sources.yaml)."""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pipelines.core.shards import digest, file_digest
from pipelines.core.sources import SOURCES, SUFFIXES, Kind, Source, text
from pipelines.ingest.readers import archive, forms, single, table
from pipelines.ingest.readers.base import Container, Found, Limits, Member, Video
from pipelines.ingest.readers.walk import walk
from umo.errors import BadInput
from umo.formats import POINTED, POINTER


class Held(NamedTuple):
    """All that a source holds."""

    files: list[Found]  # pictures that are files of their own, and what cannot be read
    containers: list[Container]
    others: Counter[str]  # files that are not read, by what they are


def find(name: str, source: Source, kind: Kind, root: Path) -> Held:
    """What a source holds, each kind of thing in order.

    Raises BadInput where there is nothing of the kind, or a table lacks the columns.
    """
    if kind == "uno":
        return Held(list(single.of_uno(name, root)), [], Counter())
    paths, faults = ([root], []) if root.is_file() else walk(name, root, source.include)
    files, others = [], Counter[str]()
    for path in paths:
        read = partial(forms.head, path)
        if kind == "table" and path.name.startswith("cache-"):
            others["cache-* of Hugging Face's map and filter"] += 1
        elif path == root or forms.belongs(kind, path.name, read):
            files.append(path)
        else:
            others[forms.label(path.name, read)] += 1
    if not files and not faults:
        what, kinds = "picture" if kind == "folder" else kind, ", ".join(sorted(SUFFIXES[kind]))
        there = f", but {forms.told(others)}" if others else ""
        raise BadInput(f"{SOURCES}: source '{name}': no {what} in {root} fits '{source.include}' ({kinds}){there}")
    if kind == "folder":
        return Held([*single.of_folder(name, root, files), *faults], [], others)
    return Held(faults, [_container(name, source, kind, root, file) for file in files], others)


def _container(name: str, source: Source, kind: Kind, root: Path, file: Path) -> Container:
    path = text(str(file.relative_to(root)) if file != root else file.name)
    try:
        sha256 = file_digest(file)
    except OSError:
        sha256 = digest(name, path)
    is_now = forms.form(forms.head(file))
    if is_now and is_now.kind and {kind, is_now.kind} == {"archive", "table"}:  # under the other's name
        kind = is_now.kind
    container = Container(kind, name, path, file, sha256)
    if kind == "table":
        table.check(container, source)
    return container


def members(
    container: Container,
    source: Source,
    limits: Limits,
    frames: Video | None = None,
    others: Counter[str] | None = None,
) -> Iterator[Member]:
    """What a container holds, always in the same order; at least one member, if only to say that there is none.

    Args:
        frames: which of a video are taken; the other kinds need none.
        others: what is in the container and not read is counted here, by what it is.
    """
    own = Counter[str]()
    found: Iterator[Member]
    if forms.head(container.file).startswith(POINTER):
        found = iter([Member(container.path, error=POINTED)])
    elif container.kind == "archive":
        found = archive.read(container, limits, tuple(source.columns.values()), own)
    elif container.kind == "table":
        found = table.read(container, limits, source.image_column, tuple(source.columns.values()))
    else:
        assert frames is not None
        from pipelines.ingest.readers import video  # its libraries are slow to load, and most sources have none

        found = video.read(container, limits, frames)
    n = 0
    for n, member in enumerate(found, start=1):
        if n > limits.max_members:
            left = 1 + sum(1 for _ in found)
            fault = f"holds more than {limits.max_members} pictures: {left} are not read"
            yield Member(container.path, error=f"{fault}; split it, or raise ingest.max_members")
            break
        yield member
    if others is not None:
        others.update(own)
    if n == 0:
        there = f" but {forms.told(own)}" if own else ""
        yield Member(container.path, error=f"holds no picture{there}: remove it, or see what is in it")
