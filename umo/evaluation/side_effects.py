"""What a reward for likeness could ruin, measured beside the identity metrics.

`people_right`, `order_right` and `background_right`: the picture does as its prompt says (`umo.evaluation.adherence`).
`sharpness_error`: it is as sharp as a real picture; less is better.
`diffusion_loss`: the model still knows its task (`umo.evaluation.held_out`); less is better.
`variety`: another seed gives another picture; less is a collapse.

A value that a method cannot have is None: no target, no model, no further seeds.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from umo.evaluation import metrics
from umo.evaluation.adherence import background_right, order_right, people_right
from umo.evaluation.cases import Case
from umo.images import ImageError, filled, read_image
from umo.quality import sharpness

ROUNDING = 2e-5  # the sharpness that rounding to 8 bits alone gives a picture; what is below counts as this


def side_effects(
    cases: Sequence[Case],
    root: Path,
    rows: Sequence[Mapping[str, Any]],
    losses: Mapping[str, float],
    varieties: Mapping[str, float | None],
) -> list[dict[str, Any]]:
    """What `records.SIDE_EFFECTS` says of each picture.

    Args:
        cases: as drawn.
        root: what their paths are relative to.
        rows: `records.SCORES` of these cases.
        losses, varieties: by case_id, where there are any; they are the case's, the same for all its pictures.
    """
    by_id = {case.case_id: case for case in cases}
    return [
        {
            **{key: row[key] for key in ("case_id", "seed", "n", "people")},
            **_of_picture(row, by_id[row["case_id"]], root),
            "diffusion_loss": losses.get(row["case_id"]),
            "variety": varieties.get(row["case_id"]),
        }
        for row in rows
    ]


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, metrics.Estimate]:
    """Rows of `records.SIDE_EFFECTS` -> each value's mean and interval over the cases that have it."""
    return {name: metrics.over_cases(rows, [row[name] for row in rows]) for name in metrics.SIDE_EFFECTS}


def _of_picture(row: Mapping[str, Any], case: Case, root: Path) -> dict[str, Any]:
    """A picture that cannot be read has no background and no sharpness."""
    judged = row["n_faces"] is not None
    picture = _picture(root / row["image"])
    target = _picture(root / case.target) if case.target else None
    return {
        "people_right": people_right(row["n"], row["n_faces"]) if judged else None,
        "order_right": order_right(row["assignment"], row["boxes"], case.asked_places) if judged else None,
        "background_right": False if picture is None else background_right(picture, case.prompt),
        "sharpness_error": None if picture is None or target is None else sharpness_error(picture, target),
    }


def _picture(path: Path) -> np.ndarray | None:
    """(H, W, 3) uint8; None where it cannot be read, which the evaluation lists as a failure."""
    try:
        return read_image(path)
    except ImageError:
        return None


def sharpness_error(picture: np.ndarray, target: np.ndarray) -> float:
    """How far a picture's sharpness is from a real one's, in powers of two: 0 is alike, 1 twice or half as sharp.

    Args:
        picture: (H, W, 3) uint8.
        target: (h, w, 3) uint8; scaled and cut to the picture's size.
    """
    drawn, real = (max(sharpness(image), ROUNDING) for image in (picture, filled(target, picture.shape[:2])))
    return abs(float(np.log2(drawn / real)))


def variety(pictures: Sequence[np.ndarray]) -> float | None:
    """How different pictures of one case are, in [0, 1]: the root mean square difference of two, a mean over pairs.

    Args:
        pictures: (H, W, 3) uint8 each, of one size.

    Returns:
        None where there are fewer than two.
    """
    scaled = [picture.astype(np.float64) / 255 for picture in pictures]
    pairs = [float(np.sqrt(np.mean((a - b) ** 2))) for a, b in combinations(scaled, 2)]
    return float(np.mean(pairs)) if pairs else None


def varieties(cases: Sequence[Case], root: Path) -> dict[str, float | None]:
    """case_id -> `variety` of the case's pictures; one that cannot be read is left out.

    Args:
        cases: drawn with several seeds.
        root: what their paths are relative to.
    """
    return {
        case.case_id: variety([one for path in case.images if (one := _picture(root / path)) is not None])
        for case in cases
    }
