"""The report's cases: what each method drew, as the judge saw it, and where a method did best and worst."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pipelines.core import products
from pipelines.report.pictures import Link, Mark, Picture, framed, grid, panel
from umo import records
from umo.evaluation.cases import Case
from umo.images import ImageError, read_image
from umo.matching import NONE

Key = tuple[str, int]  # case_id and seed: one picture
Row = Mapping[str, Any]  # of records.SCORES
Rows = Mapping[Key, Row]
SHEET = ("target", "base", "sft", "mimr", "ours")
EXTREMES = 3
SHEET_WIDTH, PANEL_WIDTH = 1192, 376


class Panel(NamedTuple):
    """A method's picture of a case: the method, its strict likeness, references and picture as SVG."""

    method: str
    likeness: float
    svg: str


class Extremes(NamedTuple):
    """Cases that stand out, each as its prompt and its panels; `title` says in what."""

    title: str
    cases: Sequence[tuple[str, Sequence[Panel]]]


def read_scores(method: str) -> Rows:
    """records.SCORES of a method's pictures."""
    table = records.read(products.EVALUATED / method / products.SCORES_TABLE, records.SCORES)
    return {(row["case_id"], row["seed"]): row for row in table.to_pylist()}


def assigned_cosines(rows: Rows) -> np.ndarray:
    """The cosine of each reference of all pictures and its assigned face; NaN where none is left for it."""
    found: list[float] = []
    for row in rows.values():
        faces = dict.fromkeys(range(row["n"]), np.nan) | {reference: cosine for reference, _, cosine in _pairs(row)}
        found += faces.values()
    return np.array(found)


def contact_sheet(cases: Sequence[Case], scores: Mapping[str, Rows], threshold: float, count: int) -> str:
    """Some cases of several people: references, then each method's picture with the first seed."""
    methods = [method for method in SHEET if method in scores]
    several = [case for case in cases if len(case.references) > 1] or cases
    lines = []
    for case in several[:: max(1, len(several) // count)][:count]:
        drawn = [[_drawn(of, scores[of][case.case_id, 0], threshold, cosines=True)] for of in methods]
        lines.append([_references(case), *drawn])
    return grid(["references", *methods], lines, SHEET_WIDTH)


def extremes(cases: Sequence[Case], scores: Mapping[str, Rows], threshold: float) -> list[Extremes]:
    """The pictures of `standing_out`, drawn."""
    by_id = {case.case_id: case for case in cases}
    groups = []
    for title, keys, methods in standing_out(scores):
        shown = [
            (by_id[key[0]].prompt, [draw_panel(by_id[key[0]], of, scores[of][key], threshold) for of in methods])
            for key in keys
        ]
        groups.append(Extremes(title, shown))
    return groups


def standing_out(scores: Mapping[str, Rows]) -> list[tuple[str, list[Key], list[str]]]:
    """Where the last method that was trained did best and worst, and where it gained and lost most against the base.

    Returns:
        Title, pictures, methods to be shown; groups without a picture are left out. Where nothing was trained, the
        method is the base itself.
    """
    drawn = [method for method in ("base", *products.TRAINED_METHODS) if method in scores]
    if not drawn:
        return []
    method = drawn[-1]
    alike = likeness(scores[method])
    best = highest(alike, EXTREMES)
    rest = {key: value for key, value in alike.items() if key not in best}
    worst = lowest(rest, EXTREMES)
    groups = [(f"Most alike: {method}", best, [method]), (f"Least alike: {method}", worst, [method])]
    if drawn[0] == "base" != method:
        gain = differences(alike, likeness(scores["base"]))
        gains = highest({key: value for key, value in gain.items() if value > 0}, EXTREMES)
        losses = lowest({key: value for key, value in gain.items() if value < 0}, EXTREMES)
        groups.append((f"Largest gains over base: {method}", gains, ["base", method]))
        groups.append((f"Largest losses against base: {method}", losses, ["base", method]))
    return [group for group in groups if group[1]]


def likeness(rows: Rows) -> dict[Key, float]:
    """Strict likeness of every picture that could be judged; only those of several people, where there are any."""
    judged = {key: row for key, row in rows.items() if row["n_faces"] is not None}
    several = {key: row for key, row in judged.items() if row["n"] > 1}
    return {key: row["id_sim_strict"] for key, row in (several or judged).items()}


def differences(a: Mapping[Key, float], b: Mapping[Key, float]) -> dict[Key, float]:
    """a - b of the pictures that both have."""
    return {key: a[key] - b[key] for key in a.keys() & b.keys()}


def highest(values: Mapping[Key, float], count: int) -> list[Key]:
    """The pictures of the largest values, largest first, at most one a case; of equals, the first by case and seed."""
    chosen: dict[str, Key] = {}
    for key in sorted(values, key=lambda key: (-values[key], key)):
        chosen.setdefault(key[0], key)
    return list(chosen.values())[:count]


def lowest(values: Mapping[Key, float], count: int) -> list[Key]:
    """As `highest`, of the smallest values."""
    return highest({key: -value for key, value in values.items()}, count)


def draw_panel(case: Case, method: str, row: Row, threshold: float) -> Panel:
    """References, the picture below, and lines from references to the faces that they were assigned to.

    A reference whose face is not the same person to the judge is marked missing and its line is dashed.
    """
    covered = {reference for reference, _, cosine in _pairs(row) if cosine >= threshold}
    links = [
        Link(reference, face, f"{cosine:.2f}", dashed=reference not in covered)
        for reference, face, cosine in _pairs(row)
    ]
    picture = _drawn(method, row, threshold, cosines=False)
    missing = set(range(len(case.references))) - covered
    return Panel(method, row["id_sim_strict"], panel(_references(case, missing), picture, links, PANEL_WIDTH))


def marks(row: Row, threshold: float, cosines: bool) -> list[Mark]:
    """The faces that the judge found: the number of the reference that each was assigned to, with or without cosine.

    The others are duplicates, where they are some reference's person again to the judge, or extra.
    """
    owners = {face: (reference, cosine) for reference, face, cosine in _pairs(row)}
    found = []
    for face, box in enumerate(map(tuple, row["boxes"] or [])):
        if face in owners:
            reference, cosine = owners[face]
            found.append(Mark(box, f"{reference + 1}" + f": {cosine:.2f}" * cosines, reference))
        else:
            again = max(of_reference[face] for of_reference in row["cosines"]) >= threshold
            found.append(Mark(box, "duplicate" if again else "extra", None))
    return found


def _pairs(row: Row) -> Iterator[tuple[int, int, float]]:
    """Reference, assigned face, their cosine."""
    for reference, face in enumerate(row["assignment"] or []):
        if face != NONE:
            yield reference, face, row["cosines"][reference][face]


def _references(case: Case, missing: Collection[int] = ()) -> list[Picture]:
    """The first photograph of each person, framed in the colour of its number."""
    return [
        framed(read_image(products.CASES / photos[0]), f"{k + 1}" + " missing" * (k in missing), k)
        for k, photos in enumerate(case.references)
    ]


def _drawn(method: str, row: Row, threshold: float, cosines: bool) -> Picture:
    """A method's picture with its marks; a grey one stands for what cannot be read."""
    try:
        image = read_image(products.GENERATED / method / row["image"])
    except ImageError:
        image = np.full((64, 128, 3), 128, np.uint8)
    return Picture(image, marks(row, threshold, cosines))
