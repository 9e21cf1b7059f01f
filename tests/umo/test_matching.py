from itertools import permutations

import numpy as np
import pytest

from umo.matching import NONE, assign, assigned_cosines, cosine_matrix, match

SIZES = [(m, n) for m in range(1, 7) for n in range(7)]


def brute_force(cosines: np.ndarray) -> float:
    """The largest total over every way of giving min(M, N) references a face of their own."""
    m, n = cosines.shape
    if n < m:
        return brute_force(cosines.T) if n else 0.0
    return max(sum(cosines[k, face] for k, face in enumerate(chosen)) for chosen in permutations(range(n), m))


@pytest.mark.parametrize(("m", "n"), SIZES)
def test_assignment_is_the_best_of_all(m: int, n: int) -> None:
    cosines = np.random.default_rng(10 * m + n).uniform(-1, 1, (m, n))
    assignment = assign(cosines)
    taken = assignment[assignment != NONE]
    assert assignment.shape == (m,)
    assert len(taken) == len(set(taken)) == min(m, n)
    assert np.isclose(np.nansum(assigned_cosines(cosines, assignment)), brute_force(cosines))


@pytest.mark.parametrize(("m", "n"), SIZES)
def test_counts_by_definition(m: int, n: int) -> None:
    cosines = np.random.default_rng(100 * m + n).uniform(-1, 1, (m, n))
    found = match(cosines, 0.3)
    pairs = {k: int(face) for k, face in enumerate(found.assignment) if face != NONE}
    left = [face for face in range(n) if face not in pairs.values()]
    assert found.covered == sum(cosines[k, face] >= 0.3 for k, face in pairs.items())
    assert found.covered + found.missing == m
    assert found.duplicated == sum(max(cosines[:, face]) >= 0.3 for face in left)
    assert found.duplicated + found.extra == len(left) == n - min(m, n)


def test_permuting_people_permutes_the_assignment() -> None:
    generator = np.random.default_rng(0)
    cosines = generator.uniform(-1, 1, (4, 6))
    rows, columns = generator.permutation(4), generator.permutation(6)
    assert (columns[assign(cosines[rows][:, columns])] == assign(cosines)[rows]).all()


def test_threshold_is_inclusive() -> None:
    assert match(np.array([[0.5]]), 0.5).covered == 1


def test_a_second_copy_is_duplicated_and_a_stranger_extra() -> None:
    found = match(np.array([[0.9, 0.8, 0.1]]), 0.4)
    assert (found.covered, found.missing, found.duplicated, found.extra) == (1, 0, 1, 1)


def test_nobody_drawn() -> None:
    found = match(np.zeros((3, 0)), 0.4)
    assert found.assignment.tolist() == [NONE] * 3
    assert (found.covered, found.missing, found.duplicated, found.extra) == (0, 3, 0, 0)


def test_cosine_matrix_has_a_row_a_reference() -> None:
    references, faces = np.eye(3)[:2], np.eye(3)
    assert cosine_matrix(references, faces).tolist() == [[1, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize("bad", [np.array([[np.nan]]), np.zeros(3)])
def test_broken_cosines_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="cosines"):
        assign(bad)
