"""How many heads the embedded judge finds: photographs of bench/people.csv, turned, darkened, brightened, reduced.

Its people need the network once: `make calibrate`, or `python -m bench.people .work/people`.
"""

import csv
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np

from bench.result import Result
from pipelines.core.shards import WORK
from umo import faces
from umo.errors import BadInput
from umo.faces.calibration import Photo
from umo.images import read_image

NAME = "judge-recall"
BAR = 0.95
ANGLES = (0, 15, 25, 35, 45, 60, 90, 180)
MAX_SIDE = 640


def run(each: int = 2) -> Result:
    """The least share found upright or leaning to 35 degrees, of grey and of coloured photographs.

    Args:
        each: photographs of a person at most.
    """
    photos, judge = read_photos(each), faces.load("dlib")
    found: dict[str, dict[str, float]] = {}
    for kind, pictures in photos.items():
        found[kind] = {
            name: round(float(np.mean([bool(judge.detect([change(picture)])[0]) for picture in pictures])), 4)
            for name, change in changes().items()
        } | {"photographs": len(pictures)}
    leaning = [f"turned {angle}" for angle in ANGLES if angle <= 35]
    return Result(
        name=NAME,
        value=min(row[name] for row in found.values() for name in leaning),
        unit="share of heads found, leaning to 35 degrees",
        against="photographs with one head each",
        bar=BAR,
        lower_is_better=False,
        details={"found": found},
    )


def read_photos(each: int) -> dict[str, list[np.ndarray]]:
    """Grey and coloured photographs, so many of a person at most; larger ones are reduced to MAX_SIDE."""
    folder = WORK / "people"
    photos: dict[str, list[np.ndarray]] = {"grey": [], "colour": []}
    seen: dict[str, int] = {}
    for part in ("fit.csv", "held-out.csv"):
        if not (folder / part).exists():
            raise BadInput(f"{folder / part}: missing: run python -m bench.people {folder}, which needs the network")
        with (folder / part).open(newline="") as file:
            for row in csv.DictReader(file):
                seen[row["person"]] = seen.get(row["person"], 0) + 1
                if seen[row["person"]] <= each:
                    picture = read_image(folder / row["path"], max_side=MAX_SIDE)
                    photos[Photo(picture, row["person"]).stratum].append(picture)
    return photos


def changes() -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """What is done to a picture, by name."""
    result: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        f"turned {angle}": partial(turned, angle=angle) for angle in ANGLES
    }
    for gain in (0.25, 0.12, 1.8):
        result[f"light x {gain}"] = partial(lit, gain=gain)
    for side in (96, 48, 32, 24):
        result[f"reduced to {side} px"] = partial(reduced, side=side)
    return result


def lit(picture: np.ndarray, gain: float) -> np.ndarray:
    return np.clip(picture * gain, 0, 255).astype(np.uint8)


def turned(picture: np.ndarray, angle: float) -> np.ndarray:
    """By so many degrees, in a grey square that holds it whole."""
    height, width = picture.shape[:2]
    side = int(np.hypot(height, width))
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1)
    matrix[:, 2] += [(side - width) / 2, (side - height) / 2]
    return cv2.warpAffine(picture, matrix, (side, side), borderValue=(128, 128, 128))


def reduced(picture: np.ndarray, side: int) -> np.ndarray:
    """Its shorter side is twice as long as this, and so its face about this large, in the middle of a grey 512 px."""
    factor = 2 * side / min(picture.shape[:2])
    small = cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    whole = np.full((512, 512, 3), 128, np.uint8)
    height, width = (min(512, length) for length in small.shape[:2])
    whole[:height, :width] = small[:height, :width]
    return whole
