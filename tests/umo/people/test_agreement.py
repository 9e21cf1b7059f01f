"""Agreement of two labellings, against the definitions over pairs and over elements."""

import itertools

import numpy as np
import pytest

from umo.people.agreement import agreement


def pairs(truth, found) -> tuple[int, int, int, int]:
    """Pairs together in both, in the truth, in what was found, and all."""
    every = list(itertools.combinations(range(len(truth)), 2))
    same_truth = [truth[i] == truth[j] for i, j in every]
    same_found = [found[i] == found[j] for i, j in every]
    both = sum(a and b for a, b in zip(same_truth, same_found, strict=True))
    return both, sum(same_truth), sum(same_found), len(every)


def b_cubed(truth, found) -> tuple[float, float]:
    sets = [(set(np.flatnonzero(truth == truth[k])), set(np.flatnonzero(found == found[k]))) for k in range(len(truth))]
    precision = np.mean([len(true & cluster) / len(cluster) for true, cluster in sets])
    recall = np.mean([len(true & cluster) / len(true) for true, cluster in sets])
    return float(precision), float(recall)


@pytest.mark.parametrize("seed", range(5))
def test_counts_give_what_pairs_and_elements_do(seed):
    rng = np.random.default_rng(seed)
    truth, found = rng.integers(0, 4, 30), rng.integers(-7, 2, 30)
    both, true, clusters, every = pairs(truth, found)
    got = agreement(truth, found)
    assert (got.precision, got.recall) == (pytest.approx(both / clusters), pytest.approx(both / true))
    assert (got.b_cubed_precision, got.b_cubed_recall) == pytest.approx(b_cubed(truth, found))
    chance = true * clusters / every
    assert got.adjusted_rand_index == pytest.approx((both - chance) / ((true + clusters) / 2 - chance))


def test_equal_labellings_agree_whatever_the_labels():
    truth = np.array(["b", "a", "b", "c"])
    assert set(agreement(truth, np.array([5, 9, 5, 0])).rounded().values()) == {1.0}


def test_nothing_joined_is_precise_and_recalls_nothing():
    got = agreement(np.array([0, 0, 0, 1]), np.arange(4))
    assert (got.precision, got.recall) == (1, 0)
    assert (got.b_cubed_precision, got.b_cubed_recall) == (1, pytest.approx(0.5))
    assert agreement(np.zeros(1), np.zeros(1)).adjusted_rand_index == 1
