"""Stages of the data engine on a made-up corpus, as a user runs them: a process each, its time and memory measured."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from bench import corpus
from pipelines.core import products
from pipelines.core.params import PARAMS
from pipelines.core.shards import ROOT, WORK, digest, file_digest
from pipelines.smoke import merged
from umo.errors import WorkFailed
from umo.files import replacing
from umo.people.agreement import agreement

CORPORA = WORK / "bench/corpora"
SEED = 7
# What a corpus of this size wants otherwise than 400 photographs do: there are near copies; among so many people many
# are as alike as .5 by chance, and would all be one component; and one of a thousand hinders no split.
CHANGES = {
    "identify": {"max_duplicate_bits": 4, "max_person_cosine": 0.6, "max_component": 1000},
    "machine": {"executor": "serial"},
}


@dataclass(frozen=True)
class Cost:
    """Of a stage's process: wall-clock seconds, and the highest resident memory in GiB."""

    seconds: float
    peak_gib: float


@dataclass(frozen=True)
class Workspace:
    """A folder with a corpus, in which stages run.

    Attributes:
        path: of the folder.
        truth: face_id, image_id, person (-1: nobody that could be told), group.
    """

    path: Path
    truth: pl.DataFrame

    def params(self, **changes: Mapping[str, Any]) -> None:
        """Write the repository's params.yaml with the changes of a large corpus and with these."""
        values = merged(yaml.safe_load((ROOT / PARAMS).read_text()), CHANGES)
        (self.path / PARAMS).write_text(yaml.safe_dump(merged(values, changes), sort_keys=False))

    def stage(self, name: str) -> Cost:
        """Run `python -m pipelines NAME` there.

        Raises:
            WorkFailed: it failed.
        """
        command = [sys.executable, "-m", "pipelines", name]
        started = time.perf_counter()
        with subprocess.Popen(command, cwd=self.path, env=os.environ | {"PYTHONPATH": str(ROOT)}) as process:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise WorkFailed(f"{' '.join(command[1:])} exited with {process.returncode} in {self.path}")
        return Cost(time.perf_counter() - started, usage.ru_maxrss / 2**20)

    def forget(self) -> None:
        """Remove what the stages made."""
        for folder in (WORK, products.PEOPLE, products.CURATED):
            shutil.rmtree(self.path / folder, ignore_errors=True)
        (self.path / "datasets/splits.csv").unlink(missing_ok=True)

    def agreement(self) -> dict[str, dict[str, float]]:
        """What `identify` found with the truth, near copies left out: of all faces that were given to somebody, and of
        all faces, those that are not kept being alone each."""
        people = pl.read_parquet(self.path / products.PEOPLE / products.PEOPLE_TABLE, columns=["person_id", "keep"])
        faces = pl.read_parquet(self.path / products.PEOPLE / products.PEOPLE_FACES_TABLE)
        kept = people.filter("keep")["person_id"]
        found = faces.join(self.truth, on="face_id").filter(
            (pl.col("person") >= 0) & pl.col("reason").ne_missing("near duplicate of another picture")
        )
        number = found["person_id"].rank("dense").fill_null(0).cast(pl.Int64).to_numpy()
        stays = (found["keep"] & found["person_id"].is_in(kept.implode())).fill_null(False).to_numpy()
        alone = np.where(stays, number, -1 - np.arange(len(number)))
        person = found["person"].to_numpy()
        return {
            "clusters": agreement(person[number > 0], number[number > 0]).rounded(),
            "kept": agreement(person, alone).rounded(),
        }


def workspace(faces: int, scratch: Path = CORPORA) -> Workspace:
    """A corpus of so many faces; one that is there already, made by the same code, is taken."""
    path = scratch / f"{faces}-{digest(SEED, file_digest(Path(corpus.__file__)))[:8]}"
    if not (path / corpus.TRUTH).exists():
        with replacing(path) as temporary:
            corpus.write(temporary, faces, seed=SEED)
    found = Workspace(path.resolve(), pl.read_parquet(path / corpus.TRUTH))
    found.params()
    return found


def identify_and_curate(found: Workspace) -> dict[str, Cost]:
    """Both stages from nothing."""
    found.forget()
    return {name: found.stage(name) for name in ("identify", "curate")}


def rounded(costs: Mapping[str, Cost]) -> dict[str, dict[str, float]]:
    """For a result's file."""
    return {name: {"seconds": round(x.seconds, 1), "peak_gib": round(x.peak_gib, 2)} for name, x in costs.items()}
