"""Pictures that strangers took: upright RGB, or one line that says why not."""

import contextlib
import io

import numpy as np
import pytest
from PIL import Image

from umo.errors import BadInput
from umo.images import ImageError, encode_jpeg, encode_png, filled, filled_points, read_image, require_image


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF", "PPM"])
def test_lossless_formats_come_back_exactly(picture, kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(read_image(encoded(picture, kind, **options)), np.asarray(picture))


def test_grey_palette_and_16_bit_become_rgb(picture):
    grey = picture.convert("L")
    three = np.repeat(np.asarray(grey)[..., None], 3, axis=2)
    assert np.array_equal(read_image(encoded(grey)), three)
    wide = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    assert np.array_equal(read_image(encoded(wide)), three)
    assert read_image(encoded(picture.convert("P"))).shape == (40, 60, 3)


def test_transparency_is_laid_on_white():
    clear = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    assert (read_image(encoded(clear)) == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(picture, orientation):
    """Stored so that each of the eight orientations shows the same picture."""
    turned = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a.transpose(1, 0, 2), 2),
        8: lambda a: np.rot90(a, -1),
    }
    stored = Image.fromarray(np.ascontiguousarray(turned[orientation](np.asarray(picture))))
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(read_image(encoded(stored, exif=exif)), np.asarray(picture))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"just text", "not an image"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "not an image|truncated or corrupt"),
        (encoded(Image.new("RGB", (1, 1))), "1x1 px is too small"),
        ((20_000, 20_000), "20000x20000 px is over the limit"),
        ((12_000, 10_000), "12000x10000 px is over the limit"),
    ],
)
def test_a_bad_picture_says_why(data, reason):
    """A size stands for a black picture of it."""
    if isinstance(data, tuple):
        data = encoded(Image.new("1", data))
    with pytest.raises(ImageError, match=reason) as caught:
        read_image(data)
    assert "\n" not in str(caught.value)


def test_a_truncated_picture_says_so(picture):
    data = encoded(picture, "JPEG")
    with pytest.raises(ImageError, match="truncated or corrupt"):
        read_image(data[: len(data) // 2])


def test_damaged_exif_costs_the_rotation_and_not_the_picture(picture):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = bytearray(encoded(picture, "JPEG", exif=exif))
    start = data.index(b"Exif") + 6
    for position in range(start, start + 24):
        broken = data.copy()
        broken[position] ^= 0xFF
        assert sorted(read_image(bytes(broken)).shape) == [3, 40, 60]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_flipped_bytes_are_a_picture_or_an_error_of_ours(picture, kind):
    data, rng = encoded(picture, kind), np.random.default_rng(0)
    for _ in range(150):
        broken = bytearray(data)
        for position in rng.integers(0, min(len(data), 400), 3):
            broken[position] = rng.integers(256)
        with contextlib.suppress(ImageError):
            assert read_image(bytes(broken)).ndim == 3


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(ImageError, match=r"cannot be read .No such file"):
        read_image(tmp_path / "nowhere.png")


def test_a_large_jpeg_is_decoded_small():
    large = encoded(Image.new("RGB", (1600, 800), "red"), "JPEG")
    assert read_image(large, max_side=400).shape == (400, 800, 3)
    assert read_image(large, max_side=100).shape[1] < 400
    assert read_image(large).shape == (800, 1600, 3)


def test_encoding_is_the_same_twice(picture):
    array = np.asarray(picture)
    assert encode_png(array) == encode_png(array)
    assert np.array_equal(read_image(encode_png(array)), array)
    assert encode_jpeg(array) == encode_jpeg(array)


def test_a_picture_fills_another_size(picture):
    """Of a picture twice as large in blocks the middle is left, as it was."""
    array = np.asarray(picture)
    assert np.array_equal(filled(array, (40, 60)), array)
    assert np.array_equal(filled(array, (40, 20)), array[:, 20:40])
    assert np.array_equal(filled(array, (20, 60)), array[10:30])
    coarse = np.add.outer(np.arange(40), np.arange(60))[..., None].repeat(3, axis=2).astype(np.uint8)
    double = coarse.repeat(2, axis=0).repeat(2, axis=1)
    assert np.abs(filled(double, (40, 30)).astype(int) - coarse[:, 15:45]).max() <= 1


def test_a_picture_that_is_needed_is_bad_input_where_it_cannot_be_read(tmp_path):
    with pytest.raises(BadInput, match=r"^reference 3: cannot be read .No such file"):
        require_image(tmp_path / "nowhere.png", "reference 3")


def test_points_go_where_their_pixels_go():
    """A white pixel in a black picture, found again by its brightest neighbourhood."""
    for shape, size in (((64, 96), (32, 64)), ((40, 40), (64, 128)), ((128, 256), (64, 128))):
        picture = np.zeros((*shape, 3), np.uint8)
        picture[shape[0] // 2 - 3 : shape[0] // 2 + 2, shape[1] // 3 : shape[1] // 3 + 5] = 255
        point = np.array([[shape[1] // 3 + 2, shape[0] // 2 - 1]])
        light = filled(picture, size)[..., 0].astype(float)
        y, x = np.mgrid[: size[0], : size[1]]
        centre = [(light * x).sum() / light.sum(), (light * y).sum() / light.sum()]
        np.testing.assert_allclose(filled_points(point, shape, size)[0], centre, atol=0.1)
