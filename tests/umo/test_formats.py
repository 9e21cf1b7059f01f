"""What reaches the decoders: formats from a list, orientation once, and of a file only what concerns its pixels."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from umo import formats
from umo.images import ImageError, read_image

T = Image.Transpose
# How upright pixels are stored so that orientation k shows them upright.
STORED = (
    None,
    T.FLIP_LEFT_RIGHT,
    T.ROTATE_180,
    T.FLIP_TOP_BOTTOM,
    T.TRANSPOSE,
    T.ROTATE_90,
    T.TRANSVERSE,
    T.ROTATE_270,
)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes, is_wrong: bool = False) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) ^ is_wrong)


def with_chunks(png: bytes, *chunks: bytes) -> bytes:
    """Behind the header of a PNG."""
    return png[:33] + b"".join(chunks) + png[33:]


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """Smooth, so that what loses little moves no pixel by much."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (4, 6, 3), np.uint8))
    return coarse.resize((60, 40), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "jpeg", "quality": 98}),
        ("JPEG", {"quality": 98, "subsampling": 0}),
        ("MPO", {"quality": 98, "subsampling": 0, "save_all": True, "append_images": [Image.new("RGB", (60, 40))]}),
        ("AVIF", {"quality": 98, "subsampling": "4:4:4"}),
    ],
)
def test_a_picture_is_turned_once(picture, kind, options):
    worst = 0 if kind in ("PNG", "WEBP") or (kind == "TIFF" and options.get("compression") != "jpeg") else 12
    for orientation, how in enumerate(STORED, 1):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(picture if how is None else picture.transpose(how), kind, exif=exif, **options)
        found = read_image(data)
        assert found.shape == (40, 60, 3)
        assert np.abs(found.astype(int) - np.asarray(picture)).max() <= worst, orientation


def test_a_picture_decoded_small_is_turned_once(picture):
    large = picture.resize((480, 320), Image.Resampling.BICUBIC)
    for orientation, how in enumerate(STORED, 1):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(large if how is None else large.transpose(how), "JPEG", exif=exif, quality=98)
        found = read_image(data, max_side=60)
        assert found.shape in ((80, 120, 3), (40, 60, 3))
        assert np.abs(found[:: len(found) // 40, :: len(found) // 40].astype(int) - np.asarray(picture)).mean() < 8


def test_the_list_is_what_the_docs_promise():
    text = (Path(__file__).parents[2] / "datasets/README.md").read_text()
    assert f"{formats.NAMES} are read" in " ".join(text.split())
    assert {"JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "PPM"} == formats.SUFFIXES.keys()
    assert {name.lower() for name in formats.NAMES.replace(" and", ",").split(", ")} <= {
        suffix[1:] for suffixes in formats.SUFFIXES.values() for suffix in suffixes
    }


def test_nothing_else_is_decoded_and_no_program_started(picture, tmp_path, monkeypatch):
    """Ghostscript, which Pillow starts for PostScript, is stood in for; others that Pillow opens are refused alike."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\necho started > {tmp_path}/started\nexit 1\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n"
    for data in (postscript, *(encoded(picture, kind) for kind in ("JPEG2000", "TGA", "ICO", "PCX"))):
        with pytest.raises(
            ImageError, match=r"^not an image: convert it to JPEG, PNG or WebP .what is read: JPEG, PNG"
        ):
            read_image(data)
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize(
    ("kind", "options"),
    [("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("AVIF", {"quality": 98}), ("TIFF", {})],
)
def test_the_first_of_several_frames_is_read(picture, kind, options):
    few = picture.quantize(200).convert("RGB")
    data = encoded(few, kind, save_all=True, append_images=[Image.new("RGB", few.size, "red")], **options)
    assert np.abs(read_image(data).astype(int) - np.asarray(few)).mean() < 6


PACKED = zlib.compress(bytes(3_000_000))  # more than Pillow takes


@pytest.mark.parametrize(
    "text",
    [
        chunk(b"tEXt", b"workflow\0" + b"x" * 2_000),
        chunk(b"zTXt", b"workflow\0\0" + PACKED),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + PACKED),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + PACKED),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + bytes(2_000_000)),
        chunk(b"iCCP", b"profile\0\0" + PACKED),
    ],
)
def test_a_long_text_costs_no_picture(picture, text, monkeypatch):
    """As ComfyUI and XMP write them; before the picture and behind it."""
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_MEMORY", 1_000)
    png = encoded(picture)
    assert np.array_equal(read_image(with_chunks(png, text)), np.asarray(picture))
    assert np.array_equal(read_image(png[:-12] + text + png[-12:]), np.asarray(picture))


@pytest.mark.parametrize(
    "remark",
    [
        chunk(b"tEXt", b"a\0b", is_wrong=True),
        chunk(b"gAMA", struct.pack(">I", 100_000), is_wrong=True),
        chunk(b"sRGB", b""),
        chunk(b"cHRM", b"1"),
        chunk(b"acTL", b"12"),
        chunk(b"iCCP", b"profile\0\0rubbish"),
        chunk(b"iCCP", b"profile"),
        chunk(b"prVt", b"anything"),
    ],
)
def test_a_damaged_remark_costs_no_picture(picture, remark):
    assert np.array_equal(read_image(with_chunks(encoded(picture), remark)), np.asarray(picture))


def test_damaged_pixels_do(picture):
    png = encoded(picture)
    at = png.index(b"IDAT") + 300
    for broken in (png[:at] + bytes([png[at] ^ 1]) + png[at + 1 :], png[:20] + b"\1" + png[21:], png[:at]):
        with pytest.raises(ImageError, match="truncated or corrupt"):
            read_image(broken)


def test_what_lies_behind_a_png_costs_no_picture(picture):
    assert np.array_equal(read_image(encoded(picture) + b"\0\0\0\4TEXTnoneXXXX"), np.asarray(picture))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"exif": None}])
def test_a_jpeg_that_was_not_downloaded_to_its_end_is_no_picture(picture, options):
    """Its room was filled with zeros before; a thumbnail in its EXIF has an end of its own."""
    if "exif" in options:
        options = {"exif": b"Exif\0\0" + encoded(picture, "JPEG")}
    data = encoded(picture.resize((300, 200)), "JPEG", quality=95, **options)
    assert read_image(data + bytes(2000)).shape == (200, 300, 3)
    half = len(data) // 2
    with pytest.raises(ImageError, match=r"truncated or corrupt \(no end mark\)"):
        read_image(data[:half] + bytes(len(data) - half))


@pytest.mark.parametrize("alpha", [0, 100])
def test_an_alpha_that_is_0_everywhere_is_padding_in_a_bmp(picture, alpha):
    samples = np.dstack([np.asarray(picture)[::-1, :, ::-1], np.full(picture.size[::-1], alpha, np.uint8)])
    header = struct.pack("<IiiHHIIiiII", 108, *picture.size, 1, 32, 3, 0, 0, 0, 0, 0)
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    data = b"BM" + struct.pack("<III", 122 + samples.size, 0, 122) + header + masks + b"BGRs" + bytes(48)
    shown = np.asarray(picture).astype(float)
    shown = shown if alpha == 0 else 255 + (shown - 255) * alpha / 255
    assert np.abs(read_image(data + samples.tobytes()) - shown).max() <= 1


def test_a_pointer_of_git_lfs_is_named():
    with pytest.raises(ImageError, match=r"^a pointer of git-lfs instead of the file: run git lfs pull$"):
        read_image(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")


def test_texts_that_turn_a_picture_are_read(picture):
    """XMP's orientation, and EXIF as ImageMagick wrote it into PNG."""
    exif = Image.Exif()
    exif[0x0112] = 6
    hexed = b"\nexif\n8\n" + (b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")).hex().encode()
    for text in (
        chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(hexed)),
    ):
        stored = encoded(picture.transpose(T.ROTATE_90))
        assert np.array_equal(read_image(with_chunks(stored, text)), np.asarray(picture))


def test_many_segments_cost_no_jpeg(picture):
    data = encoded(picture, "JPEG")
    segments = b"".join(b"\xff\xe5" + struct.pack(">H", 65_535) + bytes(65_533) for _ in range(40))
    junk = b"\xff\xe2" + struct.pack(">H", 30) + b"MPF\0" + bytes(range(24))
    assert np.array_equal(read_image(data[:2] + junk + segments + data[2:]), read_image(data))


def _other_jpeg(picture: Image.Image, marker: int, bits: int = 8) -> bytes:
    data = bytearray(encoded(picture, "JPEG"))
    start = data.index(b"\xff\xc0")
    data[start + 1], data[start + 4] = marker, bits
    return bytes(data)


def _other_tiff(picture: Image.Image, tag: int, value: int) -> bytes:
    data = bytearray(encoded(picture, "TIFF"))
    start = data.index(struct.pack("<HHI", tag, 3, 1))
    data[start + 8 : start + 10] = struct.pack("<H", value)
    return bytes(data)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda p: _other_jpeg(p, 0xC1, 12), "12-bit"),
        (lambda p: _other_jpeg(p, 0xC3), "data stream"),
        (lambda p: _other_jpeg(p, 0xC5), "data stream"),
        (lambda p: _other_jpeg(p, 0xF7), "not identified"),
        (lambda p: _other_tiff(p, 259, 34_712), "Compression 34712"),
        (lambda p: _other_tiff(p, 259, 50_001), "Compression 50001"),
        (lambda p: _other_tiff(p, 262, 32_803), "unknown pixel mode"),
        (lambda p: encoded(p, "TIFF", tiffinfo={254: 1}), "thumbnail"),
        (lambda p: b"MM\0+" + encoded(p, "TIFF")[4:], "BigTIFF"),
        (lambda p: with_chunks(encoded(p), chunk(b"CgBI", b"1234")), "CgBI"),
        (lambda p: encoded(p, "AVIF").replace(b"avif", b"heic").replace(b"ftypheic", b"ftypmif1"), "Invalid ftyp"),
        (lambda p: (bmp := encoded(p, "BMP"))[:30] + b"\4" + bmp[31:], "BMP compression"),
    ],
)
def test_a_form_that_is_not_read_is_no_damage(picture, other, said):
    with pytest.raises(
        ImageError, match=f"^an image in a form that is not read .*{said}.*: convert it to JPEG"
    ) as caught:
        read_image(other(picture))
    assert "copy it again" not in str(caught.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "PPM"])
def test_a_cut_file_is_refused(picture, kind):
    data = encoded(picture, kind)
    for part in (0.5, 0.9):
        with pytest.raises(ImageError, match="truncated or corrupt"):
            read_image(data[: int(len(data) * part)])


def test_size_is_refused_before_decoding(picture, monkeypatch):
    """Also of the TIFFs that OpenCV decodes."""
    deep = encoded(Image.new("F", (300, 200)), "TIFF")
    monkeypatch.setattr(formats.cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ImageError, match="300x200 px is over the limit of 4,096"):
        read_image(deep, max_pixels=4096)
