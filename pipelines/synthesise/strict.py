"""The strict face filter of drawn pictures. Pure: embeddings and boxes in, an assignment or the first reason out."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipelines.synthesise.params import Strict
from umo.matching import assign, assigned_cosines, cosine_matrix


@dataclass(frozen=True)
class Panel:
    """A drawn picture and the k faces found in it.

    Attributes:
        data: its PNG bytes.
        size: height, width in pixels.
        boxes: (k, 4) x0, y0, x1, y1 in pixels.
        embeddings: (k, d) unit vectors.
    """

    data: bytes
    size: tuple[int, int]
    boxes: np.ndarray
    embeddings: np.ndarray

    @property
    def centres(self) -> np.ndarray:
        """(k,) horizontal centre of each face as a part of the width."""
        return (self.boxes[:, 0] + self.boxes[:, 2]) / 2 / self.size[1]


@dataclass(frozen=True)
class Shown:
    """Somebody in an accepted panel: the face's rank there, the person, the photograph that was drawn from, if any."""

    face: int
    person_id: str
    source: Mapping | None = None


def group_fault(panel: Panel, n: int, strict: Strict) -> str | None:
    """Why a picture does not show n different people well enough to tell who they are; None where it does."""
    k = len(panel.boxes)
    if k < n:
        return "a person is missing" if k else "no face"
    if k > n:
        return "somebody extra"
    sides = np.minimum(panel.boxes[:, 2] - panel.boxes[:, 0], panel.boxes[:, 3] - panel.boxes[:, 1])
    if sides.min() < strict.min_side:
        return f"a face under {strict.min_side:g} px"
    cross = (panel.embeddings @ panel.embeddings.T)[np.triu_indices(n, 1)]
    if n > 1 and cross.max() > strict.max_cross_cosine:
        return f"two people over {strict.max_cross_cosine:g}"
    return None


def pair(wanted: np.ndarray, sources: np.ndarray, panel: Panel, strict: Strict) -> np.ndarray | str:
    """Who is who in a picture of n faces.

    Args:
        wanted: (n, d) unit vectors: what each person should look like.
        sources: (n, d): what each person was drawn from, and must not be a copy of.

    Returns:
        (n,) the face of each person, or the first reason to turn the picture away.
    """
    cosines = cosine_matrix(wanted, panel.embeddings)
    order = assign(cosines)
    if assigned_cosines(cosines, order).min() < strict.min_cosine:
        return f"a face under {strict.min_cosine:g} to its person"
    if (sources * panel.embeddings[order]).sum(1).max() > strict.max_cosine:
        return f"a face over {strict.max_cosine:g} to what it was drawn from"
    return order
