"""Taking somebody out: the ledger, finished work, products and what DVC keeps of them. Every step can be repeated."""

import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import yaml

from pipelines.core import products
from pipelines.core.ledger import LEDGER, Ledger
from pipelines.core.locks import alone
from pipelines.core.params import STAGES
from pipelines.core.shards import WORK
from pipelines.forget.note import Note
from pipelines.forget.places import CACHE, Clear, found
from pipelines.forget.scan import Scan
from pipelines.service.commands import ask
from pipelines.service.leftovers import DVC_LOCK
from pipelines.service.repository import LOCK, cache
from umo.errors import BadInput
from umo.files import write_text


def what_holds(scan: Scan, models_too: bool) -> tuple[list[Path], list[Path]]:
    """Pieces of finished work, and DVC outputs, that hold the person; with `models_too` also LoRAs trained on them."""
    outs = [path for path in sorted(found(Clear.OUT, *[Clear.MODEL] * models_too)) if scan.holds(path)]
    report = found(Clear.REPORT)
    if outs or any(map(scan.holds, report)):
        outs[:0] = report  # first: what is left of it cannot be read
    return found(Clear.WHOLE) + [path for path in found(Clear.WORK) if scan.holds(path)], outs


def purge(scan: Scan, note: Note) -> str:
    """Remove what holds the person; the next `dvc repro` makes it anew without them. Returns what went, in a line.
    WorkFailed where another DVC command, or a stage, is at work.
    """
    work, outs = what_holds(scan, note.drop_models)
    with _no_stage_runs(), alone("a DVC command", DVC_LOCK):
        ledger = Ledger.read()
        if rows := ledger.drop(note.image_ids, note.person_id):
            ledger.write()
        _drop_from_lock(outs)  # first: an output that a kill left half removed is not found again, its stage is
        for path in [*work, *outs]:
            _remove(path)
    ask("gc", "--workspace", "--force")
    # Outside the repository too, DVC remembers names and hashes of its files.
    for path in (*found(Clear.COPIES), *re.findall(r"Repo\.site_cache_dir: (.+)", ask("version"))):
        shutil.rmtree(path, ignore_errors=True)
    return f"{rows} rows of {LEDGER}, {len(work)} pieces of {WORK}, {', '.join(map(str, outs)) or 'no output'}"


@contextmanager
def _no_stage_runs() -> Iterator[None]:
    """A stage that was started by hand would publish the person again; DVC knows nothing of it."""
    with ExitStack() as stack:
        for stage in STAGES:
            stack.enter_context(alone(stage, WORK / f"{stage}.lock"))
        yield


def refuse_shared_cache() -> None:
    """Raise BadInput where DVC's cache lies elsewhere: what this workspace does not use is removed from it, so that it
    must be nobody else's.
    """
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
