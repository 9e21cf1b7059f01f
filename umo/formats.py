"""Which picture formats are read, told by their first bytes, and what of a file reaches its decoder."""

import io
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import ExifTags, Image, ImagePalette, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

from umo.colour import to_bytes

Image.MAX_IMAGE_PIXELS = None  # the caller's own limit is checked before anything is decoded
TiffImagePlugin.READ_LIBTIFF = True  # Pillow's own reader takes 16 bits in planes for 8, and refuses plain YCbCr
# Pillow's name -> suffixes. No other decoder is ever asked: some of Pillow's start external programs.
SUFFIXES = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "AVIF": (".avif",),
    "PPM": (".ppm", ".pgm", ".pbm"),
}
NAMES = "JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF, PPM, PGM and PBM"
POINTER = b"version https://git-lfs."  # what git-lfs leaves in a file's place
POINTED = "a pointer of git-lfs instead of the file: run git lfs pull"
MAX_PROFILE = 1 << 24  # bytes of an ICC profile, unpacked
MAX_TEXT = 1 << 20  # bytes of a PNG's text, unpacked: what Pillow takes
_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf")
_COLOURS = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1}  # chunk -> its length
_TURNS = (b"XML:com.adobe.xmp\0\0", b"Raw profile type exif\0")  # texts in which Pillow looks for the orientation
_DEPTHS = ({1}, {2}, {4}, {8}, {16})  # bits of a TIFF's samples as Pillow reads them
_DEEP = ((0, 1, ()), (1, 1, ()), (2, 3, ()), (2, 4, (2,)))  # colours, samples, those beyond the colours
_PILLOWS = (34925, 50000)  # compressions that OpenCV does not know
_SUBFILE = 254  # the tag that says of a page what it is to the others
_NO_WEBP = 50001  # a TIFF's compression that Pillow lists, and its libtiff is built without
# What decoders say of a form they do not know; anything else is damage.
_FORM = re.compile(r"cannot handle|unknown pixel mode|not (yet )?supported|unsupported|invalid ftyp", re.IGNORECASE)
_JPEG_FORM = re.compile(rb"\xff[\xc3\xc5-\xc7\xcb\xcd-\xcf\xf7]\0[\x0b-\x17][\x02-\x10]")  # lossless, hierarchical, LS
_JPEG_END = b"\xff\xd9"
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Opened(NamedTuple):
    """A picture of which only the header was read: (width, height), as stored or upright, and what decodes it upright.

    `decode` takes the length that a JPEG's longer side may be scaled down to while it is decoded, or None.
    """

    size: tuple[int, int]
    decode: Callable[[int | None], Image.Image]


def opened(data: bytes) -> Opened | None:
    """The first picture of a file; None where it is of no kind that is read. A damaged one raises nearly anything."""
    Image.init()
    kind = next((name for name in SUFFIXES if Image.OPEN[name][1](data[:16])), None)  # type: ignore[misc]
    if kind is None:
        return None
    if kind == "TIFF" and (deep := _deep_tiff(data)):
        return deep
    image = _OWN[kind](data) if kind in _OWN else Image.OPEN[kind][0](io.BytesIO(data), "")
    if kind == "AVIF" and "icc_profile" not in image.info and (at := data.find(b"colrnclx")) > 0:
        image.info["cicp"] = struct.unpack_from(">HH", data, at + 8)
    return Opened(image.size, partial(_decoded, image))


def is_form(data: bytes, reason: str) -> bool:
    """Whether a decoder (`reason`: what it said) does not know the form of the file, which is not damaged then."""
    return bool(_FORM.search(reason) or (data[:2] == b"\xff\xd8" and _JPEG_FORM.search(data)))


def _decoded(image: Image.Image, max_side: int | None) -> Image.Image:
    if max_side:
        image.draft("RGB", (max_side, max_side))
    image.load()  # a TIFF turns itself here, and says no more that it was not upright
    if image.format == "BMP" and image.mode == "RGBA" and not image.getchannel("A").getbbox():
        image = image.convert("RGB")  # viewers take an alpha that is 0 everywhere for padding
    turn = _UPRIGHT.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """What EXIF says; 1, upright, where it is absent or damaged."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged tag must not cost the picture
        return 1


def _png(data: bytes) -> Image.Image:
    """A PNG without what concerns no pixel: texts, whose size Pillow limits, damaged remarks, further frames."""
    kept = [data[:8]]
    info: dict[str | tuple[int, int], Any] = {}
    for kind, chunk in _chunks(data):
        optional, body = bool(kind[0] & 32), chunk[8:-4]
        if optional and zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:]):
            continue
        if (
            kind in _PIXELS
            or not kind.isalpha()
            or _COLOURS.get(kind) == len(body)
            or (body.startswith(_TURNS) and _is_short(kind, body))
        ):
            kept.append(chunk)
        elif not optional:
            raise ValueError(f"unsupported chunk {kind.decode()}")
        elif kind == b"iCCP":
            info["icc_profile"] = _inflated(body.partition(b"\0")[2][1:], MAX_PROFILE)
        elif kind == b"cICP" and len(body) == 4:
            info["cicp"] = body[0], body[1]
    image = PngImagePlugin.PngImageFile(io.BytesIO(b"".join(kept)))
    clear, depth = image.info.get("transparency"), data[24]
    if image.mode == "L" and isinstance(clear, int):
        info["transparency"] = clear * 255 // (2**depth - 1)  # Pillow scales the samples to 8 bits, and not this
    elif image.mode == "RGB" and clear and depth == 16:
        info["transparency"] = tuple(value >> 8 for value in clear)
    image.info |= info
    return image


def _tiff(data: bytes) -> Image.Image:
    image = TiffImagePlugin.TiffImageFile(io.BytesIO(data))
    if image.palette and max(colours := image.tag_v2[TiffImagePlugin.COLORMAP]) < 256:
        image.palette = ImagePalette.raw("RGB;L", bytes(colours))  # of 8 bits where 16 should be, as libtiff allows
    return image


def _jpeg(data: bytes) -> Image.Image:
    file = io.BytesIO(data)
    image = JpegImagePlugin.jpeg_factory(file)
    if data.find(_JPEG_END, file.tell()) < 0:  # the zeros of a download that stopped are decoded as grey
        raise ValueError("no end mark")
    return image


_OWN: dict[str, Callable[[bytes], Image.Image]] = {"JPEG": _jpeg, "PNG": _png, "TIFF": _tiff}


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type and whole bytes of a PNG's chunks, the last as far as it is there; nothing that lies behind its end."""
    start, kind = 8, b""
    while start + 8 <= len(data) and kind != b"IEND":
        kind, end = data[start + 4 : start + 8], start + 12 + int.from_bytes(data[start : start + 4])
        yield kind, data[start:end]
        start = end


def _is_short(kind: bytes, text: bytes) -> bool:
    packed = kind == b"zTXt"
    return len(text) < MAX_TEXT and (not packed or len(_inflated(text.partition(b"\0")[2][1:], MAX_TEXT)) < MAX_TEXT)


def _inflated(packed: bytes, most: int) -> bytes:
    """The first `most` bytes of what was packed with zlib; none where it is damaged."""
    try:
        return zlib.decompressobj().decompress(packed, most)
    except zlib.error:
        return b""


def _deep_tiff(data: bytes) -> Opened | None:
    """A TIFF whose samples only OpenCV reads rightly: floats, signed, 10 to 14 bits, over 16 bits, 16-bit inverted."""
    if data.startswith(b"MM\0+"):
        raise ValueError("unsupported TIFF: BigTIFF, big-endian")
    tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if data[2] == 43 else 8])
    file = io.BytesIO(data)
    file.seek(tags.next)
    tags.load(file)
    compression = tags.get(TiffImagePlugin.COMPRESSION, 1)
    if compression not in TiffImagePlugin.COMPRESSION_INFO or compression == _NO_WEBP:
        raise ValueError(f"unsupported TIFF: Compression {compression}")
    if tags.get(_SUBFILE, 0) & 1:
        raise ValueError("unsupported TIFF: its first page is a thumbnail, as in a camera's raw files")
    bits, samples = set(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))), tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)
    kinds = set(tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,)))
    photometric = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 1)
    if kinds == {1} and bits in _DEPTHS and (photometric != 0 or bits != {16}):
        return None
    extra, planar = tags.get(TiffImagePlugin.EXTRASAMPLES, ()), tags.get(TiffImagePlugin.PLANAR_CONFIGURATION, 1)
    packing = f"Compression {compression}, PlanarConfiguration {planar}"
    is_half, apart = kinds == {3} and bits == {16}, planar == 2 and samples > 1
    if (photometric, samples, extra) not in _DEEP or is_half or apart or compression in _PILLOWS:
        form = f"BitsPerSample {max(bits)}, SamplesPerPixel {samples}, SampleFormat {max(kinds)}"
        raise ValueError(f"unsupported TIFF: {form}, PhotometricInterpretation {photometric}, {packing}")
    size = tags[TiffImagePlugin.IMAGEWIDTH], tags[TiffImagePlugin.IMAGELENGTH]
    return Opened(size, partial(_decoded_deep, data, photometric == 0, tags.get(TiffImagePlugin.ICCPROFILE)))


def _decoded_deep(data: bytes, is_inverted: bool, profile: bytes | None, max_side: int | None) -> Image.Image:
    """OpenCV turns it upright, and brings 10 to 14 bits to 16."""
    samples = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None:
        raise ValueError("decoder error")
    if samples.ndim == 2:
        grey = to_bytes(samples)
        image = Image.fromarray(255 - grey if is_inverted else grey)
    else:
        image = Image.fromarray(to_bytes(np.ascontiguousarray(samples[..., 2::-1])))
        if samples.shape[2] == 4:
            image.putalpha(Image.fromarray(to_bytes(samples[..., 3])))
    image.info["icc_profile"] = profile
    return image
