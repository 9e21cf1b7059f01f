"""Fitted bounds against counting at every cosine; pairs against all pairs of the groups."""

import numpy as np
import pytest

from umo.people.thresholds import BINS, fit, histogram, pairs_within


@pytest.fixture
def cosines() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return np.round(rng.normal(0.7, 0.15, 400), 3), np.round(rng.normal(0.1, 0.2, 3000), 3)


def test_bounds_are_those_of_counting(cosines):
    same, different = cosines
    found = fit(same, different)
    candidates = np.unique(np.concatenate(cosines))
    precise = [c for c in candidates if (same >= c).sum() >= 0.99 * ((same >= c).sum() + (different >= c).sum())]
    assert found["precision_99"] == pytest.approx(min(precise), abs=1e-4)
    gaps = {c: abs((same < c).mean() - (different >= c).mean()) for c in candidates}
    assert gaps[found["equal_error"]] == pytest.approx(min(gaps.values()))
    at = found["equal_error"]
    assert found["error"] == pytest.approx(((same < at).mean() + (different >= at).mean()) / 2, abs=1e-5)


def test_nothing_to_fit_and_nothing_precise(cosines):
    same, different = cosines
    assert set(fit(same[:0], different).values()) == {None}
    assert fit(np.array([0.1]), np.array([0.2, 0.1]))["precision_99"] is None


def test_pairs_are_of_one_group_and_by_owner():
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(60, 8))
    group, owner = rng.integers(0, 5, 60), rng.integers(0, 9, 60)
    chosen = np.flatnonzero(rng.random(60) < 0.8)
    same, different = pairs_within(vectors, group, owner, chosen)
    expected: dict[bool, list[float]] = {True: [], False: []}
    for i in chosen:
        for j in chosen:
            if i < j and group[i] == group[j]:
                expected[bool(owner[i] == owner[j])].append(vectors[i] @ vectors[j])
    np.testing.assert_allclose(np.sort(same), np.sort(expected[True]))
    np.testing.assert_allclose(np.sort(different), np.sort(expected[False]))
    assert sum(map(len, pairs_within(vectors, group, owner, chosen, faces=10))) <= 45


def test_histogram_counts_everything_once():
    cosines = np.array([-0.9, -0.6, 0.0, 0.51, 1.0])
    counts = histogram(cosines)
    assert sum(counts) == 5
    assert counts[0] == 2
    assert counts[-1] == 1
    assert len(counts) == len(BINS) - 1
