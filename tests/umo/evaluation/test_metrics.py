from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from umo.evaluation import metrics
from umo.evaluation.metrics import Estimate, bootstrap
from umo.matching import assign, cosine_matrix

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


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng([*shape, seed]).normal(size=shape)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.mark.parametrize(("m", "n"), SIZES)
def test_counts_of_faces(m: int, n: int) -> None:
    cosines = cosines_of(m, n)
    found = metrics.score(cosines, 0.3)
    first, doubled = set(), 0
    for face in range(n):
        owner = max(range(m), key=lambda k: cosines[k, face])
        if cosines[owner, face] >= 0.3:
            doubled += owner in first
            first.add(owner)
    assert found["doubled"] == doubled
    assert (found["absent"], found["surplus"]) == (m - min(m, n), n - min(m, n))


def test_two_assigned_faces_of_one_person_are_doubled_and_not_duplicated() -> None:
    found = metrics.score(np.array([[0.9, 0.8], [0.5, 0.1]]), 0.4)
    assert (found["covered"], found["duplicated"], found["doubled"], found["absent"]) == (2, 0, 1, 0)


@pytest.mark.parametrize("n", range(1, 7))
def test_swapped_pairs(n: int) -> None:
    generator = np.random.default_rng(n)
    for _ in range(30):
        places = generator.integers(0, 5, n).astype(float)
        middles = generator.integers(0, 5, n).astype(float)
        places[generator.random(n) < 0.2] = np.nan
        middles[generator.random(n) < 0.2] = np.nan
        swapped = placed = 0
        for k in range(n):
            for j in range(k):
                if places[k] < places[j] or places[k] > places[j]:
                    if np.isnan(middles[k]) or np.isnan(middles[j]):
                        continue
                    placed += 1
                    left, right = (k, j) if places[k] < places[j] else (j, k)
                    swapped += middles[left] > middles[right]
        assert metrics.swapped(places, middles) == (swapped if placed else None, placed)


def test_only_who_is_covered_can_be_swapped() -> None:
    boxes = np.array([[60.0, 0, 80, 20], [0, 0, 20, 20], [30, 0, 50, 20]])
    cosines = np.array([[0.9, 0.0, 0.0], [0.0, 0.9, 0.0], [0.0, 0.0, 0.9]])  # they stand as 2, 3, 1
    found = metrics.score(cosines, 0.5, boxes=boxes, places=[0, 1, 2])
    assert (found["swapped"], found["placed"]) == (2, 3)
    found = metrics.score(cosines * [[1.0], [1.0], [0.5]], 0.5, boxes=boxes, places=[0, 1, 2])
    assert (found["swapped"], found["placed"]) == (1, 1)
    found = metrics.score(cosines, 0.5, boxes=boxes, places=[None, 1, 2])
    assert (found["swapped"], found["placed"]) == (0, 1)
    for asked in (None, [None, None, 2]):
        found = metrics.score(cosines, 0.5, boxes=boxes, places=asked)
        assert (found["swapped"], found["placed"]) == (None, 0)


@pytest.mark.parametrize(("m", "n"), SIZES)
def test_blend_and_collapse(m: int, n: int) -> None:
    references, faces = unit(m, 4), unit(n, 4, seed=1)
    cosines = cosine_matrix(references, faces)
    assignment = assign(cosines)
    beyond = [
        float(references[k] @ faces[assignment[j]] - references[k] @ references[j])
        for k in range(m)
        for j in range(m)
        if j != k and assignment[j] >= 0
    ]
    found = metrics.score(cosines, 0.2, references=references, faces=faces)
    assert found["blend"] == (pytest.approx(np.mean(beyond)) if beyond else None)
    alike = [float(faces[k] @ faces[j]) >= 0.2 for k in range(n) for j in range(k)]
    assert found["collapse"] == (pytest.approx(np.mean(alike)) if alike else None)
    without = metrics.score(cosines, 0.2)
    assert (without["blend"], without["collapse"]) == (None, None)


def test_look_alikes_drawn_as_they_are_do_not_blend() -> None:
    twins = np.array([[1.0, 0.0], [0.8, 0.6]])
    assert metrics.blend(cosine_matrix(twins, twins), np.array([0, 1]), twins) == pytest.approx(0)
    mean = np.array([[0.9, 0.3]]) / np.linalg.norm([0.9, 0.3])
    assert metrics.blend(cosine_matrix(twins, np.repeat(mean, 2, axis=0)), np.array([0, 1]), twins) > 0.1


@pytest.mark.parametrize("k", range(6))
def test_diversity(k: int) -> None:
    vectors, usable = unit(k, 4), np.random.default_rng(k).random(k) < 0.7
    kept = [vector for vector, used in zip(vectors, usable, strict=True) if used]
    apart = [1 - float(a @ b) for a, b in combinations(kept, 2)]
    assert metrics.diversity(vectors, usable) == (pytest.approx(np.mean(apart)) if apart else None)


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


def test_copy_paste_of_targets_clearly_apart_alone() -> None:
    cosines = np.array([[0.9, 0.99], [0.7, 0.985], [0.5, 0.985]])  # the second target is 0.17 radians away
    near, far = (metrics.copy_paste(*cosines[:, [k]]) for k in (1, 0))
    assert metrics.copy_paste(*cosines, min_angle=metrics.CLEAR_ANGLE) == far
    assert metrics.copy_paste(*cosines) == pytest.approx((near + far) / 2)
    assert metrics.copy_paste(*cosines[:, [1]], min_angle=metrics.CLEAR_ANGLE) is None


def test_likeness_to_the_target_counts_a_missing_person_but_not_a_missing_target() -> None:
    nan = np.nan
    assert metrics.sim_target(np.array([0.8, nan, nan]), np.array([0.5, 0.6, nan])) == pytest.approx(0.4)
    assert metrics.sim_target(np.array([nan]), np.array([nan])) is None


def test_a_row_as_metrics() -> None:
    cosines = np.array([[0.9, 0.1, 0.8], [0.1, 0.2, 0.1]])
    boxes = np.array([[0.0, 0, 9, 9], [20, 0, 29, 9], [40, 0, 49, 9]])
    two = {"n": 2} | metrics.score(cosines, 0.15, boxes=boxes, places=[2, 1])
    assert [metrics.of_row(two, name) for name in ("absent", "surplus", "doubled", "swapped")] == [0, 1, 1, 1]
    assert (metrics.of_row(two, "count_right"), metrics.of_row(two, "count_difference")) == (0, 1)
    one = {"n": 2} | metrics.score(cosines[:, :1], 0.15)
    assert (metrics.of_row(one, "absent"), metrics.of_row(one, "swapped")) == (1, None)
    assert (metrics.of_row(one, "count_right"), metrics.of_row(one, "count_difference")) == (0, -1)
    assert metrics.of_row({"n": 2} | metrics.score(cosines[:, :2], 0.15), "count_right") == 1
    assert all(metrics.of_row({"n": 2, "n_faces": None}, name) is None for name in metrics.METRICS)


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


def test_p_counts_the_draws_beyond_0() -> None:
    values = np.random.default_rng(2).normal(0.3, 1, size=15)
    estimate, p = metrics.tested(values.tolist())
    generator = np.random.default_rng(3)
    means = [generator.choice(values, 15).mean() for _ in range(10_000)]
    assert p == pytest.approx(2 * np.mean([mean <= 0 for mean in means]), abs=0.03)
    assert estimate == bootstrap(values.tolist())
    assert metrics.tested((-values).tolist())[1] == p
    assert metrics.tested([0.0, 0.0])[1] == 1
    assert metrics.tested([1.0, 1.0], resamples=100)[1] == 1 / 101
    assert metrics.tested([1.0])[1] is None


@pytest.mark.parametrize("count", range(7))
def test_holm_steps_down(count: int) -> None:
    p = np.random.default_rng(count).choice([0.001, 0.004, 0.01, 0.02, 0.04, 0.2, 0.9], count).tolist()
    corrected = metrics.holm(p)
    for level in np.linspace(0.0005, 0.9995, 300):
        left = sorted(range(count), key=lambda k: p[k])  # the smallest first, until one does not pass
        rejected = set()
        while left and p[left[0]] * len(left) <= level:
            rejected.add(left.pop(0))
        assert {k for k in range(count) if corrected[k] <= level} == rejected


def people_of(sizes: dict[str, int], seed: int = 0) -> tuple[dict[str, float], dict[str, float], dict[str, str]]:
    """Cosines drawn and real, and the group, of some people of each group."""
    generator = np.random.default_rng(seed)
    groups = {f"{name}{k}": name for name, size in sizes.items() for k in range(size)}
    drawn, real = ({person: float(generator.uniform(0, 1)) for person in groups} for _ in range(2))
    return drawn, real, groups


def test_gap_between_groups() -> None:
    drawn, real, groups = people_of({"a": 6, "b": 9, "c": 3, "d": 2, "e": 5})
    del real["b0"]
    found = metrics.gap(drawn, real, groups)
    pooled = {person: "other" if group in "cd" else group for person, group in groups.items()}
    spans = []
    for of in (drawn, real):
        means = {}
        for group in ("a", "b", "e", "other"):
            own = [of[person] for person in of if pooled[person] == group]
            means[group] = sum(own) / len(own)
            key = "drawn" if of is drawn else "judge"
            assert found["groups"][group][key] == pytest.approx(means[group])
        spans.append(max(means.values()) - min(means.values()))
    assert {group: own["people"] for group, own in found["groups"].items()} == {"a": 6, "b": 9, "e": 5, "other": 5}
    assert found["drawn"]["gap"] == pytest.approx(spans[0])
    assert found["judge"]["gap"] == pytest.approx(spans[1])
    assert found["difference"]["gap"] == pytest.approx(spans[0] - spans[1])
    generator, resampled = np.random.default_rng(9), []
    for _ in range(3000):
        again = {}
        for group in ("a", "b", "e", "other"):
            people = [person for person in drawn if pooled[person] == group]
            again[group] = generator.choice(people, len(people))
        both = []
        for of in (drawn, real):
            means = [np.mean([of[person] for person in people if person in of]) for people in again.values()]
            both.append(max(means) - min(means))
        resampled.append(both[0] - both[1])
    low, high = np.percentile(resampled, [2.5, 97.5])
    assert found["difference"]["low"] == pytest.approx(low, abs=0.03)
    assert found["difference"]["high"] == pytest.approx(high, abs=0.03)
    assert found == metrics.gap(drawn, real, groups)


def test_gap_needs_groups_and_real_pictures() -> None:
    drawn, real, groups = people_of({"a": 5, "b": 4})
    assert metrics.gap(drawn, real, groups) is None
    drawn, real, groups = people_of({"a": 5, "b": 4, "c": 1})
    found = metrics.gap(drawn, {}, groups)
    assert found["groups"].keys() == {"a", "other"}
    assert (found["judge"], found["difference"], found["groups"]["a"]["judge"]) == (None, None, None)
    even = metrics.gap(dict.fromkeys(drawn, 0.5), dict.fromkeys(drawn, 0.25), groups)
    assert even["difference"] == {"gap": 0, "low": 0, "high": 0}


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
