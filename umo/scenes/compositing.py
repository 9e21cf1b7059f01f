"""Scenes composited from real faces: backgrounds with a name, a soft-edged head, light and colour that vary.

Pure functions of arrays and a random generator; used to synthesise scenes, to paste references, and to train the
embedded base.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from umo.scenes.prompts import COLOURS

# Where the eyes' middle and the mouth's middle lie in a head's own frame: the unit is the distance between the two,
# the origin is halfway, y points down. The head's outline is an ellipse in that frame, hair and chin included.
_OUTLINE_CENTRE = (0.0, -0.28)
_OUTLINE_RADII = (1.32, 1.72)
_SOFT_EDGE = 0.18


@dataclass(frozen=True)
class Light:
    """How a face is lit: `gain` multiplies all channels, `tint` each channel, `slope` brightens towards the right."""

    gain: float = 1.0
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    slope: float = 0.0


def background(name: str, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Draw a background: (H, W, 3) float32 in [0, 255].

    Args:
        name: "TEXTURE COLOUR", such as "plain blue"; see TEXTURES and COLOURS.
        size: height, width in pixels.
    """
    texture, colour = name.split(" ")
    base = np.array(COLOURS[colour], np.float32) + rng.uniform(-10, 10, 3).astype(np.float32)
    height, width = size
    y, x = np.mgrid[:height, :width].astype(np.float32)
    period = rng.uniform(0.15, 0.3) * height
    if texture == "plain":
        pattern = (x / width - 0.5) * rng.uniform(-0.25, 0.25)
    elif texture == "striped":
        angle = rng.uniform(0, np.pi)
        pattern = 0.22 * np.sign(np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period))
    elif texture == "checked":
        pattern = 0.2 * np.sign(np.sin(2 * np.pi * x / period) * np.sin(2 * np.pi * y / period))
    else:
        coarse = rng.normal(0, 0.3, (max(2, height // 16), max(2, width // 16))).astype(np.float32)
        pattern = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(base * (1 + np.asarray(pattern, np.float32)[..., None] * 0.8), 0, 255).astype(np.float32)


def head_frame(landmarks: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Centre (2,), scale (pixels from the eyes' middle to the mouth's) and roll (radians) of a face.

    The scale falls back on the eyes' distance where the head is tilted far back or down.
    """
    eye_left, eye_right, _, *mouth = np.asarray(landmarks, np.float64).reshape(5, 2)
    eyes, lips = (eye_left + eye_right) / 2, np.mean(mouth, axis=0)
    across = eye_right - eye_left
    scale = max(float(np.hypot(*(lips - eyes))), 0.9 * float(np.hypot(*across)))
    return (eyes + lips) / 2, scale, float(np.arctan2(across[1], across[0]))


def placement(landmarks: np.ndarray, centre: tuple[float, float], scale: float, roll: float = 0.0) -> np.ndarray:
    """Similarity transform (2, 3) that puts a photographed head at `centre` with `scale` pixels eyes to mouth.

    Args:
        landmarks: (5, 2) in the photograph's pixels.
        roll: degrees that the head is turned further, clockwise.
    """
    origin, size, _ = head_frame(landmarks)
    angle = np.radians(roll)
    rotation = scale / size * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.concatenate([rotation, (np.asarray(centre) - rotation @ origin)[:, None]], axis=1)


def place_face(
    scene: np.ndarray, photo: np.ndarray, landmarks: np.ndarray, matrix: np.ndarray, light: Light = Light()
) -> np.ndarray:
    """Blend a photographed head into a scene through a soft elliptic mask; returns a new scene.

    Args:
        scene: (H, W, 3) float32 in [0, 255].
        photo: (h, w, 3) uint8 RGB.
        landmarks: (5, 2) in the photograph's pixels.
        matrix: (2, 3) from the photograph's pixels to the scene's, as `placement` gives it.
    """
    height, width = scene.shape[:2]
    shrink = float(np.hypot(*matrix[:, 0]))
    source = photo if shrink >= 0.6 else cv2.GaussianBlur(photo, (0, 0), 0.5 / shrink)
    size, edge = (width, height), cv2.BORDER_REPLICATE
    warped = cv2.warpAffine(source, matrix, size, flags=cv2.INTER_LINEAR, borderMode=edge).astype(np.float32)
    mask = head_mask(transform(landmarks, matrix), (height, width))
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :, None]
    lit = np.clip(warped * light.gain * np.asarray(light.tint, np.float32) * (1 + light.slope * x), 0, 255)
    return (scene * (1 - mask) + lit * mask).astype(np.float32)


def head_mask(landmarks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Soft mask of a head: (H, W, 1) float32 in [0, 1]; `landmarks` (5, 2) in the mask's pixels."""
    centre, scale, roll = head_frame(landmarks)
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    dx, dy = (x - centre[0]) / scale, (y - centre[1]) / scale
    along, down = np.cos(roll) * dx + np.sin(roll) * dy, -np.sin(roll) * dx + np.cos(roll) * dy
    u = (along - _OUTLINE_CENTRE[0]) / _OUTLINE_RADII[0]
    v = (down - _OUTLINE_CENTRE[1]) / _OUTLINE_RADII[1]
    distance = np.sqrt(u * u + v * v)
    return np.clip((1 - distance) / _SOFT_EDGE + 0.5, 0, 1)[..., None].astype(np.float32)


def transform(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Points (k, 2) through an affine (2, 3)."""
    return np.asarray(points, np.float64).reshape(-1, 2) @ matrix[:, :2].T + matrix[:, 2]


def transform_box(box: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """A box x0, y0, x1, y1 through a similarity: its centre moved, its sides scaled, still upright. (4,) float32."""
    x0, y0, x1, y1 = box
    centre = transform(np.array([[(x0 + x1) / 2, (y0 + y1) / 2]]), matrix)[0]
    half = np.array([x1 - x0, y1 - y0]) / 2 * np.hypot(*matrix[:, 0])
    return np.concatenate([centre - half, centre + half]).astype(np.float32)
