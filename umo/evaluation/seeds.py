"""Trainings with several seeds held against each other: intervals over the people drawn and over training seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from umo.evaluation import metrics
from umo.evaluation.metrics import Estimate

Rows = Sequence[Mapping[str, Any]]  # a picture each, with case_id, people and the values asked for


def over_seeds(
    values: np.ndarray, people: Sequence[Sequence[str]], resamples: int = 10_000, seed: int = 0
) -> tuple[Estimate, float | None]:
    """Mean over cases and training seeds, its 95 % percentile interval, and the two-sided p of a true mean of 0.

    People are drawn as in `metrics.bootstrap`. Of S > 1 seeds, S - 1 are drawn with replacement, by which the variance
    is that of the mean over S (Rao and Wu 1988, Journal of the American Statistical Association 83); a case with a seed
    weighs the product. With one seed the interval is over people alone.

    Args:
        values: (S, C), a row a seed, a column a case; NaN is left out.
        people: who is in each of the C cases.

    Returns:
        n is the number of cases with a value; interval and p are None as in `metrics.tested`.
    """
    kept = ~np.isnan(values).all(axis=0)
    known, there = values[:, kept], ~np.isnan(values[:, kept])
    if not there.any():
        return Estimate(None, None, None, 0), None
    mean, cases = float(known[there].mean()), int(kept.sum())
    groups = metrics.independent([own for own, keep in zip(people, kept, strict=True) if keep])
    count = 1 + max(group for case in groups for group in case)
    if count < 2:
        return Estimate(mean, None, None, cases), None
    generator = np.random.default_rng(seed)
    of_people = generator.multinomial(count, np.full(count, 1 / count), size=resamples)
    of_cases = np.stack([of_people[:, case].prod(axis=1) for case in groups], axis=1)
    rows = len(values)
    of_seeds = generator.multinomial(max(1, rows - 1), np.full(rows, 1 / rows), size=resamples)
    totals = np.einsum("rs,rc,sc->r", of_seeds, of_cases, there.astype(float), optimize=True)
    sums = np.einsum("rs,rc,sc->r", of_seeds, of_cases, np.where(there, known, 0.0), optimize=True)
    means = sums[totals > 0] / totals[totals > 0]
    low, high = np.percentile(means, [2.5, 97.5])
    p = 2 * min((means <= 0).mean(), (means >= 0).mean())
    return Estimate(mean, float(low), float(high), cases), float(min(1, max(p, 1 / (resamples + 1))))


def by_seed(seeds: Mapping[int, Rows], name: str) -> dict[int, dict[str, float]]:
    """A value's mean over the pictures of each case that has it, seed by seed."""
    found: dict[int, dict[str, float]] = {}
    for seed, rows in seeds.items():
        means, _ = metrics.by_case(rows, [row[name] for row in rows])
        cases = dict.fromkeys(row["case_id"] for row in rows)
        found[seed] = {case: mean for case, mean in zip(cases, means, strict=True) if mean is not None}
    return found


def estimate(seeds: Mapping[int, Rows], name: str) -> Estimate:
    """`over_seeds` of a value of one method's pictures."""
    return _tested(by_seed(seeds, name), _people(seeds))[0]


def difference(a: Mapping[int, Rows], b: Mapping[int, Rows], name: str) -> tuple[Estimate, float | None]:
    """`over_seeds` of a - b, paired by training seed and case; what only one of them has is left out."""
    of_a, of_b = by_seed(a, name), by_seed(b, name)
    paired = {
        seed: {case: of_a[seed][case] - of_b[seed][case] for case in of_a[seed].keys() & of_b[seed].keys()}
        for seed in of_a.keys() & of_b.keys()
    }
    return _tested(paired, _people(a))


def _people(seeds: Mapping[int, Rows]) -> dict[str, Sequence[str]]:
    return {row["case_id"]: row["people"] or [f"\0{row['case_id']}"] for rows in seeds.values() for row in rows}


def _tested(
    values: Mapping[int, Mapping[str, float]], people: Mapping[str, Sequence[str]]
) -> tuple[Estimate, float | None]:
    cases = sorted({case for own in values.values() for case in own})
    if not cases:
        return Estimate(None, None, None, 0), None
    table = np.array([[values[seed].get(case, np.nan) for case in cases] for seed in sorted(values)])
    return over_seeds(table, [people[case] for case in cases])
