"""HDR and wide-gamut video as sRGB.

A code value of SDR stays what it is, as players take BT.709's curve for the screen's own; only its primaries change.
"""

from functools import cache

import numpy as np

PQ, HLG = 16, 18  # transfer functions of H.273: SMPTE ST 2084, ARIB STD-B67
BT709, BT2020 = 1, 9  # primaries of H.273
WHITE = 203.0  # cd/m2 of a white sheet in HDR (ITU-R BT.2408)
HLG_PEAK = 1000.0  # cd/m2, with BT.2100's system gamma of 1.2
KNEE = 0.9  # of white: what is darker stays as it is, what is brighter is squeezed in between

_D65 = (0.3127, 0.3290)
_P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
_CORNERS = {  # x, y of red, green, blue; white is D65, or greys would be tinted
    BT709: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    BT2020: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    11: _P3,  # SMPTE RP 431-2
    12: _P3,  # SMPTE EG 432-1
}
WIDE = frozenset(_CORNERS) - {BT709}


def needs_conversion(transfer: int, primaries: int) -> bool:
    """Whether a film's pixels are not sRGB as they are; both numbers as in ITU-T H.273."""
    return transfer in (PQ, HLG) or primaries in WIDE


def to_srgb(picture: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """As a viewer in SDR shows it.

    Args:
        picture: (H, W, 3) uint16 RGB, full range, encoded as the film is.
        transfer, primaries: as in ITU-T H.273; HDR that does not tell its primaries has BT.2020's.

    Returns: (H, W, 3) uint8 sRGB; HDR's diffuse white (203 cd/m2) is near 1, the hue of highlights is kept.
    """
    hdr = transfer in (PQ, HLG)
    if primaries not in _CORNERS:
        primaries = BT2020 if hdr else BT709
    light = _curve(transfer)[picture]
    if transfer == HLG:  # BT.2100: the screen's light follows from the scene's luminance
        luminance = light @ _to_xyz(primaries)[1].astype(np.float32)
        light *= HLG_PEAK / WHITE * luminance[..., None] ** 0.2
    light = np.maximum(light @ np.linalg.solve(_to_xyz(BT709), _to_xyz(primaries)).T.astype(np.float32), 0)
    if hdr:
        brightest = light.max(axis=-1, keepdims=True)
        over = np.maximum(brightest - KNEE, 0) / (1 - KNEE)
        light *= np.where(over > 0, (KNEE + (1 - KNEE) * over / (1 + over)) / np.maximum(brightest, KNEE), 1)
    return _srgb_codes()[np.round(65535 * np.minimum(light, 1)).astype(np.uint16)]


@cache
def _srgb_codes() -> np.ndarray:
    """(65536,) uint8: the code of every light from 0 to 1 (IEC 61966-2-1)."""
    light = np.linspace(0, 1, 1 << 16)
    return np.round(255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)).astype("u1")


@cache
def _curve(transfer: int) -> np.ndarray:
    """(65536,) float32: the light of every code."""
    return {PQ: _pq, HLG: _hlg}.get(transfer, _srgb)(np.linspace(0, 1, 1 << 16)).astype(np.float32)


def _pq(codes: np.ndarray) -> np.ndarray:
    """The screen's light, white being 1 (SMPTE ST 2084)."""
    root = codes ** (32 / 2523)
    return 10_000 / WHITE * (np.maximum(root - 107 / 128, 0) / (2413 / 128 - 2392 / 128 * root)) ** (16384 / 2610)


def _hlg(codes: np.ndarray) -> np.ndarray:
    """The scene's light, 0 to 1 (ARIB STD-B67)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(codes <= 0.5, codes**2 / 3, (np.exp((codes - c) / a) + b) / 12)


def _srgb(codes: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1."""
    return np.where(codes <= 0.04045, codes / 12.92, ((codes + 0.055) / 1.055) ** 2.4)


def _to_xyz(primaries: int) -> np.ndarray:
    """(3, 3) from linear RGB to CIE XYZ, white having Y = 1."""
    x, y = np.array((*_CORNERS[primaries], _D65)).T
    xyz = np.stack([x / y, np.ones(4), (1 - x - y) / y])
    return xyz[:, :3] * np.linalg.solve(xyz[:, :3], xyz[:, 3])
