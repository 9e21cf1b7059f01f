"""The measure stage against decoding, detecting and embedding alone: what shards, quality and writing cost.

Both in this process, with the same networks in the same runtime, on the same photographs, in turns.
"""

import os
import shutil
import time
from pathlib import Path
from statistics import median

from bench.photos import inside, stage, workspace
from bench.result import Result
from pipelines.core import products
from pipelines.core.executors import Machine
from pipelines.core.params import load
from pipelines.core.shards import WORK
from pipelines.core.store import picture_bytes
from pipelines.measure import stage as measure
from umo import faces, records
from umo.faces.base import FaceModel
from umo.images import read_image

NAME = "measure-floor"
BAR = 0.9


def run(photos: int = 400, repeats: int = 5) -> Result:
    """Pictures a second of the stage / of the bare loop.

    Args:
        photos: how many.
        repeats: of each, in turns after one turn that is not measured; the median of the turns' ratios counts.
    """
    folder = workspace(NAME, photos)
    stage(folder, "ingest")
    with inside(folder):
        params = load("measure")
        assert isinstance(params, measure.Params)
        model = faces.load(params.faces)
        turns = [(seconds_bare(model), seconds_of_stage(params, Machine())) for _ in range(1 + repeats)][1:]
        cores = len(os.sched_getaffinity(0))
        spread = seconds_of_stage(params, Machine(executor="process", workers=cores))
    bare, whole = median(one for one, _ in turns), median(other for _, other in turns)
    return Result(
        name=NAME,
        value=median(one / other for one, other in turns),
        unit="pictures a second of the stage / of the bare loop",
        against="decode + detect + embed alone: the same runtime, networks, photographs and threads",
        bar=BAR,
        lower_is_better=False,
        details={
            "photos": photos,
            "repeats": repeats,
            "ratios": [round(one / other, 3) for one, other in turns],
            "pictures_per_second": {
                "bare": round(photos / bare, 1),
                "stage": round(photos / whole, 1),
                f"stage in {cores} processes, their start included": round(photos / spread, 1),
            },
        },
    )


def seconds_bare(model: FaceModel) -> float:
    """A picture after the other: read, decoded, searched, its faces embedded; nothing is kept."""
    started = time.perf_counter()
    for shard in products.shard_folders(products.INGESTED, products.IMAGES_TABLE):
        with (shard / products.PICTURES).open("rb") as tar:
            for row in records.read(shard / products.IMAGES_TABLE, records.IMAGES).to_pylist():
                picture = read_image(picture_bytes(tar, row))
                model.embed([picture], model.detect([picture]))
    return time.perf_counter() - started


def seconds_of_stage(params: measure.Params, machine: Machine) -> float:
    """The whole stage from nothing to published products."""
    for made in (WORK / "measure", products.MEASURED):
        shutil.rmtree(Path(made), ignore_errors=True)
    started = time.perf_counter()
    measure.run(params, machine, products.INGESTED.name)
    return time.perf_counter() - started
