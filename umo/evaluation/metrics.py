"""The numbers of an evaluation. Pure numpy: cosine matrices in; metrics, their means and bootstrap intervals out.

A cosine matrix is (n, N): a row a reference, a column a drawn face; N = 0 is a picture without a face. ID-Sim and
ID-Conf are computed as UMO's released code does (arXiv 2509.06818, section 4 and bytedance/UMO @ aada3dc); the strict
forms close their two gaps: a missing person costs, and no picture is skipped.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from umo.matching import NONE, assigned_cosines, cosine_matrix, doubled, match

METRICS = (
    # strict: every picture and every person counts
    *("id_sim_strict", "id_conf_strict", "coverage", "absent", "surplus", "doubled", "swapped"),
    *("count_right", "count_difference", "blend", "collapse", "sim_target", "copy_paste_covered"),
    # as others publish them
    *("id_sim", "id_conf", "duplicates", "extra", "copy_paste"),
)
SIDE_EFFECTS = ("people_right", "order_right", "background_right", "sharpness_error", "diffusion_loss", "variety")
LOWER_IS_BETTER = frozenset(
    {
        *("absent", "surplus", "doubled", "swapped", "blend", "collapse", "copy_paste_covered"),
        *("duplicates", "extra", "copy_paste", "sharpness_error", "diffusion_loss"),
    }
)
NEUTRAL = frozenset({"count_difference"})  # neither more nor less is better
MIN_ANGLE = 0.01  # radians; a target this near its reference is the same photograph, and the ratio means nothing
CLEAR_ANGLE = 0.2  # radians; of a target nearer its reference, a small error of an angle is a large one of the ratio
MIN_GROUP = 5  # people; of fewer, one person's face decides a group's mean
OTHER_GROUPS = "other"
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


def swapped(places: np.ndarray, middles: np.ndarray) -> tuple[int | None, int]:
    """Pairs of people who stand in each other's order from left to right, and pairs that could be judged.

    Args:
        places: (n,) where each was asked to stand; NaN where that was not said.
        middles: (n,) where each stands; NaN where the person is not covered.

    Returns:
        None of 0 pairs. A pair that was asked for one place is no pair; two in one middle are not swapped.
    """
    pairs = np.triu_indices(len(places), 1)
    asked, drawn = (np.subtract.outer(x, x)[pairs] for x in (places, middles))
    judged = np.isfinite(asked) & np.isfinite(drawn) & (asked != 0)
    count = int(judged.sum())
    return (int((np.sign(asked) == -np.sign(drawn))[judged].sum()) if count else None), count


def blend(cosines: np.ndarray, assignment: np.ndarray, references: np.ndarray) -> float | None:
    """How alike a face is to those it was not drawn for, in [-2, 2], beyond how alike these people are anyway.

    The mean over each reference and the assigned face of each other one: their cosine, less that of the two references.

    Args:
        references: (n, d) unit vectors.

    Returns:
        None for one reference, or where no face was drawn.
    """
    (owners,) = np.nonzero(assignment != NONE)
    beyond = cosines[:, assignment[owners]] - cosine_matrix(references, references[owners])
    others = np.arange(len(assignment))[:, None] != owners
    return float(beyond[others].mean()) if others.any() else None


def collapse(faces: np.ndarray, same_person_cosine: float) -> float | None:
    """The share of pairs of the drawn faces (N, d) that are the same person, in [0, 1]; None for fewer than two."""
    if len(faces) < 2:
        return None
    return float((cosine_matrix(faces, faces) >= same_person_cosine)[np.triu_indices(len(faces), 1)].mean())


def sim_target(drawn_target: np.ndarray, target_reference: np.ndarray) -> float | None:
    """The mean cosine in [-1, 1] of each person's drawn face with the person's face in the target.

    Args:
        drawn_target, target_reference: (n,) as in `copy_paste`; a person without a drawn face counts 0, and one
            without a face in the target is left out.
    """
    there = np.isfinite(target_reference)
    return float(np.nan_to_num(drawn_target[there]).mean()) if there.any() else None


def copy_paste(
    drawn_reference: np.ndarray, drawn_target: np.ndarray, target_reference: np.ndarray, min_angle: float = MIN_ANGLE
) -> float | None:
    """How much nearer a drawn face is to the reference photograph than to the person's other photograph (WithAnyone).

    `(angle(drawn, target) - angle(drawn, reference)) / angle(target, reference)`: 1 is a copy of the reference, -1 a
    copy of the target.

    Args:
        drawn_reference, drawn_target, target_reference: (n,) cosines, an entry a reference; NaN where the person's
            drawn face or target face was not found.

    Returns:
        The mean over the references that have all three and whose target is another photograph (an angle of at least
        `min_angle`); None where there is none.
    """
    cosines = np.stack([drawn_target, drawn_reference, target_reference]).astype(float)
    to_target, to_reference, apart = np.arccos(np.clip(cosines, -1, 1))
    usable = np.isfinite(cosines).all(axis=0) & (apart >= min_angle)
    if not usable.any():
        return None
    return float(((to_target - to_reference)[usable] / apart[usable]).mean())


def diversity(vectors: np.ndarray, usable: np.ndarray) -> float | None:
    """How different the pictures of one case are, in [0, 2]: 1 less the mean cosine of two.

    Args:
        vectors: (k, d) unit vectors, a picture each.
        usable: (k,) bool, the pictures that count: those that cover whom they were asked for.

    Returns:
        None where fewer than two count.
    """
    kept = vectors[usable]
    if len(kept) < 2:
        return None
    return float(1 - cosine_matrix(kept, kept)[np.triu_indices(len(kept), 1)].mean())


def score(
    cosines: np.ndarray,
    same_person_cosine: float,
    *,
    references: np.ndarray | None = None,
    faces: np.ndarray | None = None,
    boxes: np.ndarray | None = None,
    places: Sequence[float | None] | None = None,
) -> dict[str, Any]:
    """Every metric of one picture that needs no target, named as in `records.SCORES`.

    Args:
        cosines: (n, N).
        references: (n, d) unit vectors; without them there is no blend.
        faces: (N, d) unit vectors; without them there is no collapse.
        boxes: (N, 4) as x0, y0, x1, y1, and
        places: n, as `Case.asked_places`; without either no pair is placed.
    """
    found = match(cosines, same_person_cosine)
    n, n_faces = cosines.shape
    middles = np.full(n, np.nan)
    if boxes is not None and places is not None:
        covered = np.nonzero(assigned_cosines(cosines, found.assignment) >= same_person_cosine)[0]
        middles[covered] = boxes[found.assignment[covered]][:, [0, 2]].mean(axis=1)
    exchanged, placed = swapped(np.array(places or [None] * n, dtype=float), middles)
    return {
        "n_faces": n_faces,
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
        "absent": max(0, n - n_faces),
        "surplus": max(0, n_faces - n),
        "doubled": doubled(cosines, same_person_cosine),
        "swapped": exchanged,
        "placed": placed,
        "blend": None if references is None else blend(cosines, found.assignment, references),
        "collapse": None if faces is None else collapse(faces, same_person_cosine),
    }


def of_row(row: Mapping[str, Any], name: str) -> float | None:
    """One of `METRICS` of one row of `records.SCORES`; None where the picture could not be judged.

    id_conf is over cases of at least two people, as ID-Conf is reported. absent, surplus and doubled are whether there
    is any, swapped a share of the pairs that were placed.
    """
    if row["n_faces"] is None or (name == "id_conf" and row["n"] < 2):
        return None
    if name == "coverage":
        return row["covered"] / row["n"]
    if name in ("absent", "surplus", "doubled"):
        return float(row[name] > 0)
    if name == "swapped":
        return row["swapped"] / row["placed"] if row["placed"] else None
    if name == "count_right":
        return float(row["n_faces"] == row["n"])
    if name == "count_difference":
        return row["n_faces"] - row["n"]
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
    return bootstrap(*by_case(rows, values))


def by_case(
    rows: Sequence[Mapping[str, Any]], values: Sequence[float | None]
) -> tuple[list[float | None], list[Sequence[str]] | None]:
    """What `bootstrap` takes of the rows and values that `over_cases` takes."""
    known_of: dict[str, list[float]] = {}
    people: dict[str, Sequence[str] | None] = {}
    for row, value in zip(rows, values, strict=True):
        known = known_of.setdefault(row["case_id"], [])
        people.setdefault(row["case_id"], row["people"])
        if value is not None:
            known.append(value)
    means = [float(np.mean(known)) if known else None for known in known_of.values()]
    if not any(people.values()):
        return means, None
    return means, [names or [f"\0{case_id}"] for case_id, names in people.items()]


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
    return tested(values, people, resamples, seed)[0]


def tested(
    values: Sequence[float | None],
    people: Sequence[Sequence[str]] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[Estimate, float | None]:
    """`bootstrap`, and from the same draws the two-sided p of a true mean of 0; None where there is no interval.

    p is twice the share of means at or below 0, or at or above 0, whichever is smaller; from 1 / (resamples + 1) to 1.
    """
    kept = [index for index, value in enumerate(values) if value is not None]
    if not kept:
        return Estimate(None, None, None, 0), None
    known = np.array([values[index] for index in kept], dtype=float)
    groups = (
        [[index] for index in range(len(kept))] if people is None else independent([people[index] for index in kept])
    )
    count = 1 + max(group for case in groups for group in case)
    mean = float(known.mean())
    if count < 2:
        return Estimate(mean, None, None, len(kept)), None
    means = _resampled_means(known, groups, count, resamples, seed)
    low, high = np.percentile(means, [2.5, 97.5])
    p = 2 * min((means <= 0).mean(), (means >= 0).mean())
    return Estimate(mean, float(low), float(high), len(kept)), float(min(1, max(p, 1 / (resamples + 1))))


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's step-down: those below 5 % hold together with 95 % confidence."""
    order = np.argsort(p, kind="stable")
    stepped = np.asarray(p, dtype=float)[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1)
    return corrected.tolist()


def independent(people: Sequence[Sequence[str]]) -> list[list[int]]:
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


def gap(
    drawn: Mapping[str, float],
    real: Mapping[str, float],
    groups: Mapping[str, str],
    resamples: int = 2_000,
    seed: int = 0,
) -> dict[str, Any] | None:
    """How unevenly likeness falls on groups of people, and how much of it is not the judge's own unevenness.

    A gap is the largest less the smallest mean of a group. The intervals of 95 % come from a bootstrap that draws
    people within their groups. A gap is never negative, so its own interval leaves out 0 even of groups that are
    alike; that of the difference need not.

    Args:
        drawn: person -> cosine with the faces drawn for them.
        real: person -> cosine with their face in a real picture, of those who have one.
        groups: person -> group. Groups of fewer than `MIN_GROUP` people in `drawn` are pooled as "other", and left out
            where they still are fewer.

    Returns:
        {"groups": {name: {"people", "drawn", "judge"}}, "drawn", "judge", "difference": {"gap", "low", "high"}}, where
        judge is of `real` and difference is drawn less judge; both None where a group has fewer than `MIN_GROUP` people
        in `real`. None for fewer than two groups.
    """
    sizes = Counter(groups[person] for person in drawn)
    members: dict[str, list[str]] = defaultdict(list)
    for person in sorted(drawn):
        name = groups[person]
        members[name if sizes[name] >= MIN_GROUP else OTHER_GROUPS].append(person)
    kept = {name: people for name, people in sorted(members.items()) if len(people) >= MIN_GROUP}
    if len(kept) < 2:
        return None
    judged = all(sum(person in real for person in people) >= MIN_GROUP for people in kept.values())
    generator = np.random.default_rng(seed)
    means = np.empty((2, len(kept), 1 + resamples))  # of drawn and real, a group, as they are and resampled
    for rank, people in enumerate(kept.values()):
        count = len(people)
        times = generator.multinomial(count, np.full(count, 1 / count), size=resamples)
        times = np.concatenate([np.ones((1, count), dtype=times.dtype), times])
        there = np.array([person in real for person in people])
        means[0, rank] = times @ np.array([drawn[person] for person in people]) / count
        with np.errstate(invalid="ignore"):  # a draw of nobody who has a real picture
            means[1, rank] = times @ np.array([real.get(person, 0.0) for person in people]) / (times @ there)
    of_drawn, of_real = np.ptp(means, axis=1)
    return {
        "groups": {
            name: {"people": len(people), "drawn": float(of_both[0]), "judge": float(of_both[1]) if judged else None}
            for (name, people), of_both in zip(kept.items(), means[:, :, 0].T, strict=True)
        },
        "drawn": _gap_with_interval(of_drawn),
        "judge": _gap_with_interval(of_real) if judged else None,
        "difference": _gap_with_interval(of_drawn - of_real) if judged else None,
    }


def _gap_with_interval(values: np.ndarray) -> dict[str, float]:
    """The first value, and where 95 % of the others lie."""
    low, high = np.nanpercentile(values[1:], [2.5, 97.5])
    return {"gap": float(values[0]), "low": float(low), "high": float(high)}
