"""The strict filter: each reason by a case that has that fault alone, and the assignment against all permutations."""

from itertools import permutations

import numpy as np
import pytest

from pipelines.synthesise.params import Strict
from pipelines.synthesise.strict import Panel, group_fault, pair

STRICT = Strict(min_side=20, min_cosine=0.5, max_cosine=0.9, max_cross_cosine=0.4, max_scenes=1)


def vectors(n: int, seed: int = 0) -> np.ndarray:
    """n orthonormal vectors."""
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(8, 8)))[0][:n].astype(np.float32)


def near(vector: np.ndarray, cosine: float, seed: int = 1) -> np.ndarray:
    """A unit vector at that cosine to another."""
    other = np.random.default_rng(seed).normal(size=vector.shape)
    other -= (other @ vector) * vector
    return (cosine * vector + np.sqrt(1 - cosine**2) * other / np.linalg.norm(other)).astype(np.float32)


def panel(*embeddings: np.ndarray, sides: tuple[float, ...] = (), width: int = 400) -> Panel:
    sides = sides or (40,) * len(embeddings)
    boxes = np.array([[60 * k, 10, 60 * k + side, 10 + 1.3 * side] for k, side in enumerate(sides)]).reshape(-1, 4)
    return Panel(b"", (100, width), boxes, np.array(embeddings).reshape(len(embeddings), 8))


def test_a_good_group_has_no_fault():
    assert group_fault(panel(*vectors(3)), 3, STRICT) is None
    assert group_fault(panel(*vectors(1)), 1, STRICT) is None


@pytest.mark.parametrize(
    ("seen", "n", "reason"),
    [
        (panel(), 2, "no face"),
        (panel(*vectors(1)), 2, "a person is missing"),
        (panel(*vectors(3)), 2, "somebody extra"),
        (panel(*vectors(2), sides=(40, 19)), 2, "a face under 20 px"),
        (panel(vectors(1)[0], near(vectors(1)[0], 0.41)), 2, "two people over 0.4"),
        (panel(*vectors(2), near(vectors(2)[1], 0.41)), 3, "two people over 0.4"),
    ],
)
def test_a_fault_of_the_group(seen, n, reason):
    assert group_fault(seen, n, STRICT) == reason


def test_two_people_may_be_as_alike_as_allowed():
    first = vectors(1)[0]
    assert group_fault(panel(first, near(first, 0.39)), 2, STRICT) is None


def test_everybody_is_found_whatever_the_order():
    wanted = vectors(4)
    drawn = [near(vector, 0.7, k) for k, vector in enumerate(wanted)]
    for order in permutations(range(4)):
        found = pair(wanted, wanted, panel(*(drawn[k] for k in order)), STRICT)
        assert [order[face] for face in found] == [0, 1, 2, 3]


def test_the_pairing_is_the_best_of_all():
    """Greedy would take .9 first and leave .1; the best sum pairs .8 with .7."""
    a, b = vectors(2)
    first, second = 0.9 * a + 0.7 * b, 0.8 * a + 0.1 * b
    loose = STRICT.model_copy(update={"min_cosine": -1, "max_cosine": 2})
    assert pair(np.array([a, b]), np.array([a, b]), panel(first, second), loose).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("cosine", "source", "reason"),
    [
        (0.49, 0.3, "a face under 0.5 to its person"),
        (0.8, 0.91, "a face over 0.9 to what it was drawn from"),
        (0.51, 0.89, None),
    ],
)
def test_a_face_must_be_like_its_person_and_no_copy(cosine, source, reason):
    """The second of two people is at fault; `wanted` and `sources` are told apart."""
    first, drawn = vectors(2)
    wanted = np.array([first, near(drawn, cosine)])
    sources = np.array([near(first, 0.7), near(drawn, source, 5)])
    verdict = pair(wanted, sources, panel(drawn, first), STRICT)
    assert (verdict if isinstance(verdict, str) else None) == reason


def test_the_band_must_be_open():
    with pytest.raises(ValueError, match="min_cosine must be below max_cosine"):
        Strict(min_side=20, min_cosine=0.9, max_cosine=0.9, max_cross_cosine=0.4, max_scenes=1)
