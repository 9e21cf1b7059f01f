"""From what a picture file means to what a screen shows: 8-bit sRGB over white, from any depth and any colours."""

import io
import struct
from functools import cache, lru_cache
from typing import Any, Literal

import numpy as np
from PIL import ExifTags, Image, ImageCms

# x, y of red, green, blue and white.
Primaries = tuple[tuple[float, float], tuple[float, float], tuple[float, float], tuple[float, float]]
D65 = (0.3127, 0.3290)
SRGB: Primaries = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), D65)
ADOBE: Primaries = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), D65)
PRIMARIES: dict[int, Primaries] = {  # ITU-T H.273, table 2; the others are near enough to sRGB's
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), D65),
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.314, 0.351)),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), D65),
}
Transfer = float | Literal["srgb", "pq", "hlg"]  # a number: the exponent from sample to light
TRANSFERS: dict[int, Transfer] = {4: 2.2, 5: 2.8, 8: 1.0, 16: "pq", 18: "hlg"}  # H.273, table 3; else shown as sRGB
REFERENCE_WHITE = 203  # cd/m2 of PQ and HLG that are white on an sRGB screen (ITU-R BT.2408)
HLG_PEAK, HLG_GAMMA = 1000, 1.2  # of the screen (cd/m2), and from the scene's light to the screen's (BT.2100)
OVERSHOOT = 0.1  # in powers of two: what resampling adds to the greatest value
SAME = 1  # of 255: a profile that moves no colour by more is sRGB, and changes no bit
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_D50 = np.array([0.9642, 1.0, 0.8249])
_MODES = {"GRAY": ("1", "L", "LA"), "CMYK": ("CMYK",), "RGB": ("RGB", "RGBA", "RGBX", "P", "PA", "1", "L", "LA")}


def as_srgb(image: Image.Image) -> Image.Image:
    """A decoded picture of any mode as RGB of 8 bits, transparency laid on white.

    A profile (ICC; PNG's cICP, cHRM and gAMA; the same codes in AVIF; EXIF's mark of Adobe RGB) is converted to sRGB,
    with clipping; light above `REFERENCE_WHITE` is white. A profile that is damaged, or for another kind of picture, is
    left aside as browsers do: the samples are taken for sRGB.
    """
    profile = _profile(image)
    image = _eight_bits(image)
    clear = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    shown = _converted(image, profile)
    if clear:
        alpha = image.convert("RGBA").getchannel("A")
        shown = shown.convert("RGBA")
        shown.putalpha(alpha)
        shown = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown)
    return shown.convert("RGB")


def to_bytes(samples: np.ndarray) -> np.ndarray:
    """Numbers of any depth as uint8 of the same shape.

    Unsigned 16-bit samples keep their upper byte. For floats, signed and 32-bit samples no white is defined: black is
    0, or the least value if that is negative, and white the 2^k - 1 that reaches the greatest (1 for 0.0 to 1.0, 255
    for 0 to 255, 4095 for 12 bits in 32): the brightest is at least about half bright, and only an overshoot of a few
    per cent is cut off. What is not finite counts as the nearest end, NaN as black.
    """
    if samples.dtype.kind == "u" and samples.dtype.itemsize <= 2:
        return (samples >> 8 * (samples.dtype.itemsize - 1)).astype(np.uint8)
    samples = samples.astype(np.float32)
    finite = samples[np.isfinite(samples)]
    least, most = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    black = min(0.0, least)
    white = 2 ** max(1.0, np.ceil(np.log2(most - black + 1) - OVERSHOOT)) - 1
    light = np.nan_to_num((samples - np.float32(black)) * np.float32(255 / white), nan=0, posinf=255, neginf=0)
    return np.clip(np.rint(light), 0, 255).astype(np.uint8)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits in 8; other modes have them already."""
    if not image.mode.startswith(("I", "F")):
        return image
    samples = np.asarray(image)
    if image.mode == "I" and image.format == "PPM":  # Pillow scales every maxval to 65535
        samples = samples.astype(np.uint16)
    grey = Image.fromarray(to_bytes(samples))
    if isinstance(clear := image.info.get("transparency"), int):
        grey.putalpha(Image.fromarray(np.where(samples == clear, 0, 255).astype(np.uint8)))
    return grey


def _profile(image: Image.Image) -> bytes | None:
    """The ICC profile of the samples, made from other marks where there is none; None for sRGB."""
    info: dict[Any, Any] = image.info
    if codes := info.get("cicp"):
        return _made(PRIMARIES.get(codes[0], SRGB), TRANSFERS.get(codes[1], "srgb"))
    if icc := info.get("icc_profile"):
        return icc
    if "srgb" not in info and ("gamma" in info or "chromaticity" in info):
        return _of_png(info.get("gamma"), info.get("chromaticity"))
    return _made(ADOBE, 563 / 256) if _is_adobe(image) else None


def _of_png(gamma: float | None, chromaticity: tuple[float, ...] | None) -> bytes | None:
    """Of gAMA and cHRM. Within libpng's tolerances (5 %, .01) they mean sRGB, which gAMA can only approximate."""
    transfer: Transfer = 1 / gamma if gamma and abs(gamma * 2.2 - 1) > 0.05 else "srgb"
    primaries = SRGB
    if chromaticity and len(chromaticity) == 8:
        white, red, green, blue = zip(chromaticity[::2], chromaticity[1::2], strict=True)
        if np.abs(np.subtract((red, green, blue, white), SRGB)).max() > 0.01:
            primaries = (red, green, blue, white)
    return _made(primaries, transfer)


def _is_adobe(image: Image.Image) -> bool:
    """Whether EXIF says Adobe RGB in DCF's way: the interoperability index is R03."""
    try:
        exif = image.getexif()
        return bool(exif) and exif.get_ifd(ExifTags.IFD.Interop).get(ExifTags.Interop.InteropIndex) == "R03"
    except Exception:  # a damaged tag must not cost the picture
        return False


def _converted(image: Image.Image, profile: bytes | None) -> Image.Image:
    """In sRGB where the profile says otherwise and fits the picture; else as it is."""
    if image.mode == "LAB":
        lab = ImageCms.buildTransform(ImageCms.createProfile("LAB"), _srgb(), "LAB", "RGB")
        return lab.apply(image)
    space, transform = _transform(profile) if profile else ("", None)
    if transform is None or image.mode not in _MODES[space]:
        return image
    return transform.apply(image.convert(_mode(space)))


def _mode(space: str) -> str:
    return {"GRAY": "L"}.get(space, space)


@cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@lru_cache(maxsize=16)
def _transform(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """Colour space of a profile, and what brings its samples to sRGB; None where nothing does, or nothing need."""
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = own.profile.xcolor_space.strip()
        if space not in _MODES:
            return space, None
        transform = ImageCms.buildTransform(own, _srgb(), _mode(space), "RGB")
    except (OSError, ValueError, TypeError, ImageCms.PyCMSError):
        return "", None
    if space == "CMYK":
        return space, transform
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    grid = np.stack(np.meshgrid(*[levels] * 3), -1).reshape(len(levels), -1, 3)
    if space == "GRAY":
        grid = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, -1, 3)
    probe = Image.fromarray(grid).convert(_mode(space))
    moved = np.abs(np.asarray(transform.apply(probe)).astype(int) - grid).max()
    return space, transform if moved > SAME else None


@lru_cache(maxsize=64)
def _made(primaries: Primaries, transfer: Transfer) -> bytes | None:
    """An ICC profile of three primaries and one curve (ICC.1:2001-04, 6.3.1.2); None for sRGB, or if there is none."""
    if primaries == SRGB and transfer == "srgb":
        return None
    try:
        columns = to_xyz(primaries)
    except np.linalg.LinAlgError:
        return None
    cones = np.diag((_BRADFORD @ _D50) / (_BRADFORD @ columns.sum(1)))
    adapted = np.linalg.inv(_BRADFORD) @ cones @ _BRADFORD @ columns
    shown = light(np.linspace(0, 1, 256), transfer)
    if transfer == "hlg":  # the system gamma, taken channel by channel
        shown = HLG_PEAK / REFERENCE_WHITE * shown**HLG_GAMMA
    curve = np.rint(np.clip(shown, 0, 1) * 65535).astype(">u2").tobytes()
    tags = {b"wtpt": _xyz(_D50), b"cprt": b"text\0\0\0\0CC0\0", b"desc": b"desc\0\0\0\0\0\0\0\1" + bytes(80)}
    tags |= {name: _xyz(column) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), adapted.T, strict=True)}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), b"curv\0\0\0\0" + struct.pack(">I", 256) + curve)
    table, body = b"", b""
    for name, tag in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(tag))
        body += tag + bytes(-len(tag) % 4)
    head = struct.pack(">I4xI12s12x4s28x", 132 + len(table + body), 0x02100000, b"mntrRGB XYZ ", b"acsp")
    return (head + _xyz(_D50)[8:]).ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def _xyz(vector: np.ndarray) -> bytes:
    return b"XYZ \0\0\0\0" + np.rint(np.asarray(vector) * 65536).astype(">i4").tobytes()


def to_xyz(primaries: Primaries) -> np.ndarray:
    """(3, 3) from linear RGB to CIE XYZ, white having Y = 1; raises LinAlgError where the primaries are on a line."""
    xyz = np.array([[x, y, 1 - x - y] for x, y in primaries]).T / [max(y, 1e-6) for _, y in primaries]
    return xyz[:, :3] * np.linalg.solve(xyz[:, :3], xyz[:, 3])


def light(sample: np.ndarray, transfer: Transfer) -> np.ndarray:
    """Samples (n,) in [0, 1] -> light, 1 being white; of HLG the scene's light, in [0, 1].

    sRGB: IEC 61966-2-1. PQ: SMPTE ST 2084. HLG: ARIB STD-B67. All as in ITU-R BT.2100.
    """
    if transfer == "srgb":
        return np.where(sample <= 0.04045, sample / 12.92, ((sample + 0.055) / 1.055) ** 2.4)
    if transfer == "pq":
        root = sample ** (1 / 78.84375)
        nits = 10_000 * (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (1 / 0.1593017578125)
        return nits / REFERENCE_WHITE
    if transfer == "hlg":
        return np.where(sample <= 0.5, sample**2 / 3, (np.exp((sample - 0.55991073) / 0.17883277) + 0.28466892) / 12)
    return sample**transfer
