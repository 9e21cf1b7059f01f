"""Reading pictures that strangers took: upright RGB arrays, or one line that says why not."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from umo import formats
from umo.colour import as_srgb
from umo.errors import BadInput

MIN_SIDE = 16
MAX_PIXELS = 100_000_000
CONVERT = "convert it to JPEG, PNG or WebP"


class ImageError(ValueError):
    """A picture cannot be used; the message is a reason and a remedy, without the file's name."""


def read_image(source: Path | bytes, max_pixels: int = MAX_PIXELS, max_side: int | None = None) -> np.ndarray:
    """Decode a picture as a viewer shows it: upright, in sRGB, whatever its depth.

    Args:
        source: a file, or its bytes, of a kind in `formats.SUFFIXES`, told by its first bytes. Of several pages or
            frames the first is read.
        max_pixels: a larger picture is refused before it is decoded.
        max_side: JPEG is decoded at the smallest eighth that is still at least this long (fast path for big photos).

    Returns:
        (H, W, 3) uint8 RGB; grey becomes three equal channels, transparency is laid on white. Colours: `as_srgb`;
        samples of more than 8 bits: `to_bytes`, both in umo/colour.py.

    Raises ImageError: empty, of no kind or in no form that is read, truncated, corrupt, under 16 px a side, or over
    `max_pixels`.
    """
    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot be read ({error.strerror}): check the path and its permissions") from error
    if not data:
        raise ImageError("empty file (0 bytes): copy it again from its origin")
    try:
        picture = formats.opened(data)
        if data.startswith(formats.POINTER):
            raise ImageError(formats.POINTED)
        if picture is None:
            raise ImageError(f"not an image: {CONVERT} (what is read: {formats.NAMES})")
        width, height = picture.size
        if min(picture.size) < MIN_SIDE:
            raise ImageError(f"{width}x{height} px is too small: at least {MIN_SIDE} px a side are needed")
        if width * height > max_pixels:
            raise ImageError(f"{width}x{height} px is over the limit of {max_pixels:,} pixels: scale it down")
        return np.asarray(as_srgb(picture.decode(max_side)))
    except ImageError:
        raise
    except Exception as error:  # a damaged file makes the decoders raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        if formats.is_form(data, reason):
            raise ImageError(f"an image in a form that is not read ({reason}): {CONVERT}") from error
        raise ImageError(f"truncated or corrupt ({reason}): copy it again from its origin") from error


def require_image(path: Path, what: str) -> np.ndarray:
    """`read_image` of a picture that the work cannot do without: raises BadInput, `what` standing before the reason."""
    try:
        return read_image(path)
    except ImageError as error:
        raise BadInput(f"{what}: {error}") from error


def filled(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture (H, W, 3) uint8 at a size (height, width): scaled until that is filled, then cut in the middle.

    The scaling is bilinear over the covered area, without the overshoot of sharper kernels, which a base would learn.
    """
    scaled, (left, top) = _cover(picture.shape[:2], size)
    resized = np.asarray(Image.fromarray(picture).resize(scaled, Image.Resampling.BILINEAR))
    return resized[top : top + size[0], left : left + size[1]]


def filled_points(points: np.ndarray, shape: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Where points (n, 2) x, y of a picture of `shape` (height, width) lie after `filled`; outside it if cut off."""
    scaled, corner = _cover(shape, size)
    factor = np.array(scaled) / np.array(shape[::-1])
    return (np.asarray(points) + 0.5) * factor - 0.5 - np.array(corner)


def _cover(shape: tuple[int, int], size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Width and height to scale to so that `size` is filled, and the left and top of the part in the middle."""
    scale = max(size[0] / shape[0], size[1] / shape[1])
    width, height = max(size[1], round(shape[1] * scale)), max(size[0], round(shape[0] * scale))
    return (width, height), ((width - size[1]) // 2, (height - size[0]) // 2)


def encode_png(image: np.ndarray) -> bytes:
    """(H, W, 3) uint8 RGB -> PNG bytes, the same bytes for the same pixels."""
    return _encode(image, format="PNG", compress_level=6)


def encode_jpeg(image: np.ndarray, quality: int = 95) -> bytes:
    """(H, W, 3) uint8 RGB -> JPEG bytes without chroma subsampling."""
    return _encode(image, format="JPEG", quality=quality, subsampling=0)


def _encode(image: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, **options)
    return buffer.getvalue()
