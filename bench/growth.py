"""A data set that grows by a hundredth: what its stages cost then, against what they cost for all of it.

The photographs are ORL's, each turned, scaled and lit a little otherwise; every ten of them are somebody's, and who is
who is written down instead of found. `identify`, `curate` and `caption` look at everything again and are not counted.
"""

import shutil
from contextlib import chdir
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import polars as pl
import yaml

from bench.photos import PHOTOS, portraits
from bench.result import Result
from bench.timing import Stopwatch
from pipelines.caption import stage as caption
from pipelines.core import products
from pipelines.core.ledger import SPLITS
from pipelines.core.params import PARAMS, load
from pipelines.core.shards import ROOT, WORK
from pipelines.curate import stage as curate
from pipelines.export import stage as export
from pipelines.ingest import stage as ingest
from pipelines.measure import stage as measure
from pipelines.synthesise import stage as synthesise
from umo import records

NAME = "growth"
BAR = 0.05
A_PERSON = 10  # photographs
SOURCE = {"path": str(PHOTOS), "licence": "for measuring only", "consent": "research", "label": "folder"}


def run(photos: int = 10_000) -> Result:
    """Seconds of ingest, measure, synthesise and export after a hundredth was added / of the same, nothing done before.

    Args:
        photos: how many there are before.
    """
    folder = WORK.resolve() / "bench" / f"{NAME}-{photos}"
    shutil.rmtree(folder, ignore_errors=True)
    turns, scenes = [], []
    for count in (photos, photos + photos // 100):
        write_photos(folder / PHOTOS, count)
        with chdir(folder):
            (folder / "datasets/sources.yaml").write_text(yaml.safe_dump({"photos": SOURCE}))
            shutil.copy(ROOT / PARAMS, folder)
            turns.append(stages())
            scenes.append(set(products.scenes()["image_id"]))
    first, second = (sum(turn.values()) for turn in turns)
    return Result(
        name=NAME,
        value=second / first,
        unit=f"seconds with {photos // 100} photographs more / of {photos:,} from nothing",
        against="the same stages where nothing is done yet",
        bar=BAR,
        lower_is_better=True,
        details={
            "photos": photos,
            "people": photos // A_PERSON,
            "scenes": len(scenes[0]),
            "scenes_drawn_again": len(scenes[1] - scenes[0]),
            "seconds": {
                name: {stage: round(value, 2) for stage, value in turn.items()}
                for name, turn in zip(("all", "a hundredth more"), turns, strict=True)
            },
        },
    )


def write_photos(folder: Path, count: int) -> None:
    """Photographs 0 to count - 1, ten a folder."""
    heads = portraits()
    for number in range(count):
        person, k = divmod(number, A_PERSON)
        path = folder / f"{person:06d}" / f"{k}.jpg"
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        head = heads[(person * A_PERSON + k) % len(heads)]
        rng = np.random.default_rng(number)
        middle = (head.shape[1] / 2, head.shape[0] / 2)
        turn = cv2.getRotationMatrix2D(middle, rng.uniform(-8, 8), rng.uniform(0.9, 1.1))
        turned = cv2.warpAffine(head, turn, head.shape[1::-1], borderMode=cv2.BORDER_REPLICATE)
        lit = np.clip(turned * rng.uniform(0.8, 1.2) + rng.normal(0, 2, turned.shape), 0, 255)
        cv2.imwrite(str(path), lit.astype(np.uint8))


def knobs(stage: str) -> Any:
    """A section of params.yaml, as the stage's own class."""
    return load(stage)


def stages() -> dict[str, float]:
    """Seconds of the stages that are counted, run in this folder."""
    machine, watch = knobs("machine"), Stopwatch()
    with watch("ingest"):
        ingest.run(knobs("ingest"), machine)
    with watch("measure photographs"):
        measure.run(knobs("measure"), machine, products.INGESTED.name)
    write_people()
    with watch("synthesise"):
        synthesise.run(knobs("synthesise"), machine)
    with watch("measure scenes"):
        measure.run(knobs("measure"), machine, products.SYNTHESISED.name)
    curate.run(knobs("curate"), machine)
    caption.run(knobs("caption"), machine)
    with watch("export"):
        export.run(knobs("export"), machine)
    return watch.seconds


def write_people() -> None:
    """The product of `identify` with the people whom the folders name."""
    faces = products.faces(products.MEASURED_PHOTOS, ["face_id", "image_id", "side_px", "embedding"])
    largest = faces.sort("side_px", "face_id", descending=[True, False]).unique("image_id", keep="first")
    labels = products.images(products.INGESTED).select("image_id", person_id=pl.col("label").str.slice(-6))
    owned = largest.join(labels, on="image_id").sort("face_id")
    vectors = owned["embedding"].to_numpy().astype(np.float32)
    numbers = owned["person_id"].rank("dense").to_numpy() - 1
    centres = np.zeros((numbers.max() + 1, vectors.shape[1]), np.float32)
    np.add.at(centres, numbers, vectors)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    names = owned["person_id"].unique().sort()
    split = [SPLITS[0 if k % 20 < 13 else 1 if k % 20 < 15 else 2] for k in range(len(names))]
    people = [
        dict.fromkeys(records.PEOPLE.names)
        | {"person_id": name, "n": A_PERSON, "centre": centre, "component": name, "split": of, "keep": True}
        for name, centre, of in zip(names, centres, split, strict=True)
    ]
    products.PEOPLE.mkdir(exist_ok=True)
    records.write(products.PEOPLE / products.PEOPLE_TABLE, people, records.PEOPLE)
    rows = owned.select("face_id", "image_id", "person_id", cosine=1.0, keep=True, reason=pl.lit(None, pl.String))
    schema = records.PEOPLE_FACES
    records.write(products.PEOPLE / products.PEOPLE_FACES_TABLE, rows.to_arrow().cast(schema), schema)
