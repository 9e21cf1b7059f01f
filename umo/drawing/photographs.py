"""A user's own photographs of people -> references as a base was trained on them."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from umo import faces
from umo.colour import as_srgb
from umo.errors import BadInput
from umo.images import require_image
from umo.quality import clear_factor, square_crop

Photograph = Path | str | Image.Image | np.ndarray
FINDER = "opencv_zoo"  # whose boxes the references of exported sets are cut around


def read_photograph(photograph: Photograph, what: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB, upright; an array is taken as it is. BadInput names `what` where a file cannot be read."""
    if isinstance(photograph, np.ndarray):
        return photograph
    if isinstance(photograph, Image.Image):
        return np.asarray(as_srgb(ImageOps.exif_transpose(photograph)))
    return require_image(Path(photograph), what)


def face_square(picture: np.ndarray, factor: float, what: str) -> tuple[slice, slice]:
    """Rows and columns of the square around the largest face in (H, W, 3) uint8 RGB, without anybody else's face.

    Args:
        factor: its side in longer sides of the face's box; smaller where it would meet another face.
        what: named on stderr where there are several faces, and in BadInput where there is none.
    """
    found = faces.load(FINDER).detect([picture])[0]
    if not found:
        raise BadInput(f"{what}: no face found; choose another photograph, or take it as it is (--no-crop)")
    if len(found) > 1:
        print(f"{what}: {len(found)} faces; the largest is taken", file=sys.stderr)
    box = max(found, key=lambda face: face.side).box
    clear = min(factor, clear_factor(box, [face.box for face in found]))
    cut, matrix = square_crop(picture, box, clear, max(picture.shape))
    left, top = (round(-float(offset)) for offset in matrix[:, 2])
    return slice(top, top + len(cut)), slice(left, left + len(cut))
