"""A training in a folder of its own, which a killed run is taken up in: `umo train`."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from umo.errors import BadInput, WorkFailed
from umo.faces.weights import sha256
from umo.model_index import model_files
from umo.training import checkpoints
from umo.training.reading import open_sets
from umo.training.run import LIVE, Job, fit
from umo.training.sets import TRAINING, people_of, refuse_seen, refuse_shared


def train(job: Job, source: str, out: Path) -> None:
    """What `umo train` does: `fit` in `out/.partial`, where a killed run is taken up, then the result in `out`.

    Args:
        source: reference sets, as `reading.open_sets` takes them.

    Raises:
        BadInput: the sets, the reward or the job are unfit, or `out` holds another run or a finished one.
        WorkFailed: another process trains into `out`, or no finite gradient.
    """
    if (out / TRAINING).exists():
        raise BadInput(f"{out}: a training is finished there: draw with it, or choose another --out")
    reward = {file.name: sha256(file) for file in job.face_model().files}
    files = model_files(job.base)
    sets = open_sets(source)
    people = {split: people_of(rows) for split, rows in sets.items()}
    refuse_shared(source, people, "split by person")
    refuse_seen(people.get("test", ()), job.base, job.lora)
    splits = ("train", "validation") if job.recipe.validate_every else ("train",)
    rows = {split: sets[split] for split in splits if split in sets}
    partial = out / ".partial"
    if os.environ.get("RANK", "0") != "0":  # one of several processes; the first does the files
        fit(job, rows, partial, partial / "encoded", out / LIVE)
        return
    digests = [[split, *(sample.digest for sample in found)] for split, found in rows.items()]  # reads, and checks, all
    partial.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(partial / "lock", timeout=0):
            _refuse_another(job, files, digests, reward, out)
            result = fit(job, rows, partial, partial / "encoded", out / LIVE)
            assert result is not None
            for path in sorted(result.iterdir()):  # training.json, which ends the run, comes last
                path.replace(out / path.name)
            shutil.rmtree(partial)
    except Timeout as error:
        raise WorkFailed(f"{out}: another process trains into it; wait for it, or choose another --out") from error


def _refuse_another(
    job: Job, files: Sequence[Path], digests: Sequence[Sequence[str]], reward: Mapping[str, str], out: Path
) -> None:
    """What a run has encoded and learned fits no other; one without a checkpoint gives way."""
    partial, note = out / ".partial", out / ".partial/run.json"
    present = {
        "base": [_state(path) for path in files],
        "lora": _state(job.lora) if job.lora else None,
        "data": hashlib.sha256(json.dumps(digests).encode()).hexdigest(),
        "method": job.method,
        "recipe": job.recipe.model_dump(),
        "reward": reward,
    }
    text = json.dumps(present)
    begun = note.read_text() if note.exists() else ""
    if begun == text:
        return
    if checkpoints.find(partial / "checkpoints"):
        others = [key for key, value in json.loads(text).items() if json.loads(begun)[key] != value]
        raise BadInput(f"{out}: a run with another {' and '.join(others)} was begun there: choose another --out")
    shutil.rmtree(partial / "encoded", ignore_errors=True)
    note.write_text(text)


def _state(path: Path) -> list[str | int]:
    """A file as it is now, without reading gigabytes."""
    if not path.exists():
        raise BadInput(f"{path}: no such file; give the LoRA of the base, or leave --lora out")
    return [path.name, path.stat().st_size, path.stat().st_mtime_ns]
