"""Taking somebody out: the ledger, finished work, products and what DVC keeps of them. Every step can be repeated."""

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import yaml

from pipelines.core import products
from pipelines.core.ledger import LEDGER, Ledger
from pipelines.core.locks import alone
from pipelines.core.params import STAGES
from pipelines.core.shards import WORK
from pipelines.forget import kept, objects
from pipelines.forget.note import Note
from pipelines.forget.places import CACHE, CORRECTIONS, ROOTS, Clear, found
from pipelines.forget.search import Search, files_below
from pipelines.service.commands import ask
from pipelines.service.leftovers import DVC_LOCK
from pipelines.service.repository import LOCK, cache
from umo.errors import BadInput
from umo.files import replacing, write_text


class Holding(NamedTuple):
    """What holds the person."""

    work: list[Path]  # pieces of finished work
    outs: list[Path]  # DVC's outputs
    store: objects.Store  # objects of DVC's cache


def what_holds(search: Search, models_too: bool, versions: Mapping[str, objects.Version]) -> Holding:
    """Of all places; with `models_too` also LoRAs trained on them."""
    leave = found(Clear.KEPT, Clear.WHOLE)
    search.files(path for root in ROOTS for path in files_below(root, leave))  # at once: workers are started once
    outs = search.holding(sorted(found(Clear.OUT, *[Clear.MODEL] * models_too)))
    report = found(Clear.REPORT)
    if outs or search.holding(report):
        outs[:0] = report  # first: what is left of it cannot be read
    work = found(Clear.WHOLE) + search.holding(found(Clear.PIECE))
    return Holding(work, outs, objects.look(CACHE, search, models_too, versions))


def purge(search: Search, note: Note) -> str:
    """Remove what holds the person; the next `dvc repro` makes it anew without them. Returns what went, in a line.
    WorkFailed where another DVC command, or a stage, is at work.
    """
    work, outs, store = what_holds(search, note.drop_models, objects.all_versions())
    note.lost = sorted({*note.lost, *store.theirs})
    of_umo = kept.look(search, note)
    note.kept = sorted({*note.kept, *of_umo.goes})
    note.write()  # before the listings go, without which nobody knows what was theirs by its name
    with _no_stage_runs(), alone("a DVC command", DVC_LOCK):
        ledger = Ledger.read()
        people: list[str | None] = [*note.person_ids] or [None]
        rows = sum([ledger.drop(note.image_ids, person_id) for person_id in people])
        if rows:
            ledger.write()
        said = f"{rows} rows of {LEDGER}, {_drop_lines(CORRECTIONS, search)} of {CORRECTIONS}"
        _drop_from_lock(outs)  # first: an output that a kill left half removed is not found again, its stage is
        for path in [*work, *outs]:
            _remove(path)
        objects.remove(CACHE, set(note.lost))
    _remove_kept(note.kept, of_umo.lists)
    # Outside the repository too, DVC remembers names and hashes of its files.
    for path in (*found(Clear.COPIES), *re.findall(r"Repo\.site_cache_dir: (.+)", ask("version"))):
        shutil.rmtree(path, ignore_errors=True)
    of_cache = f"{len(note.lost)} objects of DVC's cache"
    by_umo = f", {len(note.kept)} files and folders that umo wrote" if note.kept else ""
    return f"{said}, {len(work)} pieces of {WORK}, {of_cache}, {', '.join(map(str, outs)) or 'no output'}{by_umo}"


def _drop_lines(path: Path, search: Search) -> int:
    """Take the lines with an id of theirs out of a file, whose other lines stay as they are; returns how many."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if not search.reader.mentioned(line)]
    if len(kept) < len(lines):
        with replacing(path) as temporary:
            temporary.write_bytes(b"".join(kept))
    return len(lines) - len(kept)


def _remove_kept(paths: Sequence[Path], lists: Mapping[Path, bytes]) -> None:
    """Take out what commands of umo wrote; the lists first, for the photographs that tell whose a case is may go."""
    for file, rest in lists.items():
        if rest:
            with replacing(file) as temporary:
                temporary.write_bytes(rest)
        else:
            file.unlink()
    for path in paths:
        lock = path / kept.LOCK
        with alone("umo train", lock) if lock.is_file() else nullcontext():
            _remove(path)


@contextmanager
def _no_stage_runs() -> Iterator[None]:
    """A stage that was started by hand would publish the person again; DVC knows nothing of it."""
    with ExitStack() as stack:
        for stage in STAGES:
            stack.enter_context(alone(stage, WORK / f"{stage}.lock"))
        yield


def refuse_shared_cache() -> None:
    """Raise BadInput where DVC's cache lies elsewhere: what is removed from it must be nobody else's."""
    where = cache()
    if not where.is_relative_to(Path.cwd() / CACHE):
        raise BadInput(f"DVC's cache is {where}: others may use it; remove cache.dir, dvc fetch, and run forget again")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _drop_from_lock(outs: list[Path]) -> None:
    """Forget in dvc.lock the stages whose outputs went, so that their old versions in the cache are garbage."""

    def goes(out: Path) -> bool:
        """Or went in an interrupted forget. A LoRA that is not there may just not have been pulled."""
        return out in outs or not (out.exists() or out.is_relative_to(products.TRAINED))

    held = yaml.safe_load(LOCK.read_text()) if LOCK.exists() else {}
    stages = held.get("stages", {})
    kept = {
        name: entry
        for name, entry in stages.items()
        if not any(goes(Path(out["path"])) for out in entry.get("outs", ()))
    }
    if len(kept) < len(stages):
        write_text(LOCK, yaml.safe_dump(held | {"stages": kept}, sort_keys=False))
