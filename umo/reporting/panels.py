"""Cases as pictures: what was drawn, as the judge saw it, and where one evaluation did best and worst."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from umo.evaluation.cases import Case
from umo.images import ImageError, read_image
from umo.matching import NONE
from umo.reporting.pictures import Link, Mark, Picture, framed, grid, panel

Key = tuple[str, int]  # case_id and seed: one picture
Row = Mapping[str, Any]  # of records.SCORES
Rows = Mapping[Key, Row]
EXTREMES = 3
SHEET_WIDTH, PANEL_WIDTH = 1192, 376


@dataclass(frozen=True)
class Shown:
    """An evaluation whose pictures are shown.

    Attributes:
        name: of what drew them.
        references: folder that the references' paths are relative to.
        images: the same of the drawn pictures' in `rows`.
    """

    name: str
    rows: Rows
    references: Path
    images: Path


class Panel(NamedTuple):
    """A picture of a case: who drew it, its strict likeness, references and picture as SVG."""

    method: str
    likeness: float
    svg: str


class Extremes(NamedTuple):
    """Cases that stand out, each as its prompt and its panels; `title` says in what."""

    title: str
    cases: Sequence[tuple[str, Sequence[Panel]]]


def by_key(rows: Sequence[Row]) -> Rows:
    return {(row["case_id"], row["seed"]): row for row in rows}


def assigned_cosines(rows: Rows) -> np.ndarray:
    """The cosine of each reference of all pictures and its assigned face; NaN where none is left for it."""
    found: list[float] = []
    for row in rows.values():
        faces = dict.fromkeys(range(row["n"]), np.nan) | {reference: cosine for reference, _, cosine in _pairs(row)}
        found += faces.values()
    return np.array(found)


def contact_sheet(cases: Sequence[Case], shown: Sequence[Shown], threshold: float, count: int) -> str:
    """Some cases of several people: references, then the first picture of each evaluation that has the case."""
    several = [case for case in cases if len(case.references) > 1] or list(cases)
    lines = []
    for case in several[:: max(1, len(several) // count)][:count]:
        drawn = [[_drawn(one, (case.case_id, 0), threshold, cosines=True)] for one in shown]
        lines.append([_references(case, shown[0].references), *drawn])
    return grid(["references", *(one.name for one in shown)], lines, SHEET_WIDTH)


def extremes(
    cases: Sequence[Case], shown: Shown, against: Shown | None, threshold: float, count: int = EXTREMES
) -> list[Extremes]:
    """The pictures of `standing_out`, drawn."""
    by_id = {case.case_id: case for case in cases}
    of = {one.name: one for one in (shown, against) if one}
    groups = []
    for title, keys, names in standing_out(shown, against, count):
        found = [
            (by_id[key[0]].prompt, [draw_panel(by_id[key[0]], of[name], key, threshold) for name in names])
            for key in keys
            if key[0] in by_id
        ]
        groups.append(Extremes(title, found))
    return [group for group in groups if group.cases]


def standing_out(shown: Shown, against: Shown | None, count: int = EXTREMES) -> list[tuple[str, list[Key], list[str]]]:
    """Where an evaluation did best and worst, and where it gained and lost most against another.

    Returns:
        Title, pictures, names of those to be shown; groups without a picture are left out.
    """
    alike = likeness(shown.rows)
    best = highest(alike, count)
    rest = {key: value for key, value in alike.items() if key not in best}
    groups = [
        (f"Most alike: {shown.name}", best, [shown.name]),
        (f"Least alike: {shown.name}", lowest(rest, count), [shown.name]),
    ]
    if against:
        gain, both = differences(alike, likeness(against.rows)), [against.name, shown.name]
        gains = highest({key: value for key, value in gain.items() if value > 0}, count)
        losses = lowest({key: value for key, value in gain.items() if value < 0}, count)
        groups.append((f"Largest gains over {against.name}: {shown.name}", gains, both))
        groups.append((f"Largest losses against {against.name}: {shown.name}", losses, both))
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


def draw_panel(case: Case, shown: Shown, key: Key, threshold: float) -> Panel:
    """References, the picture below, and lines from references to the faces that they were assigned to.

    A reference whose face is not the same person to the judge is marked missing and its line is dashed.
    """
    row = shown.rows[key]
    covered = {reference for reference, _, cosine in _pairs(row) if cosine >= threshold}
    links = [
        Link(reference, face, f"{cosine:.2f}", dashed=reference not in covered)
        for reference, face, cosine in _pairs(row)
    ]
    picture = _drawn(shown, key, threshold, cosines=False)
    missing = set(range(len(case.references))) - covered
    references = _references(case, shown.references, missing)
    return Panel(shown.name, row["id_sim_strict"], panel(references, picture, links, PANEL_WIDTH))


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


def _references(case: Case, folder: Path, missing: Collection[int] = ()) -> list[Picture]:
    """The first photograph of each person, framed in the colour of its number."""
    return [
        framed(_read(folder / photos[0], (64, 64)), f"{k + 1}" + " missing" * (k in missing), k)
        for k, photos in enumerate(case.references)
    ]


def _drawn(shown: Shown, key: Key, threshold: float, cosines: bool) -> Picture:
    """A picture with its marks; a grey one stands for what is not there."""
    row = shown.rows.get(key)
    if row is None:
        return Picture(_grey((64, 128)))
    return Picture(_read(shown.images / row["image"], (64, 128)), marks(row, threshold, cosines))


def _read(path: Path, size: tuple[int, int]) -> np.ndarray:
    """A picture, or grey where it cannot be read."""
    try:
        return read_image(path)
    except ImageError:
        return _grey(size)


def _grey(size: tuple[int, int]) -> np.ndarray:
    return np.full((*size, 3), 128, np.uint8)
