"""Near duplicates among perceptual hashes, against the comparison of all pairs; on real photographs, too."""

import cv2
import numpy as np
import pytest

from umo.people import duplicates
from umo.quality import perceptual_hash


def clustered_hashes(count: int, seed: int = 0) -> np.ndarray:
    """Families of hashes a few bits apart, and others."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**63, count, np.uint64) | (rng.integers(0, 2, count, np.uint64) << np.uint64(63))
    hashes[: count // 2] = rng.choice(hashes[: count // 8], count // 2)
    for _ in range(9):
        flipped = hashes ^ (np.uint64(1) << rng.integers(0, 64, count, np.uint64))
        hashes = np.where(rng.random(count) < 0.4, flipped, hashes)
    return hashes


@pytest.mark.parametrize("max_bits", [1, 2, 3, 5, 8, 12, 16])
def test_near_pairs_are_all_pairs_within_the_bound(max_bits):
    hashes = np.unique(clustered_hashes(1200, max_bits))
    apart = np.bitwise_count(hashes[:, None] ^ hashes[None])
    expected = np.argwhere(np.triu(apart <= max_bits, 1))
    assert len(expected) > 5
    np.testing.assert_array_equal(duplicates.near_pairs(hashes, max_bits), expected)


@pytest.mark.parametrize("needed", [1, 2, 3, 4])
def test_however_many_parts_must_agree(monkeypatch, needed):
    monkeypatch.setattr(duplicates, "_parts_that_agree", lambda count, max_bits: needed)
    hashes = np.unique(clustered_hashes(600))
    apart = np.bitwise_count(hashes[:, None] ^ hashes[None])
    np.testing.assert_array_equal(duplicates.near_pairs(hashes, 6), np.argwhere(np.triu(apart <= 6, 1)))


@pytest.mark.parametrize("max_bits", [0, 2, 6, 16])
def test_repeated_keeps_the_first_of_each(max_bits):
    """One after the other: a picture goes if one that stays is near; the loop is the definition."""
    hashes = clustered_hashes(900, 3)
    hashes[400:500] = hashes[:100]
    expected = np.zeros(len(hashes), bool)
    for k, value in enumerate(hashes):
        if not expected[k]:
            expected[k + 1 :] |= np.bitwise_count(hashes[k + 1 :] ^ value) <= max_bits
    assert expected.any()
    np.testing.assert_array_equal(duplicates.repeated(hashes, max_bits), expected)


def test_nothing_to_compare():
    assert duplicates.repeated(np.zeros(0, np.uint64), 4).tolist() == []
    assert duplicates.repeated(np.zeros(3, np.uint64), 4).tolist() == [False, True, True]


def test_a_photograph_saved_again_is_near_and_another_is_not(orl):
    photos = [orl(person, k) for person in (1, 2, 3) for k in (1, 2)]
    again = [cv2.imdecode(cv2.imencode(".jpg", photo, [1, 30])[1], cv2.IMREAD_COLOR) for photo in photos]
    hashes = np.array([int(perceptual_hash(photo), 16) for photo in [*photos, *again]], np.uint64)
    assert duplicates.repeated(hashes, 4).tolist() == [False] * 6 + [True] * 6
