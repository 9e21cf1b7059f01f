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
        (H, W, 3) uint8 RGB; columns are aligned, and the last picture of every row stands in the last column.
    """
    columns = max(len(row) for row in rows)
    scaled = [[_to_height(picture, height) for picture in row] for row in rows]
    placed = [{**dict(enumerate(row[:-1])), columns - 1: row[-1]} for row in scaled]
    widths = [max((row[k].shape[1] for row in placed if k in row), default=0) for k in range(columns)]
    starts = [sum(widths[:k]) + k * GAP for k in range(columns)]
    sheet = np.full((len(rows) * (height + GAP) - GAP, starts[-1] + widths[-1], 3), 255, np.uint8)
    for number, row in enumerate(placed):
        y = number * (height + GAP)
        for column, picture in row.items():
            sheet[y : y + height, starts[column] : starts[column] + picture.shape[1]] = picture
    return sheet


def _to_height(picture: np.ndarray, height: int) -> np.ndarray:
    scale = height / picture.shape[0]
    size = (max(1, round(picture.shape[1] * scale)), height)
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
