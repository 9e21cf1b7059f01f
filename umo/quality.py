"""Cheap descriptions of a picture or a face: sharpness, rough pose, perceptual hash. No model."""

from collections.abc import Sequence

import cv2
import imagehash
import numpy as np
from PIL import Image


def sharpness(image: np.ndarray) -> float:
    """Of (H, W, 3) uint8 RGB: the variance of the Laplacian of the luminance in [0, 1].

    Measured at 64 px on the shorter side, so that sizes compare.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    scale = 64 / min(grey.shape)
    if scale < 1:
        grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return float(cv2.Laplacian(grey.astype(np.float32) / 255, cv2.CV_32F).var())


def perceptual_hash(image: np.ndarray) -> str:
    """64-bit DCT hash (pHash) of an (H, W, 3) uint8 RGB picture as 16 hexadecimal digits."""
    return str(imagehash.phash(Image.fromarray(image)))


def crop(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The part of an (H, W, 3) picture inside a box x0, y0, x1, y1, at least one pixel."""
    height, width = image.shape[:2]
    x0, y0 = (int(np.clip(value, 0, limit - 1)) for value, limit in zip(box[:2], (width, height), strict=True))
    x1, y1 = (int(np.clip(value, 1, limit)) for value, limit in zip(box[2:], (width, height), strict=True))
    return image[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]


def pose(landmarks: np.ndarray) -> tuple[float, float, float]:
    """Rough yaw, pitch, roll in degrees from five landmarks (5, 2) in pixels.

    Roll is the slope of the eyes' line. Yaw and pitch come from where the nose lies between eyes and mouth, taking
    the nose as half an eye distance in front of the face's plane; good to about ten degrees, enough to tell a frontal
    face from a turned one. Positive yaw: the nose points to the picture's right; positive pitch: up.
    """
    left, right, nose, *mouth = np.asarray(landmarks, np.float64)
    across = right - left
    distance = max(float(np.hypot(*across)), 1e-6)
    roll = np.degrees(np.arctan2(across[1], across[0]))
    axis = across / distance
    down = np.array([-axis[1], axis[0]])
    eyes, lips = (left + right) / 2, np.mean(mouth, axis=0)
    yaw = np.degrees(np.arcsin(np.clip((nose - (eyes + lips) / 2) @ axis / (0.5 * distance), -1, 1)))
    height = max(float((lips - eyes) @ down), 1e-6)
    # On a level face the nose's tip lies about 0.58 of the way from the eyes to the mouth.
    pitch = np.degrees(np.arcsin(np.clip((0.58 - (nose - eyes) @ down / height) * height / (0.5 * distance), -1, 1)))
    return float(yaw), float(pitch), float(roll)


def clear_factor(box: np.ndarray, boxes: Sequence[np.ndarray]) -> float:
    """How large `square_crop`'s factor may be before the square around a box (4,) x0, y0, x1, y1 meets another face.

    At least 1, the face alone. `boxes` are all faces of the picture, this one among them.
    """
    x, y = (box[:2] + box[2:]) / 2
    gaps = [
        max(other[0] - x, x - other[2], other[1] - y, y - other[3]) for other in boxes if not np.array_equal(other, box)
    ]
    return max(1.0, 2 * float(min(gaps)) / float(max(box[2] - box[0], box[3] - box[1]))) if gaps else float("inf")


def square_crop(image: np.ndarray, box: np.ndarray, factor: float, max_side: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut a square around a face, moved or made smaller so that it stays inside the picture.

    Args:
        image: (H, W, 3) uint8 RGB.
        box: (4,) x0, y0, x1, y1 in pixels.
        factor: the square's side in longer sides of the box.
        max_side: a larger square is scaled down to it (pixels).

    Returns:
        The crop (s, s, 3) and the matrix (2, 3) from the picture's pixels to the crop's.
    """
    height, width = image.shape[:2]
    side = int(min(round(factor * max(box[2] - box[0], box[3] - box[1])), height, width))
    x, y = (
        int(np.clip(round(float(middle - side / 2)), 0, limit - side))
        for middle, limit in (((box[0] + box[2]) / 2, width), ((box[1] + box[3]) / 2, height))
    )
    cut = image[y : y + side, x : x + side]
    scale = min(1.0, max_side / side)
    if scale < 1:
        cut = cv2.resize(cut, (max_side, max_side), interpolation=cv2.INTER_AREA)
    # Pixel centres: what lies at x + 0.5 in the cut lies at (x + 0.5) * scale in the crop.
    return cut, np.array([[scale, 0, (0.5 - x) * scale - 0.5], [0, scale, (0.5 - y) * scale - 0.5]])
