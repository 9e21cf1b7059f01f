"""Intervals over people and training seeds, against loops and against what they must be where the answer is known."""

import numpy as np
import pytest

from umo.evaluation import metrics, seeds
from umo.evaluation.metrics import Estimate

PEOPLE = [["a", "b"], ["b", "c"], ["c"], ["a"], ["d"]]


def table(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.3, 1, shape)


def test_one_seed_is_the_bootstrap_over_people() -> None:
    values = table(1, 5)
    found, p = seeds.over_seeds(values, PEOPLE)
    expected, expected_p = metrics.tested(list(values[0]), PEOPLE)
    assert found.mean == pytest.approx(expected.mean)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert p == pytest.approx(expected_p)


def test_draws_are_weighted_as_a_loop_weighs_them() -> None:
    """The same draws, case by case and seed by seed; NaN is left out."""
    values = table(3, 5)
    values[1, 2] = values[0, 4] = np.nan
    found, _ = seeds.over_seeds(values, PEOPLE, resamples=200)
    generator, groups = np.random.default_rng(0), metrics.independent(PEOPLE)
    people = generator.multinomial(4, np.full(4, 1 / 4), size=200)
    drawn = generator.multinomial(2, np.full(3, 1 / 3), size=200)
    means = []
    for of_people, of_seeds in zip(people, drawn, strict=True):
        total = weight = 0.0
        for s in range(3):
            for case, own in enumerate(groups):
                if not np.isnan(values[s, case]):
                    times = of_seeds[s] * np.prod(of_people[own])
                    total, weight = total + times * values[s, case], weight + times
        if weight:
            means.append(total / weight)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])))
    assert found.mean == pytest.approx(np.nanmean(values))


def test_seeds_spread_as_the_mean_of_so_many() -> None:
    """Where only seeds differ, the interval is about 1.96 standard errors of their mean on each side."""
    offsets = table(8, 1)
    values = np.repeat(offsets, 40, axis=1)
    found, _ = seeds.over_seeds(values, [[str(k)] for k in range(40)])
    error = offsets.std(ddof=1) / np.sqrt(8)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.1)


def test_equal_seeds_add_nothing() -> None:
    one = table(1, 5)
    alone, _ = seeds.over_seeds(one, PEOPLE)
    thrice, _ = seeds.over_seeds(np.repeat(one, 3, axis=0), PEOPLE)
    assert (thrice.mean, thrice.low, thrice.high) == pytest.approx((alone.mean, alone.low, alone.high))


def picture(case: str, value: float | None, people: list[str]) -> dict[str, object]:
    return {"case_id": case, "people": people, "x": value}


def test_differences_are_paired_by_seed_and_case() -> None:
    a = {7: [picture("1", 1.0, ["a"]), picture("1", 3.0, ["a"]), picture("2", 5.0, ["b"]), picture("3", 9, ["c"])]}
    b = {7: [picture("1", 1.5, ["a"]), picture("2", 4.0, ["b"]), picture("3", None, ["c"])], 8: a[7]}
    found, _ = seeds.difference(a, b, "x")
    assert (found.mean, found.n) == (pytest.approx((0.5 + 1.0) / 2), 2)  # the seed that only b has, and 3, are left out
    assert seeds.estimate(a, "x").mean == pytest.approx((2 + 5 + 9) / 3)
    assert seeds.difference(a, {9: a[7]}, "x") == (Estimate(None, None, None, 0), None)
