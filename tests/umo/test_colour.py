"""Samples of every depth and every colour space come out as a viewer shows them."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from umo.colour import ADOBE, PRIMARIES, _made, to_bytes
from umo.images import read_image

GREY = np.add.outer(np.arange(40) * 2, np.arange(64) * 2 + 40).astype(np.uint8)  # 40 to 244
COLOURS = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], -1)
# Linear light of the primaries -> linear light of sRGB's, as CSS Color 4 has them.
TO_SRGB = {
    "p3": [[1.2249402, -0.2249402, 0], [-0.0420570, 1.0420570, 0], [-0.0196376, -0.0786360, 1.0982736]],
    "adobe": [[1.3983557, -0.3983557, 0], [0, 1, 0], [0, -0.0429290, 1.0429290]],
    "2020": [
        [1.6604910, -0.5876411, -0.0728499],
        [-0.1245505, 1.1328999, -0.0083494],
        [-0.0181508, -0.1005789, 1.1187297],
    ],
    "srgb": np.eye(3).tolist(),
}


def encoded(array: np.ndarray | Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(buffer, kind, **options)
    return buffer.getvalue()


def png(array: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
    data = encoded(array)
    extra = b"".join(struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
    return data[:33] + extra + data[33:]


def raw_png(rows: np.ndarray, depth: int, colour_type: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Of rows (H, W) or (H, W, C) of samples in `depth` bits."""
    height, width = rows.shape[:2]
    flat = rows.reshape(height, -1)
    bits = ((flat[..., None].astype(np.int64) >> np.arange(depth - 1, -1, -1)) & 1).reshape(height, -1)
    lines = np.packbits(bits.astype(np.uint8), axis=1)
    body = zlib.compress(b"".join(b"\0" + line.tobytes() for line in lines))
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in parts
    )


def tiff(samples: np.ndarray, order: str = "<", bits: int | None = None, **tags: int) -> bytes:
    """One strip, or one a plane; `bits` packs unsigned samples; tags by name are put over the usual ones."""
    is_planar = tags.pop("planar", 1) == 2
    height, width = samples.shape[1:] if is_planar else samples.shape[:2]
    n = samples.shape[0] if is_planar else samples.size // (height * width)
    if bits:
        rows = samples.reshape(height, -1).astype(np.int64)
        data = np.packbits(
            (rows[..., None] >> np.arange(bits - 1, -1, -1) & 1).astype(np.uint8).reshape(height, -1), axis=1
        )
        body = data.tobytes()
    else:
        body = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    size = bits or 8 * samples.dtype.itemsize
    kind = {"u": 1, "b": 1, "i": 2, "f": 3}[samples.dtype.kind]
    strips = n if is_planar else 1
    start = 8 + len(body)
    values = {256: width, 257: height, 258: size, 259: 1, 262: 2 if n > 2 else 1, 273: 8, 277: n, 278: height}
    values |= {279: len(body), 284: 2 if is_planar else 1, 339: kind} | {int(k[1:]): v for k, v in tags.items()}
    table, tail, at = b"", b"", start + 2 + 12 * len(values) + 4
    for tag, value in sorted(values.items()):
        several = {258: [value] * n, 339: [value] * n}.get(tag, [value])
        if tag in (273, 279) and strips > 1:
            each = len(body) // strips
            several = [8 + each * k for k in range(strips)] if tag == 273 else [each] * strips
        packed = struct.pack(f"{order}{len(several)}I", *several)
        if tag not in (256, 257, 273, 278, 279):
            packed = struct.pack(f"{order}{len(several)}H", *several)
        table += struct.pack(order + "HHI", tag, 4 if tag in (256, 257, 273, 278, 279) else 3, len(several))
        table += packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack(order + "I", at + len(tail))
        tail += packed if len(packed) > 4 else b""
    mark = b"II" if order == "<" else b"MM"
    return (
        mark
        + struct.pack(order + "HI", 42, start)
        + body
        + struct.pack(order + "H", len(values))
        + table
        + bytes(4)
        + tail
    )


def rgb(grey: np.ndarray) -> np.ndarray:
    return grey if grey.ndim == 3 else np.repeat(grey[..., None], 3, axis=2)


WIDE, WIDE_COLOURS = GREY.astype(np.uint16) * 257, COLOURS.astype(np.uint16) * 257
DEPTHS = {
    "png 16": (encoded(WIDE), GREY),
    "png 16 colours": (raw_png(WIDE_COLOURS, 16, 2), COLOURS),
    "png 16 colours, cut as Pillow cuts": (raw_png(WIDE_COLOURS // 257 * 256 + 255, 16, 2), COLOURS),
    "png 4": (raw_png(GREY // 16, 4, 0), GREY // 16 * 17),
    "png 1": (raw_png(GREY // 128, 1, 0), GREY // 128 * 255),
    "pgm 65535": (b"P5 64 40 65535\n" + WIDE.astype(">u2").tobytes(), GREY),
    "pgm 100": (b"P5 64 40 100\n" + (GREY // 3).tobytes(), np.rint(GREY // 3 * 2.55).astype(np.uint8)),
    "ppm 4095": (b"P6 64 40 4095\n" + (COLOURS.astype(int) * 4095 // 255 + 1).astype(">u2").tobytes(), COLOURS),
    "pgm 4095": (b"P5 64 40 4095\n" + (GREY.astype(int) * 4095 // 255 + 1).astype(">u2").tobytes(), GREY),
    "pfm": (b"Pf 64 40 -1.0\n" + (GREY[::-1] / 255).astype("<f4").tobytes(), GREY),
    "pbm": (b"P4 64 40\n" + np.packbits(GREY < 128, axis=1).tobytes(), (GREY >= 128) * np.uint8(255)),
    "tiff 16 colours": (tiff(WIDE_COLOURS), COLOURS),
    "tiff 16 colours, big-endian": (tiff(WIDE_COLOURS, ">"), COLOURS),
    "tiff 16 in planes": (tiff(WIDE_COLOURS.transpose(2, 0, 1), planar=2), COLOURS),
    "tiff 8 in planes": (tiff(COLOURS.transpose(2, 0, 1), planar=2), COLOURS),
    "tiff 8 inverted": (tiff(255 - GREY, t262=0), GREY),
    "tiff 16 inverted": (tiff(65535 - WIDE, t262=0), GREY),
    "tiff 16 inverted, big-endian": (tiff(65535 - WIDE, ">", t262=0), GREY),
    "tiff float inverted": (tiff((1 - GREY / 255).astype(np.float32), t262=0), GREY),
    "tiff jpeg's colours, not compressed": (encoded(Image.fromarray(COLOURS).convert("YCbCr"), "TIFF"), COLOURS),
    "tiff float colours": (tiff((COLOURS / 255).astype(np.float32)), COLOURS),
    "tiff double": (tiff(GREY / 255), GREY),
    "tiff float to 255": (tiff(GREY.astype(np.float32)), GREY),
    "tiff 16, packed": (encoded(WIDE, "TIFF", compression="zstd"), GREY),
    "tiff 32 colours": (tiff(COLOURS.astype(np.uint32) * 16843009), COLOURS),
    **{
        f"tiff {name}, {order}": (tiff(samples, order), GREY)
        for order in "<>"
        for name, samples in {
            "16": WIDE,
            "float": (GREY / 255).astype(np.float32),
            "32": GREY.astype(np.uint32) * 16843009,
            "8 in 32": GREY.astype(np.int32),
            "16 in 32": GREY.astype(np.int32) * 257,
            "12 in 32": (GREY.astype(np.int32) * 4095 // 255),
            "31 in 32": GREY.astype(np.int32) * 8421504,
            "15 in 16": (GREY.astype(np.int16) * 128),
        }.items()
    },
    **{f"tiff {n}": (tiff(GREY.astype(np.uint32) * (2**n - 1) // 255, bits=n), GREY) for n in (10, 12, 14)},
    **{f"tiff {n} colours": (tiff(COLOURS.astype(np.uint32) * (2**n - 1) // 255, ">", n), COLOURS) for n in (10, 12)},
}


@pytest.mark.parametrize("name", DEPTHS)
def test_every_depth_comes_out_alike(name):
    data, expected = DEPTHS[name]
    worst = 4 if "jpeg" in name else 1
    found = read_image(data).astype(int)
    assert found.shape == (40, 64, 3)
    assert np.abs(found - rgb(expected)).max() <= worst


def test_deep_tiffs_are_turned_once():
    """Those that OpenCV decodes: floats, and 16 bits of which 0 is white."""
    stored = (
        lambda a: a,
        lambda a: a[:, ::-1],
        lambda a: a[::-1, ::-1],
        lambda a: a[::-1],
        lambda a: a.swapaxes(0, 1),
        lambda a: np.rot90(a, 1),
        lambda a: np.rot90(a.swapaxes(0, 1), 2),
        lambda a: np.rot90(a, -1),
    )
    for orientation, store in enumerate(stored, 1):
        light = np.ascontiguousarray(store((COLOURS / 255).astype(np.float32)))
        assert np.array_equal(read_image(tiff(light, t274=orientation)), COLOURS), orientation
        dark = np.ascontiguousarray(store(65535 - WIDE))
        assert np.array_equal(read_image(tiff(dark, t274=orientation, t262=0)), rgb(GREY)), orientation


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (np.array([0, 32768, 65535], np.uint16), [0, 128, 255]),
        (np.array([0.0, 0.5, 1.04]), [0, 128, 255]),
        (np.array([0, 0.25]), [0, 64]),
        (np.array([-1, 0, 1], np.float32), [0, 85, 170]),
        (np.array([-32768, 32767], np.int16), [0, 255]),
        (np.array([np.nan, -np.inf, 0.2, np.inf]), [0, 0, 51, 255]),
        (np.array([np.nan, np.nan]), [0, 0]),
        (np.array([7, 7]), [255, 255]),
        (np.array([0, 2**31 - 1], np.int32), [0, 255]),
        (np.array([0, 1023, 4095], np.int32), [0, 64, 255]),
    ],
)
def test_where_no_white_is_defined(samples, expected):
    assert to_bytes(samples).tolist() == expected


def test_transparency_of_every_depth():
    """The colour that is see-through lies on white; all others stay."""
    left = GREY.copy()
    left[:, :32] = 0x33
    for depth, mark in ((2, 0), (4, 3), (8, 0x33), (16, 0x3333)):
        samples = left.astype(int) * 257 >> (16 - depth)
        found = read_image(raw_png(samples, depth, 0, (b"tRNS", struct.pack(">H", mark))))
        shown = samples * 255 // (2**depth - 1)
        assert np.array_equal(found[..., 0], np.where(samples == mark, 255, shown)), depth
        three = rgb(samples)
        if depth >= 8:
            found = read_image(raw_png(three, depth, 2, (b"tRNS", struct.pack(">HHH", *[mark] * 3))))
            assert np.array_equal(found, rgb(np.where(samples == mark, 255, shown))), depth


def test_transparency_of_every_mode():
    """Half see-through over white, as it is composed by hand."""
    half = np.full(GREY.shape, 128, np.uint8)
    over = np.rint(rgb(GREY) * (128 / 255) + 255 * (127 / 255))
    palette = Image.fromarray(GREY).convert("P")
    for data in (
        encoded(Image.fromarray(np.dstack([GREY, half]))),
        encoded(np.dstack([rgb(GREY), half])),
        encoded(np.dstack([rgb(GREY), half]), "WEBP", lossless=True),
        encoded(np.dstack([rgb(GREY), half]), "TIFF"),
        encoded(Image.fromarray(np.dstack([GREY, half])), "TIFF"),
        encoded(palette, transparency=bytes([128] * 256)),
        raw_png(np.dstack([GREY, half]).astype(int) * 257, 16, 4),
    ):
        assert np.abs(read_image(data) - over).max() <= 1


def to_srgb(samples: np.ndarray, primaries: str, gamma: float | None) -> np.ndarray:
    """By formula: samples to light, light to sRGB's primaries, sRGB's curve (IEC 61966-2-1)."""
    part = samples / 255
    curve = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    light = np.clip((part**gamma if gamma else curve) @ np.array(TO_SRGB[primaries]).T, 0, 1)
    return 255 * np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def chromaticities(*xy: float) -> tuple[bytes, bytes]:
    return b"cHRM", struct.pack(">8I", *[round(100_000 * value) for value in xy])


def _r03() -> Image.Exif:
    """What a camera that is set to Adobe RGB writes, without a profile."""
    exif = Image.Exif()
    exif[0x8769] = {0xA001: 0xFFFF, 0xA005: {1: "R03"}}
    return exif


P3, ADOBES = _made(PRIMARIES[12], "srgb"), _made(ADOBE, 563 / 256)


@pytest.mark.parametrize(
    ("data", "primaries", "gamma"),
    [
        *[(encoded(COLOURS, kind, icc_profile=P3, **more), "p3", None) for kind, more in (
            ("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True}))],
        (encoded(COLOURS, icc_profile=ADOBES), "adobe", 563 / 256),
        (encoded(COLOURS, exif=_r03()), "adobe", 563 / 256),
        (png(COLOURS, (b"cICP", bytes([12, 13, 0, 1]))), "p3", None),
        (png(COLOURS, (b"cICP", bytes([12, 13, 0, 1])), (b"gAMA", struct.pack(">I", 100_000))), "p3", None),
        (png(COLOURS, (b"cICP", bytes([9, 8, 0, 1]))), "2020", 1),
        (png(COLOURS, (b"gAMA", struct.pack(">I", 100_000))), "srgb", 1),
        (png(COLOURS, (b"gAMA", struct.pack(">I", 55_556))), "srgb", 1.8),
        (png(COLOURS, (b"gAMA", struct.pack(">I", 45_455)), chromaticities(
            0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)), "p3", None),
        (tiff((COLOURS / 255).astype(np.float32)), "srgb", None),
    ],
)  # fmt: skip
def test_colours_are_brought_to_srgb(data, primaries, gamma):
    assert np.abs(read_image(data) - to_srgb(COLOURS, primaries, gamma)).max() <= 2


def test_profiles_in_lossy_files():
    for kind, options in (
        ("JPEG", {"quality": 99, "subsampling": 0}),
        ("AVIF", {"quality": 99, "subsampling": "4:4:4"}),
    ):
        found = read_image(encoded(COLOURS, kind, icc_profile=P3, **options))
        assert np.abs(found - to_srgb(COLOURS, "p3", None)).mean() < 2
    coded = encoded(COLOURS, "AVIF", quality=99, subsampling="4:4:4").replace(b"colrnclx\0\1", b"colrnclx\0\x0c")
    assert np.abs(read_image(coded) - to_srgb(COLOURS, "p3", None)).mean() < 2
    told = read_image(encoded(COLOURS, "JPEG", quality=99, subsampling=0, exif=_r03()))
    assert np.abs(told - to_srgb(COLOURS, "adobe", 563 / 256)).mean() < 2


def test_brightness_beyond_the_screen():
    """PQ: 0, 100, 203, 1000 cd/m2 (SMPTE ST 2084). HLG: signal 0, .5, .75, 1 (BT.2100), .75 being 203 cd/m2."""
    for transfer, signals, light in (
        (16, (0, 0.5081, 0.5807, 0.7518), (0, 100 / 203, 1, 1)),
        (18, (0, 0.5, 0.75, 1), (0, 1000 / 203 / 12**1.2, 1, 1)),
    ):
        samples = np.rint(np.repeat(np.array(signals) * 255, 16)).astype(np.uint8)
        found = read_image(png(rgb(np.tile(samples, (16, 1))), (b"cICP", bytes([9, transfer, 0, 1]))))[0, ::16, 0]
        part = np.array(light)
        assert np.abs(found - 255 * np.where(part < 0.0031, 12.92 * part, 1.055 * part ** (1 / 2.4) - 0.055)).max() <= 3


def test_grey_and_cmyk_profiles():
    """Grey that is stored as light (gamma 1). A picture in inks, through a profile made for them, is what it was."""
    linear = _made(ADOBE, 1.0)
    assert linear
    expected = to_srgb(rgb(GREY), "srgb", 1)
    assert np.abs(read_image(encoded(GREY, icc_profile=linear)) - expected).max() <= 2, "RGB's profile on grey"
    curve = b"curv" + bytes(4) + struct.pack(">I", 0)
    head = struct.pack(">I4xI12s12x4s28x", 144 + 12 + 12 + 20 + 12, 0x02100000, b"mntrGRAYXYZ ", b"acsp")
    white = b"XYZ \0\0\0\0" + struct.pack(">iii", 63190, 65536, 54061)
    table = struct.pack(">I4sII4sII", 2, b"wtpt", 156, 20, b"kTRC", 176, 12)
    grey = (head + white[8:]).ljust(128, b"\0") + table + white + curve
    assert np.abs(read_image(encoded(GREY, icc_profile=grey)) - expected).max() <= 2


@pytest.mark.parametrize(
    "data",
    [
        encoded(COLOURS, icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()),
        encoded(COLOURS, icc_profile=b"rubbish" * 40),
        encoded(COLOURS, icc_profile=P3[:200]),
        png(
            COLOURS,
            (b"gAMA", struct.pack(">I", 45_455)),
            chromaticities(0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06),
        ),
        png(COLOURS, (b"sRGB", b"\0"), (b"gAMA", struct.pack(">I", 100_000))),
        png(COLOURS, (b"gAMA", bytes(4))),
        png(COLOURS, (b"cHRM", bytes(32))),
        png(COLOURS, (b"cICP", bytes([1, 13, 0, 1]))),
        encoded(COLOURS, "TIFF", compression="tiff_lzw"),
        encoded(COLOURS, "PPM"),
    ],
)
def test_srgb_changes_no_bit_and_a_damaged_profile_neither(data):
    assert np.array_equal(read_image(data), COLOURS)


def test_lab_and_inks():
    """Through littleCMS's own L*a*b*; inks without a profile as Pillow's plain rule has them."""
    lab = ImageCms.applyTransform(
        Image.fromarray(COLOURS),
        ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"),
    )
    assert np.abs(read_image(encoded(lab, "TIFF")).astype(int) - COLOURS).mean() < 1.5
    inks = Image.fromarray(COLOURS).convert("CMYK")
    assert np.abs(read_image(encoded(inks, "TIFF")).astype(int) - COLOURS).max() <= 1
    assert np.abs(read_image(encoded(inks, "JPEG", quality=98)).astype(int) - COLOURS).mean() <= 2


def test_a_palette_of_bytes_is_not_black():
    """TIFFs whose colours end at 255 instead of 65535 (libtiff's checkcmap)."""
    data = bytearray(encoded(Image.fromarray(GREY).convert("P"), "TIFF"))
    at = data.index(struct.pack("<HHI", 320, 3, 768))
    (start,) = struct.unpack_from("<I", data, at + 8)
    colours = np.frombuffer(bytes(data[start : start + 1536]), "<u2") // 256
    data[start : start + 1536] = colours.astype("<u2").tobytes()
    assert np.array_equal(read_image(bytes(data)), rgb(GREY))
