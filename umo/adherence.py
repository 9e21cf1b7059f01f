"""Whether a picture does as its prompt says: how many people, in which order, on what background.

Beside the identity metrics, because a reward for likeness could ruin it. Written for the prompts of `umo.prompts`.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from umo import metrics
from umo.cases import Case
from umo.images import ImageError, read_image
from umo.matching import NONE
from umo.prompts import COLOURS

GREYS = frozenset({"white", "grey"})
_BACKGROUND = re.compile(rf"\b({'|'.join(COLOURS)}) background")
_MARGIN = 0.06


def adherence(cases: Sequence[Case], root: Path, rows: Sequence[Mapping[str, Any]]) -> dict[str, metrics.Estimate]:
    """Shares of pictures that do as their prompt says, with intervals over cases.

    Args:
        cases: as drawn.
        root: what their paths are relative to.
        rows: records.SCORES of these cases.

    Returns:
        people_right, order_right (of those with the right number), background_right.
    """
    prompts = {case.case_id: case.prompt for case in cases}
    judged = [row for row in rows if row["n_faces"] is not None]
    values: dict[str, list[float | None]] = {
        "people_right": [people_right(row["n"], row["n_faces"]) for row in judged],
        "order_right": [order_right(row["assignment"], row["boxes"]) for row in judged],
        "background_right": [_background(root / row["image"], prompts[row["case_id"]]) for row in judged],
    }
    return {name: metrics.over_cases(judged, found) for name, found in values.items()}


def _background(path: Path, prompt: str) -> bool | None:
    try:
        return background_right(read_image(path), prompt)
    except ImageError:
        return False


def people_right(n: int, n_faces: int) -> bool:
    """Whether as many faces were drawn as people were asked for."""
    return n_faces == n


def order_right(assignment: Sequence[int], boxes: Sequence[Sequence[float]]) -> bool | None:
    """Whether people stand from left to right in the order of their references.

    Args:
        assignment: a face a reference, or NONE.
        boxes: x0, y0, x1, y1 a face.

    Returns:
        None where there is nothing to order: one person, or not exactly one face a reference.
    """
    if len(assignment) < 2 or NONE in assignment or len(boxes) != len(assignment):
        return None
    middles = [boxes[face][0] + boxes[face][2] for face in assignment]
    return all(left < right for left, right in pairwise(middles))


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
