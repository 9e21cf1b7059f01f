import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from umo.evaluation import metrics
from umo.evaluation.metrics import Estimate, bootstrap
from umo.matching import assign

SIZES = [(m, n) for m in range(1, 7) for n in range(7)]


def cosines_of(m: int, n: int) -> np.ndarray:
    return np.random.default_rng(7 * m + n).uniform(-0.5, 1, (m, n))


def released_id_sim(rows: list[list[float]]) -> float:
    """A loop a picture, as the released evaluation goes about it."""
    total = 0.0
    for row in rows:
        best = 0.0 if not row else row[0]
        for value in row:
            if value > best:
                best = value
        total += best
    return total / len(rows)


def released_id_conf(rows: list[list[float]]) -> float | None:
    values = []
    for row in rows:
        if len(row) < 2:
            return None
        first, second = sorted(row, reverse=True)[:2]
        values.append(0.0 if first <= 0 else min(max(1 - second / first, 0.0), 1.0))
    return sum(values) / len(values)


@pytest.mark.parametrize(("m", "n"), SIZES)
def test_released_metrics(m: int, n: int) -> None:
    cosines = cosines_of(m, n)
    assert metrics.id_sim(cosines) == pytest.approx(released_id_sim(cosines.tolist()))
    assert metrics.id_conf(cosines) == (None if n < 2 else pytest.approx(released_id_conf(cosines.tolist())))


@pytest.mark.parametrize(("m", "n"), SIZES)
def test_strict_metrics(m: int, n: int) -> None:
    cosines = cosines_of(m, n)
    assignment = assign(cosines)
    similar, confident = [], []
    for k in range(m):
        face = assignment[k]
        own = cosines[k, face] if face >= 0 else 0.0
        others = [cosines[k, j] for j in range(n) if j != face]
        second = max(others) if others else 0.0
        similar.append(own)
        confident.append(min(max(1 - second / own, 0.0), 1.0) if own > 0 else 0.0)
    assert metrics.id_sim_strict(cosines, assignment) == pytest.approx(np.mean(similar))
    expected = None if m == 1 else pytest.approx(np.mean(confident))
    assert metrics.id_conf_strict(cosines, assignment) == expected


matrices = st.tuples(st.integers(1, 6), st.integers(0, 6)).flatmap(
    lambda shape: arrays(float, shape, elements=st.floats(-1, 1, width=32))
)


@settings(max_examples=200, deadline=None)
@given(matrices)
def test_ranges(cosines: np.ndarray) -> None:
    assignment = assign(cosines)
    best = np.maximum(cosines.max(axis=1, initial=-1), 0)
    assert -1 <= metrics.id_sim_strict(cosines, assignment) <= best.mean() + 1e-9
    for value in (metrics.id_conf(cosines), metrics.id_conf_strict(cosines, assignment)):
        assert value is None or 0 <= value <= 1


def test_a_missing_person_costs_only_in_the_strict_form() -> None:
    both, one = np.array([[0.8, 0.1], [0.1, 0.8]]), np.array([[0.8], [0.1]])
    assert metrics.id_conf(one) is None
    assert metrics.id_sim_strict(both, assign(both)) == pytest.approx(0.8)
    assert metrics.id_sim_strict(one, assign(one)) == pytest.approx(0.4)
    assert metrics.id_conf_strict(one, assign(one)) == pytest.approx(0.5)


def test_one_face_cannot_serve_two_references_in_the_strict_form() -> None:
    blend = np.array([[0.6], [0.6]])
    assert metrics.id_sim(blend) == pytest.approx(0.6)
    assert metrics.id_sim_strict(blend, assign(blend)) == pytest.approx(0.3)


def test_copy_paste_is_one_for_a_copy_of_the_reference_and_minus_one_for_the_target() -> None:
    apart = np.array([0.5])
    assert metrics.copy_paste(np.array([1.0]), apart, apart) == pytest.approx(1)
    assert metrics.copy_paste(apart, np.array([1.0]), apart) == pytest.approx(-1)


def test_copy_paste_leaves_out_who_was_not_found_and_the_same_photograph() -> None:
    nan = np.nan
    assert metrics.copy_paste(np.array([1.0, nan]), np.array([0.5, nan]), np.array([0.5, 0.2])) == pytest.approx(1)
    assert metrics.copy_paste(np.array([0.9]), np.array([0.9]), np.array([1.0])) is None
    assert metrics.copy_paste(np.array([nan]), np.array([nan]), np.array([nan])) is None


@pytest.mark.parametrize(
    ("values", "people", "expected"),
    [
        ([], None, Estimate(None, None, None, 0)),
        ([None, None], None, Estimate(None, None, None, 0)),
        ([0.3], None, Estimate(0.3, None, None, 1)),
        ([0.2, 0.4], [["a"], ["a"]], Estimate(pytest.approx(0.3), None, None, 2)),
        ([0.2, 0.4], [["a", "b"], ["b", "a"]], Estimate(pytest.approx(0.3), None, None, 2)),
        ([0.5, 0.5, None], None, Estimate(0.5, 0.5, 0.5, 2)),
    ],
)
def test_bootstrap_edges(values: list, people: list | None, expected: Estimate) -> None:
    assert bootstrap(values, people) == expected


def test_bootstrap_is_deterministic_and_does_not_depend_on_names() -> None:
    values = np.random.default_rng(0).normal(size=12).tolist()
    people = [[f"p{i % 5}", f"q{i % 3}"] for i in range(12)]
    assert bootstrap(values, people) == bootstrap(values, people)
    assert bootstrap(values, people, seed=1) != bootstrap(values, people)


def test_people_who_share_no_case_are_the_plain_bootstrap() -> None:
    values = np.random.default_rng(1).normal(size=9).tolist()
    assert bootstrap(values, [[f"a{i}", f"b{i}"] for i in range(9)]) == bootstrap(values)


def simulated_coverage(size: int, trials: int = 200) -> tuple[float, float]:
    """How often the interval holds the truth, 0, where cases of `size` people share 20 people: clustered, plain."""
    generator = np.random.default_rng(5)
    hits = np.zeros(2)
    for trial in range(trials):
        effect = generator.normal(size=20)
        drawn = [generator.choice(20, size, replace=False) for _ in range(60)]
        values = [float(effect[case].mean() + generator.normal(0, 0.3)) for case in drawn]
        people = [[str(person) for person in case] for case in drawn]
        found = [bootstrap(values, given, resamples=500, seed=trial) for given in (people, None)]
        hits += [estimate.low <= 0 <= estimate.high for estimate in found]
    clustered, plain = hits / trials
    return clustered, plain


@pytest.mark.parametrize("size", [1, 2])
def test_bootstrap_covers_where_people_are_shared(size: int) -> None:
    clustered, plain = simulated_coverage(size)
    assert 0.88 <= clustered <= 1
    assert plain < 0.8
