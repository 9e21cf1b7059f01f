"""How well found clusters agree with true ones, from counts and not from pairs: a million faces take a second."""

from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of a found labelling with a true one; each number is 1 for equal ones.

    Attributes:
        precision: pairs of one found cluster that are of one true one; 1 where there is no pair.
        recall: pairs of one true cluster that are of one found one; 1 where there is no pair.
        b_cubed_precision, b_cubed_recall: the mean over the elements of their cluster's part that is of their own kind,
            and of their kind's part that is in their cluster (Bagga and Baldwin, 1998).
        adjusted_rand_index: about 0 by chance (Hubert and Arabie, 1985).
    """

    precision: float
    recall: float
    b_cubed_precision: float
    b_cubed_recall: float
    adjusted_rand_index: float

    def rounded(self) -> dict[str, float]:
        """For a file."""
        return {name: round(value, 5) for name, value in asdict(self).items()}


def agreement(truth: np.ndarray, found: np.ndarray) -> Agreement:
    """Compare two labellings (n,), n > 0, of any integers or strings."""
    rows, columns = (np.unique(labels, return_inverse=True)[1].astype(np.int64) for labels in (truth, found))
    cells, both = np.unique(rows * (columns.max() + 1) + columns, return_counts=True)
    row, column = cells // (columns.max() + 1), cells % (columns.max() + 1)
    true, clusters = np.bincount(rows), np.bincount(columns)
    pairs, in_true, in_clusters, every = (_pairs(counts) for counts in (both, true, clusters, np.array([len(rows)])))
    expected = in_true * in_clusters / every if every else 0.0
    highest = (in_true + in_clusters) / 2
    return Agreement(
        precision=pairs / in_clusters if in_clusters else 1.0,
        recall=pairs / in_true if in_true else 1.0,
        b_cubed_precision=float((both**2 / clusters[column]).sum() / len(rows)),
        b_cubed_recall=float((both**2 / true[row]).sum() / len(rows)),
        adjusted_rand_index=1.0 if highest == expected else (pairs - expected) / (highest - expected),
    )


def _pairs(counts: np.ndarray) -> float:
    return float((counts.astype(np.float64) * (counts - 1) / 2).sum())
