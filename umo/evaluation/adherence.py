"""Whether a picture does as its prompt says: how many people, in which order, on what background.

Written for the prompts of `umo.scenes.prompts`.
"""

import re
from collections.abc import Sequence

import numpy as np

from umo.matching import NONE
from umo.scenes.prompts import COLOURS, TEXTURES

GREYS = frozenset({"white", "grey"})
_BACKGROUND = re.compile(rf"\bin front of a (?:{'|'.join(TEXTURES)}) ({'|'.join(COLOURS)}) background\b")
_MARGIN = 0.06


def people_right(n: int, n_faces: int) -> bool:
    """Whether as many faces were drawn as people were asked for."""
    return n_faces == n


def order_right(
    assignment: Sequence[int], boxes: Sequence[Sequence[float]], places: Sequence[float | None] | None
) -> bool | None:
    """Whether people stand from left to right as they were asked to.

    Args:
        assignment: a face a reference, or NONE.
        boxes: x0, y0, x1, y1 a face.
        places: where each was asked to stand, from left to right (`Case.asked_places`).

    Returns:
        None where there is nothing to order: fewer than two different places, or not exactly one face a reference.
    """
    if places is None or NONE in assignment or len(boxes) != len(assignment):
        return None
    stands = [(place, boxes[face][0] + boxes[face][2]) for place, face in zip(places, assignment, strict=True)]
    placed = [(place, middle) for place, middle in stands if place is not None]
    pairs = [(left, right) for place, left in placed for other, right in placed if place < other]
    return all(left < right for left, right in pairs) if pairs else None


def background_right(picture: np.ndarray, prompt: str) -> bool | None:
    """Whether the strip above the people is nearest to the colour that the prompt names.

    Args:
        picture: (H, W, 3) uint8 RGB.

    Returns:
        None where the prompt names no colour. White and grey differ by the light alone and count as one.
    """
    named = _BACKGROUND.search(prompt)
    if named is None:
        return None
    strip = picture[: max(1, round(_MARGIN * picture.shape[0]))].reshape(-1, 3)
    found = nearest_colour(np.median(strip, axis=0))
    return found == named[1] or {found, named[1]} <= GREYS


def nearest_colour(rgb: np.ndarray) -> str:
    """The key of COLOURS whose share of red, green and blue is nearest: texture and light change the brightness."""
    share = np.asarray(rgb, np.float64) + 1
    share /= share.sum()
    return min(COLOURS, key=lambda name: float(np.linalg.norm(share - np.array(COLOURS[name]) / sum(COLOURS[name]))))
