"""Faces -> people: average linkage within a group, and across groups over the nearest neighbours.

Average linkage joins two clusters while the mean cosine between their faces allows. That mean is the inner product of
the clusters' mean vectors, so clusters of any size are compared by one vector each. And two clusters reach a bound only
if two parts of them do, so that the pairs of parts that reach it are all that need to be looked at.
"""

import numpy as np

from umo.people import neighbours

NEIGHBOURS = 24  # of a cluster that are looked at; where all of them reach the bound, it is looked at again


def clusters(embeddings: np.ndarray, min_cosine: float) -> np.ndarray:
    """Average-linkage clusters of unit vectors (n, d): (n,) labels; two merge while their mean cosine allows."""
    from scipy.cluster.hierarchy import fcluster, linkage  # slow to load: not where a stage only reads its params
    from scipy.spatial.distance import squareform

    if len(embeddings) < 2:
        return np.arange(len(embeddings))
    distance = np.clip(1 - embeddings @ embeddings.T, 0, 2).astype(np.float64)
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), "average")
    return fcluster(tree, 1 - min_cosine, "distance") - 1


def within_groups(embeddings: np.ndarray, group: np.ndarray, min_cosine: float, max_group: int) -> np.ndarray:
    """Clusters of unit vectors (n, d) that never leave their group (n,): labels (n,) from 0.

    In a group of more than `max_group`, everyone stays alone: among so many people, some strangers are as alike as
    `min_cosine`, and `link` decides under its stricter bound.
    """
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(group[order]) != 0]) if len(group) else np.zeros(0, np.int64)
    labels = np.empty(len(group), np.int64)
    count = 0
    for members in np.split(order, starts[1:]):
        few = len(members) <= max_group
        labels[members] = count + (clusters(embeddings[members], min_cosine) if few else np.arange(len(members)))
        count = int(labels[members].max(initial=count - 1)) + 1
    return labels


def link(embeddings: np.ndarray, labels: np.ndarray, min_cosine: float, exact: int = neighbours.EXACT) -> np.ndarray:
    """Join clusters by average linkage: labels (n,) from 0.

    Args:
        embeddings: (n, d) unit vectors.
        labels: (n,) of the clusters to begin with, from 0.
        min_cosine: two merge while their mean cosine is at least this.
        exact: up to so many clusters, all pairs are compared.
    """
    labels = np.unique(labels, return_inverse=True)[1]
    sums, counts = sums_of(embeddings, labels), np.bincount(labels)
    search = np.arange(len(counts))
    while len(search):
        pairs, full = _pairs(sums / counts[:, None], search, min_cosine, exact)
        merged = _merge(sums, counts, pairs, min_cosine)
        kept, joined = np.unique(merged, return_inverse=True)
        if len(kept) == len(counts):
            break
        labels = joined[labels]
        sums, counts = sums[kept], counts[kept]
        search = np.unique(joined[full])
    return labels


def sums_of(vectors: np.ndarray, labels: np.ndarray, count: int | None = None) -> np.ndarray:
    """(count, d): the sum of each label's vectors (n, d); a negative label is nobody's."""
    from scipy.sparse import csr_array

    chosen = np.flatnonzero(labels >= 0)
    size = int(labels.max(initial=-1)) + 1 if count is None else count
    ones = np.ones(len(chosen), vectors.dtype)
    return csr_array((ones, (labels[chosen], chosen)), shape=(size, len(vectors))) @ vectors


def _pairs(means: np.ndarray, search: np.ndarray, min_cosine: float, exact: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (m, 2) that reach the bound, and those of `search` whose neighbours all do: there may be more."""
    means = np.ascontiguousarray(means, np.float32)
    dots, found = neighbours.nearest(means, means[search], min(NEIGHBOURS, len(means)), exact)
    good = (dots >= min_cosine) & (found != search[:, None])
    left, right = np.repeat(search, good.sum(1)), found[good]
    pairs = np.unique(np.stack([np.minimum(left, right), np.maximum(left, right)], 1), axis=0)
    return pairs, search[(dots[:, -1] >= min_cosine) & (len(means) > NEIGHBOURS)]


def _merge(sums: np.ndarray, counts: np.ndarray, pairs: np.ndarray, min_cosine: float) -> np.ndarray:
    """Average linkage over the pairs (m, 2): of each cluster the one that it became part of; sums, counts are updated.

    All pairs that are each other's nearest merge at once, which for average linkage ends in the same clusters as one
    merge after the other (Bruynooghe, 1978).
    """
    became = np.arange(len(counts))
    first, second = pairs[:, 0], pairs[:, 1]
    while len(first):
        means = (sums / counts[:, None]).astype(np.float32)
        cosines = neighbours.products(means, means, first, second)
        reached = cosines >= min_cosine
        first, second, cosines = first[reached], second[reached], cosines[reached]
        order = np.lexsort((second, first, -cosines))
        first, second = first[order], second[order]
        nearest = np.full(len(counts), len(first))
        for ends in (first, second):
            np.minimum.at(nearest, ends, np.arange(len(ends)))
        mutual = (nearest[first] == np.arange(len(first))) & (nearest[second] == np.arange(len(first)))
        into, gone = first[mutual], second[mutual]
        sums[into] += sums[gone]
        counts[into] += counts[gone]
        step = np.arange(len(counts))
        step[gone] = into
        became = step[became]
        first, second = step[first], step[second]
        joined = np.unique(np.stack([np.minimum(first, second), np.maximum(first, second)], 1)[first != second], axis=0)
        first, second = joined[:, 0], joined[:, 1]
    return became
