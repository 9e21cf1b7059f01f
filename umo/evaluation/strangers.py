"""How a judge takes people who are not each other: whether its scale fits them. Pure numpy."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from umo.matching import cosine_matrix

MIN_PEOPLE = 3
MOST_PASSING = 0.03  # share of pairs of different people who may pass as one; more is a scale that does not fit
MIN_PAIRS = 10  # of fewer, one alike pair would be many


def strangers(
    references: np.ndarray, same_person_cosine: float, resamples: int = 2_000, seed: int = 0
) -> dict[str, Any] | None:
    """How alike the judge finds different people, and what share of their pairs it would take for one person.

    Args:
        references: (n, d) unit vectors, each of another person.

    Returns:
        {"people", "pairs", "mean", "p95", "p99", "passing", "low", "high"}: cosines over the pairs, and the share at or
        above the threshold with its 95 % interval, from a bootstrap that draws people. None for fewer than 3 people.
    """
    n = len(references)
    if n < MIN_PEOPLE:
        return None
    cosines = cosine_matrix(references, references)
    pairs = cosines[np.triu_indices(n, 1)]
    passing = (cosines >= same_person_cosine).astype(np.float32)
    np.fill_diagonal(passing, 0)
    times = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float32)
    # A person drawn twice is no pair of different people: both sums run over different people alone.
    total = times.sum(axis=1) ** 2 - (times**2).sum(axis=1)
    passed = ((times @ passing) * times).sum(axis=1)[total > 0] / total[total > 0]
    p95, p99 = np.percentile(pairs, [95, 99])
    low, high = np.percentile(passed, [2.5, 97.5])
    return {
        "people": n,
        "pairs": len(pairs),
        "mean": float(pairs.mean()),
        "p95": float(p95),
        "p99": float(p99),
        "passing": float((pairs >= same_person_cosine).mean()),
        "low": float(low),
        "high": float(high),
    }


def warning(found: Mapping[str, Any]) -> str | None:
    """One line where the result of `strangers` says that the judge's scale does not fit these people."""
    if found["passing"] <= MOST_PASSING or found["pairs"] < MIN_PAIRS:
        return None
    return (
        f"{100 * found['passing']:.3g} % of {found['pairs']} pairs of different people among these references pass as "
        f"the same person (at most {100 * MOST_PASSING:.0f} % is expected): coverage and the counts built on it are "
        "too high for them; see docs/concepts/judging.md"
    )
