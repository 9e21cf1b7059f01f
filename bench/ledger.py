"""The ledger of splits at the size that the project is for, in a process of its own: time, and peak memory."""

import os
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import polars as pl

from bench.result import Result
from pipelines.core.ledger import COLUMNS, SPLITS, Ledger
from pipelines.core.shards import ROOT
from umo.errors import WorkFailed

NAME = "ledger"
FACES, NEW, FACES_PER_PERSON = 14_000_000, 10_000, 10
SECONDS, GIB = 20, 3
SAMPLE = 10_000_000
BYTES = 104  # a face, of the form before: a row a face


def run(faces: int = FACES) -> Result:
    """The worse of two ratios to what is promised, so that it holds where both do."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "splits.csv"
        write(path, faces)
        size = path.stat().st_size
        command = [sys.executable, "-m", "bench.ledger", str(path)]
        started = time.perf_counter()
        with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}) as process:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        seconds, gib = time.perf_counter() - started, usage.ru_maxrss / 2**20
        if process.returncode:
            raise WorkFailed(f"{' '.join(command[1:])} exited with {process.returncode}")
        packed = _packed(path)
        rows = pl.scan_csv(path).select(pl.col("faces").str.count_matches(" ").sum() + pl.len()).collect().item()
    if rows != faces + NEW:
        raise WorkFailed(f"the ledger has {rows} faces after {NEW} were added to {faces}")
    ratios = {"seconds": seconds / SECONDS, "memory": gib / GIB}
    return Result(
        name=NAME,
        value=max(ratios.values()),
        unit=f"worse of seconds / {SECONDS}, peak GiB / {GIB}",
        against=f"what is promised: {FACES:,} faces loaded and {NEW:,} added in {SECONDS} s and {GIB} GiB",
        bar=1.0,
        lower_is_better=True,
        details={
            "faces": faces,
            "added": NEW,
            "seconds": round(seconds, 2),
            "peak_gib": round(gib, 2),
            "bytes_a_face": {
                "file": round(size / faces, 1),
                "in git": round(size * packed / faces, 1),
                "before": BYTES,
            },
        },
    )


def write(path: Path, faces: int) -> None:
    """A ledger of so many made-up faces."""
    rng = np.random.default_rng(0)
    face_ids, people = _hex(rng.bytes(8 * faces), 16), rng.integers(0, faces // FACES_PER_PERSON, faces)
    names = _hex(rng.bytes(6 * (faces // FACES_PER_PERSON)), 12)
    owned = (
        pl.DataFrame({"person": people, "face": face_ids}).group_by("person").agg(faces=pl.col("face").str.join(" "))
    )
    split = pl.Series(np.array(SPLITS)[rng.choice(3, len(owned), p=(0.9, 0.05, 0.05))])
    owned = owned.with_columns(person_id="p" + names.gather(owned["person"]), split=split)
    owned.select(COLUMNS).write_csv(path)


def add(path: Path) -> None:
    """What `identify` does with it, by itself: load, add, write."""
    ledger = Ledger.read(path)
    rng = np.random.default_rng(1)
    new = pl.DataFrame({"face_id": _hex(rng.bytes(8 * NEW), 16) + "-0", "person_id": "p0123456789ab", "split": "train"})
    ledger.extend(new)
    ledger.write(path)


def _hex(data: bytes, digits: int) -> pl.Series:
    return pl.Series(np.frombuffer(data.hex().encode(), f"S{digits}").astype(str))


def _packed(path: Path) -> float:
    """The part of a file that is left when git has packed it, by zlib on its first megabytes."""
    with path.open("rb") as file:
        sample = file.read(SAMPLE)
    return len(zlib.compress(sample)) / len(sample)


if __name__ == "__main__":
    add(Path(sys.argv[1]))
