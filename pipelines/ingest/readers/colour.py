"""HDR and wide-gamut video as sRGB.

A code value of SDR stays what it is, as players take BT.709's curve for the screen's own; only its primaries change.
"""

from functools import cache

import numpy as np

from umo.colour import D65, HLG_GAMMA, HLG_PEAK, PRIMARIES, REFERENCE_WHITE, SRGB, TRANSFERS, light, to_xyz

PQ, HLG = 16, 18  # transfer functions of H.273: SMPTE ST 2084, ARIB STD-B67
BT709, BT2020 = 1, 9  # primaries of H.273
KNEE = 0.9  # of white: what is darker stays as it is, what is brighter is squeezed in between


def needs_conversion(transfer: int, primaries: int) -> bool:
    """Whether a film's pixels are not sRGB as they are; both numbers as in ITU-T H.273."""
    return transfer in (PQ, HLG) or primaries in PRIMARIES


def to_srgb(picture: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """As a viewer in SDR shows it.

    Args:
        picture: (H, W, 3) uint16 RGB, full range, encoded as the film is.
        transfer, primaries: as in ITU-T H.273; HDR that does not tell its primaries has BT.2020's.

    Returns: (H, W, 3) uint8 sRGB; HDR's diffuse white (203 cd/m2) is near 1, the hue of highlights is kept.
    """
    hdr = transfer in (PQ, HLG)
    if primaries not in PRIMARIES and primaries != BT709:
        primaries = BT2020 if hdr else BT709
    shown = _curve(transfer)[picture]
    if transfer == HLG:  # BT.2100: the screen's light follows from the scene's luminance
        luminance = shown @ _to_xyz(primaries)[1].astype(np.float32)
        shown *= HLG_PEAK / REFERENCE_WHITE * luminance[..., None] ** (HLG_GAMMA - 1)
    shown = np.maximum(shown @ np.linalg.solve(_to_xyz(BT709), _to_xyz(primaries)).T.astype(np.float32), 0)
    if hdr:
        brightest = shown.max(axis=-1, keepdims=True)
        over = np.maximum(brightest - KNEE, 0) / (1 - KNEE)
        shown *= np.where(over > 0, (KNEE + (1 - KNEE) * over / (1 + over)) / np.maximum(brightest, KNEE), 1)
    return _srgb_codes()[np.round(65535 * np.minimum(shown, 1)).astype(np.uint16)]


@cache
def _srgb_codes() -> np.ndarray:
    """(65536,) uint8: the code of every light from 0 to 1 (IEC 61966-2-1)."""
    x = np.linspace(0, 1, 1 << 16)
    return np.round(255 * np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055)).astype("u1")


@cache
def _curve(transfer: int) -> np.ndarray:
    """(65536,) float32: the light of every code."""
    codes = np.linspace(0, 1, 1 << 16)
    return light(codes, TRANSFERS[transfer] if transfer in (PQ, HLG) else "srgb").astype(np.float32)


def _to_xyz(primaries: int) -> np.ndarray:
    """With D65 for white, or greys would be tinted."""
    return to_xyz((*PRIMARIES.get(primaries, SRGB)[:3], D65))
