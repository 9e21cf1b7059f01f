"""Contact sheets: rows of pictures side by side on white, for people to look at."""

from collections.abc import Sequence

import cv2
import numpy as np

GAP = 6


def contact_sheet(rows: Sequence[Sequence[np.ndarray]], height: int = 128) -> np.ndarray:
    """Lay out rows of pictures.

    Args:
        rows: (H, W, 3) uint8 RGB pictures of any size; each is scaled to `height` pixels.

    Returns:
        (H, W, 3) uint8 RGB; the last picture of every row begins at the same place.
    """
    scaled = [[_to_height(picture, height) for picture in row] for row in rows]
    lead = max(sum(picture.shape[1] + GAP for picture in row[:-1]) for row in scaled)
    width = lead + max(row[-1].shape[1] for row in scaled)
    sheet = np.full((len(rows) * (height + GAP) - GAP, width, 3), 255, np.uint8)
    for number, row in enumerate(scaled):
        y, x = number * (height + GAP), 0
        for picture in row[:-1]:
            sheet[y : y + height, x : x + picture.shape[1]] = picture
            x += picture.shape[1] + GAP
        sheet[y : y + height, lead : lead + row[-1].shape[1]] = row[-1]
    return sheet


def _to_height(picture: np.ndarray, height: int) -> np.ndarray:
    scale = height / picture.shape[0]
    size = (max(1, round(picture.shape[1] * scale)), height)
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
