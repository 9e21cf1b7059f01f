"""Recognisers as their authors publish them, as torch weights: IR-SE50, AdaFace, CVLface, CurricularFace, FaceNet.

None is shipped or downloaded, and no code of theirs is run: of a file its weights are read and nothing else. They read
the faces that another model finds. Calibrate one once: `umo calibrate PHOTOS.csv --faces FILE --out
FILE-WITHOUT-SUFFIX.calibration.json` (of a folder: beside it, with its name).
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from umo import faces
from umo.errors import BadInput
from umo.faces.align import CROP, TEMPLATE, crops_of, landmarks_of, similarity, warp_array
from umo.faces.backbones import InceptionResNet, State, backbone
from umo.faces.base import Face
from umo.faces.calibration import load_calibration
from umo.faces.pixels import is_tensor, to_uint8
from umo.texts import read_yaml

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
# Where a folder of CVLface's keeps its weights.
FOLDER_FILES = ("model.safetensors", "pretrained_model/model.pt")
FOLDER_SETTINGS = "pretrained_model/model.yaml"
PREFIXES = ("module.", "model.", "backbone.", "net.")
FACENET_SIDE = 160
AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Reads:
    """How a network is shown a face.

    Attributes:
        crop: `aligned` by landmarks as ArcFace's; `halved`, the same at twice the side and then scaled down; `box`, the
            detector's, stretched to a square.
        swapped: whether it reads blue first.
        std: that pixels less 127.5 are divided by.
    """

    crop: Literal["aligned", "halved", "box"] = "aligned"
    swapped: bool = False
    std: float = 127.5

    @property
    def side(self) -> int:
        return FACENET_SIDE if self.crop == "box" else CROP


class Checkpoint:
    """See `umo.faces.base.FaceModel`. A tensor is rounded to bytes to find faces, and not to embed them.

    Args:
        path: a file of weights, or a folder of CVLface's.
        detector: finds the faces; a key of `umo.faces.MODELS`.
        device: cpu, cuda, cuda:1, ...
        calibrated: false leaves `same_person_cosine` undefined (nan).
        calibration: a file of `umo calibrate`, instead of the one beside it.
    """

    licence = "the weights' own"

    def __init__(
        self,
        path: Path,
        detector: str = "dlib",
        device: str = "cpu",
        calibrated: bool = True,
        calibration: Path | None = None,
    ) -> None:
        self.embedder = weights_in(path)
        state, self.reads = read_state(path)
        self._network = backbone(state, str(self.embedder)).to(device)
        if isinstance(self._network, InceptionResNet):
            self.reads = Reads("box", std=128.0)
        self.name, self.device = path.name if path.is_dir() else path.stem, device
        self._finder = faces.load(detector, calibrated=False, device=device)
        self.files: tuple[Path, ...] = (*self._finder.files, self.embedder)
        found = None
        if calibrated:
            own = path.with_name(f"{self.name}.calibration.json")
            found = load_calibration(calibration or own, (self.embedder,))
        self.calibration, self.same_person_cosine = found, found.same_person_cosine if found else nan
        self.dimension = int(self._run(torch.zeros(1, 3, self.reads.side, self.reads.side)).shape[1])

    @property
    def differentiable(self) -> bool:
        """Of those whose crop is: cut by landmarks at the network's own size."""
        return self.reads.crop == "aligned"

    def detect(self, images: Sequence[np.ndarray] | Tensor) -> list[list[Face]]:
        """Faces of each picture, the most certain first."""
        return self._finder.detect(images)

    @overload
    def embed(self, images: Sequence[np.ndarray], faces: Sequence[Sequence[Face]]) -> np.ndarray: ...

    @overload
    def embed(self, images: Tensor, faces: Sequence[Sequence[Face]]) -> Tensor: ...

    def embed(self, images: Sequence[np.ndarray] | Tensor, faces: Sequence[Sequence[Face]]) -> np.ndarray | Tensor:
        """Unit vectors (n, d) float32; of a tensor with its gradient where it is `differentiable`."""
        if is_tensor(images) and self.differentiable:
            return self._embed_crops(crops_of((images.float() + 1) * 127.5, faces))
        pictures = to_uint8(images) if is_tensor(images) else images
        crops = [self._crops(picture, found) for picture, found in zip(pictures, faces, strict=True)]
        side = self.reads.side
        stacked = np.concatenate([np.zeros((0, 3, side, side), np.float32), *crops])
        with torch.no_grad():
            vectors = self._embed_crops(torch.from_numpy(stacked).to(self.device))
        return vectors.to(images.device) if is_tensor(images) else vectors.cpu().numpy()

    def _crops(self, picture: np.ndarray, found: Sequence[Face]) -> np.ndarray:
        """(n, 3, side, side) float32 RGB in 0..255."""
        if self.reads.crop == "box":
            cut = [_boxed(picture, face.box, self.reads.side) for face in found]
            return np.stack(cut) if cut else np.zeros((0, 3, self.reads.side, self.reads.side), np.float32)
        if self.reads.crop == "aligned":
            return warp_array(picture, similarity(landmarks_of(found)))
        crops = warp_array(picture, similarity(landmarks_of(found), 2 * TEMPLATE), 2 * CROP)
        return crops.reshape(-1, 3, CROP, 2, CROP, 2).mean(axis=(3, 5))

    def _embed_crops(self, crops: Tensor) -> Tensor:
        if not len(crops):
            return crops.new_zeros((0, self.dimension))
        return F.normalize(torch.cat([self._run(part) for part in crops.split(AT_ONCE)]), dim=1)

    def _run(self, crops: Tensor) -> Tensor:
        return self._network((crops.flip(1) if self.reads.swapped else crops).sub(127.5).div(self.reads.std))


def is_checkpoint(path: Path) -> bool:
    """Whether a path is of the forms read here."""
    return path.suffix in SUFFIXES if path.is_file() else any((path / name).is_file() for name in FOLDER_FILES)


def weights_in(path: Path) -> Path:
    """The file that holds the weights."""
    return path if path.is_file() else next(path / name for name in FOLDER_FILES if (path / name).is_file())


def read_state(path: Path) -> tuple[State, Reads]:
    """Weights by their plain names, and how their network is shown a face.

    A checkpoint of Lightning's is AdaFace's, which reads blue first; a folder is CVLface's, whose settings say; a .bin
    is CurricularFace's.

    Raises BadInput where there are no weights.
    """
    file = weights_in(path)
    found = _loaded(file)
    lightning = isinstance(found.get("state_dict"), dict)
    tensors = {
        _plain(name): value.float()
        for name, value in (found["state_dict"] if lightning else found).items()
        if isinstance(value, torch.Tensor) and not name.startswith("head.")
    }
    if not tensors:
        raise BadInput(f"{file}: holds no weights; copy it again")
    if path.is_dir():
        settings = path / FOLDER_SETTINGS
        said = read_yaml(settings) if settings.is_file() else {}
        colours = said.get("color_space", "RGB") if isinstance(said, dict) else "RGB"
        return tensors, Reads(swapped=colours == "BGR")
    return tensors, Reads("halved" if file.suffix == ".bin" else "aligned", swapped=lightning)


class _Nothing:
    """Stands for whatever else a checkpoint keeps: it can be made and filled, and does nothing."""

    def __init__(self, *args: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _loaded(file: Path) -> dict[str, Any]:
    """Tensors alone; of other objects, such as a trainer's settings, nothing is run."""
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        others = torch.serialization.get_unsafe_globals_in_checkpoint(file)
        with torch.serialization.safe_globals([(_Nothing, name) for name in others]):
            found = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, TypeError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"{file}: no weights that can be read ({reason}); copy it again") from error
    except Exception as error:  # safetensors' own
        raise BadInput(f"{file}: no weights that can be read ({error}); copy it again") from error
    return found if isinstance(found, dict) else {}


def _plain(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _boxed(picture: np.ndarray, box: np.ndarray, side: int) -> np.ndarray:
    """(3, side, side) float32: a box cut at the picture's edges and stretched to a square, as facenet-pytorch does."""
    height, width = picture.shape[:2]
    left, top = max(0, int(box[0])), max(0, int(box[1]))
    right, bottom = min(width, int(box[2])), min(height, int(box[3]))
    cut = picture[top : max(bottom, top + 1), left : max(right, left + 1)]
    return cv2.resize(cut, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32).transpose(2, 0, 1)
