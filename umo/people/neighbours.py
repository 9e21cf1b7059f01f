"""Nearest neighbours of vectors by inner product: exact for few, through an inverted file of faiss for many."""

from typing import Any

import faiss
import numpy as np

EXACT = 20_000  # vectors up to which every pair is compared
LISTS, PROBES = 8, 64  # lists a square root of the number of vectors, and how many of them a query reads
TRAINING = (4, 16)  # rounds of k-means, and vectors a list
_ROWS = 65_536


def nearest(vectors: np.ndarray, queries: np.ndarray, k: int, exact: int = EXACT) -> tuple[np.ndarray, np.ndarray]:
    """The k vectors with the highest inner product to each query, highest first, the lower index first among equals.

    The same on any number of threads: what faiss finds is multiplied and sorted again, row by row.

    Args:
        vectors: (n, d) float32, of a length of about 1.
        queries: (q, d) float32.
        exact: up to so many vectors, the result is exact.

    Returns:
        Inner products (q, k) and indices (q, k); -inf and -1 where there are fewer than k.
    """
    index = faiss.IndexFlatIP(vectors.shape[1]) if len(vectors) <= exact else _inverted_file(vectors)
    index.add(np.ascontiguousarray(vectors, np.float32))
    dots = np.empty((len(queries), k), np.float32)
    found = np.empty((len(queries), k), np.int64)
    for start in range(0, len(queries), _ROWS):
        part = slice(start, start + _ROWS)
        _, seen = index.search(np.ascontiguousarray(queries[part], np.float32), k)
        rows = np.arange(start, start + len(seen)).repeat(k)
        again = np.where(seen.ravel() >= 0, products(queries, vectors, rows, seen.ravel()), -np.inf).reshape(seen.shape)
        order = np.lexsort((seen, -again), axis=1)
        dots[part], found[part] = np.take_along_axis(again, order, 1), np.take_along_axis(seen, order, 1)
    return dots, found


def products(first: np.ndarray, second: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Inner products (m,) float32 of first[i] and second[j], without BLAS, whose sums depend on the threads."""
    found = np.empty(len(i), np.float32)
    for start in range(0, len(i), _ROWS):
        part = slice(start, start + _ROWS)
        found[part] = np.einsum("ij,ij->i", first[i[part]], second[j[part]])
    return found


def _inverted_file(vectors: np.ndarray) -> Any:
    """An empty index whose lists are around the centres of a k-means over a sample of the vectors that it is for."""
    lists = int(LISTS * np.sqrt(len(vectors)))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(vectors.shape[1]), vectors.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
    index.nprobe = PROBES
    index.cp.niter, index.cp.max_points_per_centroid = TRAINING
    index.cp.min_points_per_centroid = 1
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # the centres' last bits, and with them the lists, are then the same everywhere
    try:
        index.train(np.ascontiguousarray(vectors, np.float32))
    finally:
        faiss.omp_set_num_threads(threads)
    return index
