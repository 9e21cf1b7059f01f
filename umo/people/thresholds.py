"""Where a bound on the cosine of two faces should be: fitted to pairs of one person and of two."""

import numpy as np

BINS = np.round(np.linspace(-0.6, 1.0, 65), 3)


def pairs_within(
    embeddings: np.ndarray, group: np.ndarray, owner: np.ndarray, chosen: np.ndarray, faces: int = 3000
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of pairs of faces of one group: of one person, and of two. Whole groups, in a drawn order.

    Args:
        embeddings: (n, d) unit vectors.
        group, owner: (n,).
        chosen: indices of the faces that are looked at.
        faces: so many at most; a sample of the last group where it is more than is left.
    """
    rng = np.random.default_rng(0)
    numbers, dense = np.unique(group[chosen], return_inverse=True)
    order = np.lexsort((rng.random(len(chosen)), rng.permutation(len(numbers))[dense]))[:faces]
    taken = chosen[order]
    vectors = embeddings[taken]
    first, second = np.nonzero(np.triu(group[taken][:, None] == group[taken], 1))
    cosines = np.einsum("ij,ij->i", vectors[first], vectors[second])
    same = owner[taken][first] == owner[taken][second]
    return cosines[same], cosines[~same]


def fit(same: np.ndarray, different: np.ndarray) -> dict[str, float | None]:
    """Bounds from cosines of pairs of one person (n,) and of two (m,), rounded to 4 digits; None where one has no pair.

    Returns:
        equal_error: cosine at which as large a part of the different pairs reaches it as of the same pairs does not.
        error: that part.
        precision_99: the least cosine from which on .99 of all pairs that reach it are of one person, in the
            proportion in which they are given.
    """
    if not len(same) or not len(different):
        return {"equal_error": None, "error": None, "precision_99": None}
    cosines = np.concatenate([same, different]).astype(np.float64)
    order = np.argsort(-cosines, kind="stable")
    cosines, one = cosines[order], (order < len(same))
    accepted, wrong = np.cumsum(one), np.cumsum(~one)
    last = np.r_[cosines[1:] != cosines[:-1], True]  # equal cosines are accepted together
    missed, false = 1 - accepted / len(same), wrong / len(different)
    best = np.flatnonzero(last)[np.argmin(np.abs(missed - false)[last])]
    precise = np.flatnonzero(last & (accepted >= 0.99 * (accepted + wrong)))
    return {
        "equal_error": round(float(cosines[best]), 4),
        "error": round(float((missed + false)[best] / 2), 6),
        "precision_99": round(float(cosines[precise[-1]]), 4) if len(precise) else None,
    }


def histogram(cosines: np.ndarray) -> list[int]:
    """Counts of cosines between the neighbours in BINS; those beyond the ends are in the end ones."""
    return np.histogram(np.clip(cosines, BINS[0], BINS[-1]), BINS)[0].tolist()
