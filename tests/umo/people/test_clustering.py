"""Linking over neighbours against brute-force average linkage; the approximate search against the exact one."""

import faiss
import numpy as np
import pytest

from umo.people import clustering, neighbours
from umo.people.agreement import agreement


def faces(seed: int, people: int, each: int, dimension: int = 128, noise=(0.3, 1.0)) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of people, some of them far from their centre, and who they are."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(people, dimension))
    vectors = np.repeat(centres, each, axis=0)
    vectors += rng.uniform(*noise, (len(vectors), 1)) * rng.normal(size=vectors.shape)
    order = rng.permutation(len(vectors))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit[order].astype(np.float32), np.repeat(np.arange(people), each)[order]


def brute_force(vectors: np.ndarray, labels: np.ndarray, min_cosine: float) -> np.ndarray:
    """Merge the two clusters with the highest mean cosine, from the pairs of their faces, until none reaches it."""
    members = [np.flatnonzero(labels == label).tolist() for label in np.unique(labels)]
    cosines = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    while len(members) > 1:
        means = np.array([[cosines[np.ix_(a, b)].mean() if a is not b else -2 for b in members] for a in members])
        first, second = np.unravel_index(means.argmax(), means.shape)
        if means[first, second] < min_cosine:
            break
        members[first] += members[second]
        del members[second]
    found = np.empty(len(vectors), int)
    for number, rows in enumerate(members):
        found[rows] = number
    return found


def same(first: np.ndarray, second: np.ndarray) -> bool:
    return agreement(first, second).adjusted_rand_index == 1


def test_clusters_of_measured_similarities():
    """Same-person and stranger cosines as FACES.md measures them: .8 and .1."""
    vectors, people = faces(0, 20, 8, noise=(0.5, 0.5))
    assert same(people, clustering.clusters(vectors, 0.4))
    assert len(clustering.clusters(vectors[:1], 0.4)) == 1


@pytest.mark.parametrize("min_cosine", [0.2, 0.45, 0.7])
@pytest.mark.parametrize("seed", range(3))
def test_linking_is_average_linkage(seed, min_cosine):
    """12 dimensions: strangers are alike, and only the mean over all pairs tells; from faces, and from clusters."""
    vectors, _ = faces(seed, 9, 4, dimension=12)
    alone = np.arange(len(vectors))
    assert same(brute_force(vectors, alone, min_cosine), clustering.link(vectors, alone, min_cosine))
    begun = clustering.clusters(vectors, 0.8)
    assert same(brute_force(vectors, begun, min_cosine), clustering.link(vectors, begun, min_cosine))


def test_more_faces_of_one_person_than_neighbours_are_looked_at(monkeypatch):
    """With one neighbour beside itself a cluster, it takes several searches until nothing merges any more."""
    monkeypatch.setattr(clustering, "NEIGHBOURS", 2)
    vectors, people = faces(1, 6, 100, noise=(0.3, 0.6))
    assert same(people, clustering.link(vectors, np.arange(len(vectors)), 0.4))


def test_a_chain_of_alike_people_is_not_one_person():
    """Eight vectors, each at cosine .8 to the next: linked one by one they would all be one."""
    angle = np.arccos(0.8) * np.arange(8)
    chain = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    labels = clustering.link(chain, np.arange(8), 0.75)
    for label in np.unique(labels):
        rows = chain[labels == label]
        assert (rows @ rows.T).mean() >= 0.75
    assert len(np.unique(labels)) >= 4


def test_groups_stay_apart_and_large_ones_are_left_to_linking():
    vectors, people = faces(2, 9, 10, noise=(0.3, 0.5))
    group = np.where(people < 6, np.arange(len(people)) % 3, 7)
    labels = clustering.within_groups(vectors, group, 0.4, max_group=25)
    small = group < 3
    assert sorted(np.unique(labels)) == list(range(labels.max() + 1))
    assert same(people[small] * 3 + group[small], labels[small])
    assert len(np.unique(labels[~small])) == (~small).sum() == 30
    assert same(people, clustering.link(vectors, labels, 0.5))


def test_approximate_search_finds_what_the_exact_one_does():
    """3,000 people twice or thrice among 128 dimensions, and 500 strangers: the same people, pair by pair."""
    vectors = np.concatenate([faces(3, 3000, 2, noise=(0.3, 0.6))[0], faces(4, 500, 1)[0]])
    exact = clustering.link(vectors, np.arange(len(vectors)), 0.5)
    found = clustering.link(vectors, np.arange(len(vectors)), 0.5, exact=0)
    assert agreement(exact, found).precision == 1
    assert agreement(exact, found).recall >= 0.995


def test_neighbours_are_the_highest_products():
    vectors, _ = faces(5, 100, 3)
    vectors[1] = vectors[0]
    dots, index = neighbours.nearest(vectors, vectors[:40], 7)
    full = vectors[:40] @ vectors.T
    np.testing.assert_allclose(dots, -np.sort(-full, axis=1)[:, :7], atol=1e-6)
    assert (index[0, :2] == [0, 1]).all(), "the lower index first"
    few, none = neighbours.nearest(vectors[:2], vectors[:1], 4)
    assert none[0, 2:].tolist() == [-1, -1]
    assert np.isneginf(few[0, 2:]).all()


def test_threads_do_not_change_the_result():
    vectors = np.concatenate([faces(6, 2000, 2)[0], faces(7, 500, 1)[0]])
    results = []
    threads = faiss.omp_get_max_threads()
    try:
        for count in (1, 2):
            faiss.omp_set_num_threads(count)
            results.append(neighbours.nearest(vectors, vectors, 8, exact=0))
    finally:
        faiss.omp_set_num_threads(threads)
    for first, second in zip(*results, strict=True):
        np.testing.assert_array_equal(first, second)
