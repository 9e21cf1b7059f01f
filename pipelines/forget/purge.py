"""Taking somebody out: the ledger, finished work, products and what DVC keeps of them. Every step can be repeated."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import yaml

from pipelines.core import products
from pipelines.core.ledger import LEDGER, Ledger
from pipelines.core.locks import alone
from pipelines.core.shards import WORK
from pipelines.forget.note import NOTE, Note
from pipelines.forget.scan import Scan
from umo.errors import BadInput, WorkFailed
from umo.files import write_text

DATASETS, RUNS = Path("datasets"), Path("runs")
LOCK = Path("dvc.lock")
CACHE, TEMPORARY = Path(".dvc/cache"), Path(".dvc/tmp")
ENCODED = WORK / "train" / "encoded"


def what_holds(scan: Scan, models_too: bool) -> tuple[list[Path], list[Path]]:
    """Folders of finished work, and DVC outputs, that hold the person.

    Args:
        models_too: also LoRAs whose training saw them.
    """
    outs = [path for path in _outputs(models_too) if path.exists() and scan.holds(path)]
    work = [path for path in _work() if _unreadable(path) or scan.holds(path)]
    if outs and products.REPORT.exists() and products.REPORT not in outs:
        outs.insert(0, products.REPORT)  # first: what is left of it cannot be read, and it goes if another one does
    return work, outs


def _work() -> Iterator[Path]:
    """The pieces of .work: a stage's shards one by one, any other folder (photos, a smoke run, a bench) whole."""
    from pipelines.__main__ import STAGES

    for path in sorted(WORK.iterdir()) if WORK.exists() else ():
        if path.name in STAGES and path.is_dir():
            yield from sorted(path.iterdir())
        elif path != NOTE and path not in checksums():
            yield path


def checksums() -> list[Path]:
    """Where the checksums of files on this disk are remembered, of the user's own too; no names, no pictures."""
    return sorted(WORK.glob("digests.sqlite*"))


def _unreadable(path: Path) -> bool:
    """What may hold them and no scan can tell: latents, pictures scaled for the report, what a killed run left.

    The latter goes on under its key alone, and the keys change.
    """
    return path == ENCODED or path.parent.name == products.REPORT.name or path.suffix in (".tmp", ".partial")


def _outputs(models_too: bool) -> list[Path]:
    """DVC's outputs below datasets/ and runs/, and what killed runs left of publishing them."""
    from dvc.repo import Repo

    root = Path.cwd()
    with Repo() as repo:
        found = [Path(str(out.fs_path)) for out in repo.index.outs]
    inside = sorted({path.relative_to(root) for path in found if path.is_relative_to(root)})
    left = [path for folder in (DATASETS, RUNS) for path in folder.rglob(".*.tmp")]
    return [
        path
        for path in [*inside, *left]
        if path.parts[0] in (DATASETS.name, RUNS.name)
        and path != LEDGER
        and (models_too or not path.is_relative_to(products.TRAINED))
    ]


def purge(scan: Scan, note: Note) -> str:
    """Remove what holds the person; the next `dvc repro` makes it anew without them. Returns what went, in a line.

    Raises:
        WorkFailed: another DVC command is at work.
    """
    from dvc.lock import LockError
    from dvc.repo import Repo, lock_repo

    logging.getLogger("dvc").setLevel(logging.ERROR)  # it warns of every output that is not there
    work, outs = what_holds(scan, note.drop_models)
    try:
        with _no_stage_runs(), Repo() as repo, lock_repo(repo):
            ledger = Ledger.read()
            if rows := ledger.drop(note.image_ids, note.person_id):
                ledger.write()
            _drop_from_lock(outs)  # first: an output that a kill left half removed is not found again, its stage is
            for path in [*work, *outs]:
                _remove(path)
            repo.gc(workspace=True, force=True)
            records = repo.site_cache_dir
    except LockError as error:
        raise WorkFailed("another DVC command is at work here: wait for it, then run forget again") from error
    for path in (CACHE / "runs", TEMPORARY / "exps", *([Path(records)] if records else [])):
        shutil.rmtree(path, ignore_errors=True)  # runs that could be restored, copies, names in DVC's own records
    return f"{rows} rows of {LEDGER}, {len(work)} pieces of {WORK}, {', '.join(map(str, outs)) or 'no output'}"


@contextmanager
def _no_stage_runs() -> Iterator[None]:
    """A stage that was started by hand would publish the person again; DVC knows nothing of it."""
    from pipelines.__main__ import STAGES

    with ExitStack() as stack:
        for stage in STAGES:
            stack.enter_context(alone(stage, WORK / f"{stage}.lock"))
        yield


def refuse_shared_cache() -> None:
    """All that this workspace does not use is removed from DVC's cache, so that it must be nobody else's.

    Raises:
        BadInput: the cache lies elsewhere.
    """
    from dvc.repo import Repo

    with Repo() as repo:
        where = Path(repo.cache.local.path)
    if not where.is_relative_to(Path.cwd() / CACHE):
        raise BadInput(f"DVC's cache is {where}: others may use it; remove cache.dir, dvc fetch, and run forget again")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _drop_from_lock(outs: list[Path]) -> None:
    """Forget in dvc.lock the stages whose outputs went, so that their old versions in the cache are garbage."""
    if not LOCK.exists():
        return
    found = yaml.safe_load(LOCK.read_text())
    gone = {str(path) for path in outs}
    stages = found.get("stages", {})
    kept = {
        name: entry
        for name, entry in stages.items()
        if not any(out["path"] in gone or _missing(Path(out["path"])) for out in entry.get("outs", ()))
    }
    if len(kept) < len(stages):
        write_text(LOCK, yaml.safe_dump(found | {"stages": kept}, sort_keys=False))


def _missing(path: Path) -> bool:
    """Whether a product is not there: what an interrupted forget removed. A LoRA may just not have been pulled."""
    return not path.exists() and not path.is_relative_to(products.TRAINED)
