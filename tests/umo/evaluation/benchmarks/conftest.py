"""Benchmarks in their published layouts, of coloured people that `BandJudge` tells apart."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from umo.evaluation.benchmarks import BENCHMARKS, scoring
from umo.evaluation.judges import Spec

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
ORANGE, TEAL = (255, 120, 0), (0, 200, 120)


def vector(colour: tuple[int, int, int]) -> np.ndarray:
    """As `BandJudge` embeds a colour."""
    return np.array(colour, float) / np.linalg.norm(colour)


def cosine(a: tuple[int, int, int], b: tuple[int, int, int]) -> float:
    return float(vector(a) @ vector(b))


@pytest.fixture
def put(tmp_path: Path, bands) -> Callable[..., Path]:
    """put(path, *colours): a picture of these people below the test's folder."""

    def write(path: str, *colours: tuple[int, int, int], **options: object) -> Path:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(bands(*colours)).save(file, **options)
        return file

    return write


@pytest.fixture
def put_json(tmp_path: Path) -> Callable[[str, object], Path]:
    def write(path: str, content: object) -> Path:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
        return file

    return write


@pytest.fixture
def scored(tmp_path: Path, named_bands) -> Callable[..., dict]:
    """scored(name) -> metrics.json of `results` for the benchmark in `root`, judged by `BandJudge`."""

    def run(name: str, results: str = "results", out: str = "out") -> dict:
        return scoring.score(BENCHMARKS[name], tmp_path / "root", tmp_path / results, tmp_path / out, Spec("bands"))

    return run
