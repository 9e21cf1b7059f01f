"""How a product reaches its place: as hard links, whole, at one instant, by one writer a stage."""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from pipelines.core.digests import WORK, file_digest, link
from pipelines.core.locks import alone
from umo.files import clear, replacing

MARKER = "marker.json"
_held: set[str] = set()


@contextmanager
def writing(stage: str) -> Iterator[None]:
    """Be the only writer of a stage's products in this workspace, or raise WorkFailed; may be nested."""
    if stage in _held:
        yield
        return
    with alone(stage, WORK / f"{stage}.lock"):
        _held.add(stage)
        try:
            yield
        finally:
            _held.discard(stage)


def publish(places: Mapping[Path, str], out: Path) -> None:
    """Lay out finished folders, without their markers, in place of all that was at `out`: folder -> its place there.

    Killed anywhere, the old product stands whole. A file that lies there already as it should keeps its inode, so that
    DVC need not read it again; where all of them do, nothing is touched. What several folders hold is taken once. Where
    `out` names a file (it has a suffix), the product is the file of that name in the folder.
    """
    wanted: dict[str, Path] = {}
    for folder, place in places.items():
        for path in _files(folder):
            if path != folder / MARKER:
                wanted.setdefault(str(Path(place) / path.relative_to(folder)), path)
    if out.suffix:
        with replacing(out) as temporary:
            temporary.parent.mkdir(parents=True, exist_ok=True)
            link(wanted[out.name], temporary)
        return
    clear(out)
    there = {str(path.relative_to(out)): path for path in _files(out)}
    pairs = {name: (wanted[name], there[name]) for name in wanted.keys() & there.keys()}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        same = dict(zip(pairs, pool.map(_same, pairs.values()), strict=True))
    kept = {name: there[name] for name in pairs if same[name]}
    if kept.keys() == wanted.keys() == there.keys():
        return
    with replacing(out) as temporary:
        temporary.mkdir(parents=True)
        for name, path in wanted.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            link(kept.get(name, path), temporary / name)


def _same(files: tuple[Path, Path]) -> bool:
    new, old = files
    return new.samefile(old) or file_digest(new) == file_digest(old)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
