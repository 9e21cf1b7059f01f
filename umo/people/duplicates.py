"""Pictures that are nearly the same: their 64-bit perceptual hashes differ in few bits."""

import itertools
import math

import numpy as np

BITS = 64


def repeated(hashes: np.ndarray, max_bits: int) -> np.ndarray:
    """Which pictures repeat one before them (n,) bool; one that repeats a repeated picture only, does not.

    Args:
        hashes: (n,) uint64, the copy to be kept before the others.
        max_bits: by which two hashes of one picture may differ.
    """
    values, first = np.unique(hashes, return_index=True)
    order = np.argsort(first)
    values, first = values[order], first[order]
    dropped = np.ones(len(hashes), bool)
    dropped[first] = False
    pairs = near_pairs(values, max_bits)
    again = np.zeros(len(values), bool)
    for kept, other in pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))].tolist():
        if not again[kept]:
            again[other] = True
    dropped[first[again]] = True
    return dropped


def near_pairs(hashes: np.ndarray, max_bits: int) -> np.ndarray:
    """All pairs (m, 2), the lower index first, of different hashes (n,) uint64 that differ in at most so many bits.

    Cut into max_bits + q parts, two such hashes agree in q parts at least: only those that do are compared.
    """
    found = [np.zeros((0, 2), np.int64)]
    if max_bits and len(hashes) > 1:
        needed = _parts_that_agree(len(hashes), max_bits)
        edges = [round(k * BITS / (max_bits + needed)) for k in range(max_bits + needed + 1)]
        masks = [(1 << high) - (1 << low) for low, high in itertools.pairwise(edges)]
        for parts in itertools.combinations(masks, needed):
            found += _pairs_of_equal(hashes, np.uint64(sum(parts)), max_bits)
    return np.unique(np.concatenate(found), axis=0)


def _parts_that_agree(count: int, max_bits: int) -> int:
    """The q that costs least for so many hashes: a table's sorting, and the comparisons inside its equal keys."""

    def cost(needed: int) -> float:
        parts = max_bits + needed
        return math.comb(parts, needed) * count * (20 + count / 2 ** (BITS * needed / parts))

    return min(range(1, 5), key=cost)


def _pairs_of_equal(hashes: np.ndarray, mask: np.uint64, max_bits: int) -> list[np.ndarray]:
    """Near pairs (m, 2) among hashes that agree where the mask has bits: neighbours 1, 2, ... apart when sorted."""
    keys = hashes & mask
    order = np.argsort(keys, kind="stable")
    keys, hashes = keys[order], hashes[order]
    left, apart, found = np.arange(len(keys) - 1), 1, []
    while len(left):
        left = left[keys[left] == keys[left + apart]]
        near = left[np.bitwise_count(hashes[left] ^ hashes[left + apart]) <= max_bits]
        found.append(np.sort(np.stack([order[near], order[near + apart]], 1), axis=1))
        apart += 1
        left = left[left + apart < len(keys)]
    return found
