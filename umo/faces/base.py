"""What every face model offers: detect and embed. One adapter a file, one contract test for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, overload

import numpy as np

if TYPE_CHECKING:
    import torch

    from umo.faces.calibration import Calibration


@dataclass(frozen=True, slots=True)
class Face:
    """A face found in a picture; pixel coordinates of that picture, x to the right, y down.

    Attributes:
        box: (4,) float32, x0, y0, x1, y1; may reach outside the picture.
        landmarks: (5, 2) float32: the person's right eye (on the left of an upright picture), the left eye, the tip of
            the nose, the mouth's right corner, its left corner.
        score: the detector's confidence, higher is surer; its range is the detector's own.
    """

    box: np.ndarray
    landmarks: np.ndarray
    score: float

    @property
    def side(self) -> float:
        """The shorter side of the box in pixels."""
        return float(min(self.box[2] - self.box[0], self.box[3] - self.box[1]))


class FaceModel(Protocol):
    """A detector and an embedder that belong together.

    Pictures are (H, W, 3) uint8 RGB arrays of any sizes, or one float tensor (B, 3, H, W) in [-1, 1] as a customizer
    draws them. Where `differentiable` is true, `embed` of a tensor carries the gradient to its pixels (boxes and
    landmarks are constants) and none to the network's weights; it is not aliased where a face is larger than its crop.

    Attributes:
        name: the key of the adapter in `umo.faces.MODELS`.
        licence: of the weights.
        dimension: d, the length of an embedding.
        differentiable: whether `embed` of a tensor has a gradient.
        files: the weight files, whose checksums are the model's identity.
        embedder: the one of them that tells people apart.
        same_person_cosine: two faces at or above it are the same person (see `umo.faces.calibration`).
        calibration: what it comes from, and on whom that was fitted; None where there is none.
    """

    name: str
    licence: str
    dimension: int
    files: tuple[Path, ...]
    embedder: Path
    same_person_cosine: float
    calibration: Calibration | None

    @property
    def differentiable(self) -> bool: ...

    def detect(self, images: Sequence[np.ndarray] | torch.Tensor) -> list[list[Face]]:
        """Faces of each picture, the most certain first; never a gradient."""

    @overload
    def embed(self, images: Sequence[np.ndarray], faces: Sequence[Sequence[Face]]) -> np.ndarray: ...

    @overload
    def embed(self, images: torch.Tensor, faces: Sequence[Sequence[Face]]) -> torch.Tensor: ...

    def embed(self, images, faces):
        """Unit vectors (n, d) float32 of all faces, picture by picture, in the given order; n = 0 gives (0, d)."""
