"""Different people to a judge, against loops over their pairs."""

from itertools import combinations

import numpy as np
import pytest

from umo.evaluation.strangers import strangers, warning


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=shape)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def test_shares_and_cosines_are_over_the_pairs():
    people = unit(12, 3)
    found = strangers(people, 0.6)
    cosines = sorted(float(a @ b) for a, b in combinations(people, 2))
    assert (found["people"], found["pairs"]) == (12, 66)
    assert found["mean"] == pytest.approx(sum(cosines) / 66)
    assert found["passing"] == sum(cosine >= 0.6 for cosine in cosines) / 66
    # The rank of a percentile among 66: 0.95 * 65 = 61.75.
    assert found["p95"] == pytest.approx(0.25 * cosines[61] + 0.75 * cosines[62])
    assert found["p99"] == pytest.approx(0.65 * cosines[64] + 0.35 * cosines[65])
    assert found == strangers(people, 0.6)


def test_the_interval_draws_people():
    people = unit(12, 3)
    generator, shares = np.random.default_rng(7), []
    for _ in range(2000):
        drawn = generator.integers(0, 12, 12)
        pairs = [(a, b) for a, b in combinations(drawn, 2) if a != b]
        shares.append(sum(float(people[a] @ people[b]) >= 0.6 for a, b in pairs) / len(pairs))
    low, high = np.percentile(shares, [2.5, 97.5])
    found = strangers(people, 0.6)
    assert (found["low"], found["high"]) == (pytest.approx(low, abs=0.02), pytest.approx(high, abs=0.02))
    assert found["low"] < found["passing"] < found["high"]


def test_two_people_are_too_few():
    assert strangers(unit(2, 3), 0.5) is None
    alike = strangers(np.tile([[1.0, 0.0]], (3, 1)), 0.5)
    assert (alike["passing"], alike["low"], alike["high"]) == (1, 1, 1)


def test_a_scale_that_does_not_fit_is_said():
    assert warning({"pairs": 190, "passing": 0.12}) == (
        "12 % of 190 pairs of different people among these references pass as the same person (at most 3 % is "
        "expected): coverage and the counts built on it are too high for them; see docs/concepts/judging.md"
    )
    assert warning({"pairs": 10, "passing": 1.0}).startswith("100 % of 10 pairs")
    assert warning({"pairs": 190, "passing": 0.03}) is None
    assert warning({"pairs": 9, "passing": 1.0}) is None
