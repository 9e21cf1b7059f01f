"""The numbers of an evaluation. Pure numpy: cosine matrices in; metrics, their means and bootstrap intervals out.

A cosine matrix is (n, N): a row a reference, a column a drawn face; N = 0 is a picture without a face. ID-Sim and
ID-Conf are computed as UMO's released code does (arXiv 2509.06818, section 4 and bytedance/UMO @ aada3dc); the strict
forms close their two gaps: a missing person costs, and no picture is skipped.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from umo.matching import NONE, assigned_cosines, match

METRICS = (
    "id_sim",
    "id_conf",
    "id_sim_strict",
    "id_conf_strict",
    "coverage",
    "duplicates",
    "extra",
    "copy_paste",
)
SIDE_EFFECTS = ("people_right", "order_right", "background_right", "sharpness_error", "diffusion_loss", "variety")
LOWER_IS_BETTER = frozenset({"duplicates", "extra", "copy_paste", "sharpness_error", "diffusion_loss"})
MIN_ANGLE = 0.01  # radians; a target this near its reference is the same photograph, and the ratio means nothing
_CHUNK = 4_000_000  # weights held at once by the bootstrap


def id_sim(cosines: np.ndarray) -> float:
    """ID-Sim in [-1, 1]: for each reference its largest cosine over the drawn faces; the mean. No face gives 0."""
    return float(cosines.max(axis=1).mean()) if cosines.shape[1] else 0.0


def id_conf(cosines: np.ndarray) -> float | None:
    """ID-Conf in [0, 1]: for each reference `clip(1 - second / first, 0, 1)` of its two most similar drawn faces.

    As released: first <= 0 gives 0, and a picture of fewer than two faces is skipped (None), so that a missing person
    is never penalised.
    """
    if cosines.shape[1] < 2:
        return None
    ordered = np.sort(cosines, axis=1)
    return _confidence(ordered[:, -1], ordered[:, -2])


def id_sim_strict(cosines: np.ndarray, assignment: np.ndarray) -> float:
    """The mean cosine over the assignment in [-1, 1]: one drawn face cannot serve two references.

    A reference without a face counts 0; a negative cosine is not clipped.
    """
    return float(np.nan_to_num(assigned_cosines(cosines, assignment)).mean())


def id_conf_strict(cosines: np.ndarray, assignment: np.ndarray) -> float | None:
    """ID-Conf over the assignment in [0, 1]: `clip(1 - second / assigned, 0, 1)`, the mean over the references.

    `second` is the largest cosine among the faces other than the assigned one (0 where there is none). Assigned <= 0
    and no face at all give 0. None for one reference, who cannot be confused with another.
    """
    if len(assignment) < 2:
        return None
    others = cosines.astype(float, copy=True)
    (rows,) = np.nonzero(assignment != NONE)
    others[rows, assignment[rows]] = -np.inf
    second = others.max(axis=1, initial=-np.inf)
    second[np.isneginf(second)] = 0.0
    return _confidence(np.nan_to_num(assigned_cosines(cosines, assignment)), second)


def _confidence(first: np.ndarray, second: np.ndarray) -> float:
    positive = first > 0
    ratio = np.divide(second, first, out=np.ones(len(first)), where=positive)
    return float(np.where(positive, np.clip(1 - ratio, 0, 1), 0.0).mean())


def copy_paste(drawn_reference: np.ndarray, drawn_target: np.ndarray, target_reference: np.ndarray) -> float | None:
    """How much nearer a drawn face is to the reference photograph than to the person's other photograph (WithAnyone).

    `(angle(drawn, target) - angle(drawn, reference)) / angle(target, reference)`: 1 is a copy of the reference, -1 a
    copy of the target.

    Args:
        drawn_reference, drawn_target, target_reference: (n,) cosines, an entry a reference; NaN where the person's
            drawn face or target face was not found.

    Returns:
        The mean over the references that have all three and whose target is another photograph (an angle of at least
        `MIN_ANGLE`); None where there is none.
    """
    cosines = np.stack([drawn_target, drawn_reference, target_reference]).astype(float)
    to_target, to_reference, apart = np.arccos(np.clip(cosines, -1, 1))
    usable = np.isfinite(cosines).all(axis=0) & (apart >= MIN_ANGLE)
    if not usable.any():
        return None
    return float(((to_target - to_reference)[usable] / apart[usable]).mean())


def score(cosines: np.ndarray, same_person_cosine: float) -> dict[str, Any]:
    """Every metric of one picture from its (n, N) cosines, named as in `records.SCORES`."""
    found = match(cosines, same_person_cosine)
    return {
        "n_faces": cosines.shape[1],
        "cosines": cosines.tolist(),
        "assignment": found.assignment.tolist(),
        "id_sim": id_sim(cosines),
        "id_conf": id_conf(cosines),
        "id_sim_strict": id_sim_strict(cosines, found.assignment),
        "id_conf_strict": id_conf_strict(cosines, found.assignment),
        "covered": found.covered,
        "missing": found.missing,
        "duplicated": found.duplicated,
        "extra": found.extra,
    }


def of_row(row: Mapping[str, Any], name: str) -> float | None:
    """One of `METRICS` of one row of `records.SCORES`; None where the picture could not be judged.

    id_conf is over cases of at least two people, as ID-Conf is reported.
    """
    if row["n_faces"] is None or (name == "id_conf" and row["n"] < 2):
        return None
    if name == "coverage":
        return row["covered"] / row["n"]
    return row["duplicated" if name == "duplicates" else name]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over n cases and its 95 % interval; None where there is nothing to average, or no spread to see."""

    mean: float | None
    low: float | None
    high: float | None
    n: int


def over_cases(rows: Sequence[Mapping[str, Any]], values: Sequence[float | None]) -> Estimate:
    """Mean and interval over cases; a case counts once, with the mean over its pictures.

    Args:
        rows: a picture each, with its `case_id` and its `people`; the people, where any case names them, are the
            clusters of `bootstrap`, and a case that names nobody shares nobody.
        values: one a row; None is left out.
    """
    by_case: dict[str, list[float]] = {}
    people: dict[str, Sequence[str] | None] = {}
    for row, value in zip(rows, values, strict=True):
        known = by_case.setdefault(row["case_id"], [])
        people.setdefault(row["case_id"], row["people"])
        if value is not None:
            known.append(value)
    means = [float(np.mean(known)) if known else None for known in by_case.values()]
    if not any(people.values()):
        return bootstrap(means)
    return bootstrap(means, [names or [f"\0{case_id}"] for case_id, names in people.items()])


def bootstrap(
    values: Sequence[float | None],
    people: Sequence[Sequence[str]] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """95 % percentile interval of the mean over cases; the same input gives the same interval.

    Without `people`, cases are drawn with replacement. With them, the pigeonhole bootstrap (Owen 2007, Annals of
    Applied Statistics 1(2)): people are drawn with replacement, and a case weighs the product of its people's
    multiplicities. People who appear in exactly the same cases are drawn as one, and those seen in one case only
    leave it to the case's other people; cases without a common person are thus drawn as in the plain bootstrap. Where
    every case mixes several shared people the interval errs on the wide side.

    Args:
        values: one a case (the mean over its pictures); None is left out.
        people: who is in each case.

    Returns:
        An interval of None where fewer than two cases, or two independent groups of people, are left.
    """
    kept = [index for index, value in enumerate(values) if value is not None]
    if not kept:
        return Estimate(None, None, None, 0)
    known = np.array([values[index] for index in kept], dtype=float)
    groups = [[index] for index in range(len(kept))] if people is None else _groups([people[index] for index in kept])
    count = 1 + max(group for case in groups for group in case)
    mean = float(known.mean())
    if count < 2:
        return Estimate(mean, None, None, len(kept))
    low, high = np.percentile(_resampled_means(known, groups, count, resamples, seed), [2.5, 97.5])
    return Estimate(mean, float(low), float(high), len(kept))


def _groups(people: Sequence[Sequence[str]]) -> list[list[int]]:
    """The groups of people, drawn together, of each case; every case keeps at least one."""
    cases_of: dict[str, list[int]] = defaultdict(list)
    for case, names in enumerate(people):
        for name in sorted(set(names)):
            cases_of[name].append(case)
    together = sorted({tuple(cases) for cases in cases_of.values()})
    shared = [cases for cases in together if len(cases) > 1]
    groups: list[list[int]] = [[] for _ in people]
    for group, members in enumerate(shared):
        for case in members:
            groups[case].append(group)
    count = len(shared)
    for own in groups:
        if not own:
            own.append(count)
            count += 1
    return groups


def _resampled_means(values: np.ndarray, groups: list[list[int]], count: int, resamples: int, seed: int) -> np.ndarray:
    """Weighted means (at most `resamples`,): a draw in which no case is left is dropped."""
    most = max(len(case) for case in groups)
    member = np.array([case + [count] * (most - len(case)) for case in groups])  # column `count` weighs 1
    generator = np.random.default_rng(seed)
    means = []
    rows = max(1, _CHUNK // max(len(values), count))
    for start in range(0, resamples, rows):
        drawn = generator.multinomial(count, np.full(count, 1 / count), size=min(rows, resamples - start))
        drawn = np.concatenate([drawn, np.ones((len(drawn), 1), dtype=drawn.dtype)], axis=1)
        weights = np.ones((len(drawn), len(values)))
        for column in member.T:
            weights *= drawn[:, column]
        total = weights.sum(axis=1)
        means.append((weights @ values)[total > 0] / total[total > 0])
    return np.concatenate(means)
