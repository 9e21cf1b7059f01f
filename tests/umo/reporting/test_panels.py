"""Cases as pictures: which are shown, and what is drawn over them."""

import re
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umo import records
from umo.evaluation import metrics
from umo.evaluation.cases import Case
from umo.images import encode_png
from umo.reporting.panels import (
    Rows,
    Shown,
    assigned_cosines,
    by_key,
    draw_panel,
    highest,
    likeness,
    lowest,
    marks,
    standing_out,
)
from umo.reporting.pictures import GAP, LINES, TILE, Link, Mark, Picture, framed, grid, panel

SVG = "{http://www.w3.org/2000/svg}"
THRESHOLD = 0.4


def scored(case_id: str, cosines: list[list[float]], seed: int = 0) -> dict:
    """A row of scores with a box for each drawn face, side by side."""
    matrix = np.array(cosines, np.float32).reshape(len(cosines), -1)
    found = {
        "case_id": case_id,
        "image": f"images/{case_id}-{seed}.png",
        "seed": seed,
        "judge": "somebody",
        "n": len(cosines),
        "boxes": [[20.0 * k, 10.0, 20.0 * k + 16, 26.0] for k in range(matrix.shape[1])],
    }
    return dict.fromkeys(records.SCORES.names) | found | metrics.score(matrix, THRESHOLD)


def unjudged(case_id: str, n: int) -> dict:
    known = {"case_id": case_id, "image": "images/broken.png", "seed": 0, "judge": "somebody", "n": n}
    return dict.fromkeys(records.SCORES.names) | known | {"error": "truncated"}


def alone(case_id: str, cosine: float) -> dict:
    return scored(case_id, [[cosine]])


def pair(case_id: str, cosine: float, seed: int = 0) -> dict:
    return scored(case_id, [[cosine, 0.0], [0.0, cosine]], seed)


# Which cases


@settings(deadline=None)
@given(
    st.dictionaries(
        st.tuples(st.sampled_from("abcdef"), st.integers(0, 2)), st.sampled_from([-0.5, 0.0, 0.25, 0.5]), max_size=12
    ),
    st.integers(1, 4),
)
def test_the_highest_and_lowest_are_one_a_case(values, count):
    cases = {case_id for case_id, _ in values}
    for choose, best, descending in ((highest, max, True), (lowest, min, False)):
        chosen = choose(values, count)
        of_cases = [best(value for key, value in values.items() if key[0] == case_id) for case_id in cases]
        assert [values[key] for key in chosen] == sorted(of_cases, reverse=descending)[:count]
        assert len({case_id for case_id, _ in chosen}) == len(chosen)


def test_likeness_is_of_pictures_of_several_people_that_were_judged():
    rows = by_key([alone("a", 0.9), pair("b", 0.5), unjudged("c", 2)])
    assert likeness(rows) == {("b", 0): pytest.approx(0.5)}
    assert likeness(by_key([alone("a", 0.9), unjudged("c", 1)])) == {("a", 0): pytest.approx(0.9)}


def shown(name: str, rows: Rows, folder: Path = Path()) -> Shown:
    return Shown(name, rows, folder, folder)


def test_an_evaluation_stands_out_against_another():
    names = "abcdefgh"
    base = by_key([pair(name, 0.5) for name in names])
    mimr = by_key([pair(name, 0.1 * k) for k, name in enumerate(names)])  # 0, 0.1, ... 0.7; "f" has 0.5
    groups = standing_out(shown("mimr", mimr), shown("base", base))
    assert [[case_id for case_id, _ in keys] for _, keys, _ in groups] == [
        ["h", "g", "f"],
        ["a", "b", "c"],
        ["h", "g"],
        ["a", "b", "c"],
    ]
    assert [names for _, _, names in groups] == [["mimr"], ["mimr"], ["base", "mimr"], ["base", "mimr"]]
    assert [names for _, _, names in standing_out(shown("mimr", mimr), None)] == [["mimr"], ["mimr"]]


def test_the_best_are_not_among_the_worst():
    mimr = by_key([pair(name, 0.1) for name in "abcd"])
    (_, best, _), (_, worst, _) = standing_out(shown("mimr", mimr), None)
    assert [key[0] for key in best] == ["a", "b", "c"]
    assert [key[0] for key in worst] == ["d"]


# What is drawn over them


def test_faces_are_marked_with_their_reference_duplicate_or_extra():
    row = scored("a", [[0.1, 0.8, 0.5, 0.2], [0.3, 0.2, 0.1, 0.3]])
    assert row["assignment"] == [1, 0]
    found = marks(row, THRESHOLD, cosines=True)
    assert [mark.text for mark in found] == ["2: 0.30", "1: 0.80", "duplicate", "extra"]
    assert [mark.number for mark in found] == [1, 0, None, None]
    assert [mark.text for mark in marks(row, THRESHOLD, cosines=False)][:2] == ["2", "1"]
    assert marks(unjudged("c", 2), THRESHOLD, cosines=True) == []


def test_every_reference_has_a_cosine_or_is_missing():
    rows = by_key([scored("a", [[0.7], [0.2]]), unjudged("b", 3)])
    found = assigned_cosines(rows)
    np.testing.assert_allclose(found[0], 0.7, rtol=1e-6)
    assert len(found) == 5
    assert np.isnan(found[1:]).all()


def elements(svg: str, kind: str) -> list[ET.Element]:
    return list(ET.fromstring(svg).iter(SVG + kind))


def numbers(element: ET.Element, *names: str) -> tuple[float, ...]:
    return tuple(float(element.attrib[name]) for name in names)


def blank(width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), 200, np.uint8)


def test_lines_run_from_the_reference_to_the_face_that_it_was_assigned_to():
    references = [framed(blank(64, 64), str(k + 1), k) for k in range(2)]
    boxes = [Mark((20, 30, 60, 80), "2", 1), Mark((120, 10, 160, 60), "1", 0)]
    links = [Link(0, 1, "0.80", dashed=False), Link(1, 0, "0.10", dashed=True)]
    svg = panel(references, Picture(blank(200, 100), boxes), links, width=400)  # the picture is drawn twice as large
    lines = [line for line in elements(svg, "line") if line.attrib["class"] == "line"]
    top = TILE + LINES
    assert [numbers(line, "x1", "y1", "x2", "y2") for line in lines] == [
        (100, TILE, 280, top + 20),
        (300, TILE, 80, top + 60),
    ]
    assert ["stroke-dasharray" in line.attrib for line in lines] == [False, True]
    drawn = [numbers(image, "x", "y", "width", "height") for image in elements(svg, "image")]
    assert drawn == [(52, 0, TILE, TILE), (252, 0, TILE, TILE), (0, top, 400, 200)]
    assert {"0.80", "0.10"} <= {text.text for text in elements(svg, "text")}


def test_a_reference_without_a_face_that_is_alike_is_missing(tmp_path):
    paths = [f"references/{k}.png" for k in range(3)]
    (tmp_path / "references").mkdir()
    (tmp_path / "images").mkdir()
    for path in paths:
        (tmp_path / path).write_bytes(encode_png(blank(32, 32)))
    row = scored("a", [[0.8, 0.0], [0.1, 0.3], [0.0, 0.1]])
    assert row["assignment"] == [0, 1, -1]
    case = Case("a", "three people", tuple((path,) for path in paths), (), None, None)
    (tmp_path / row["image"]).write_bytes(b"not a picture")
    found = draw_panel(case, shown("mimr", by_key([row]), tmp_path), ("a", 0), THRESHOLD)
    texts = [text.text for text in elements(found.svg, "text")]
    assert [text for text in texts if "missing" in text] == ["2 missing", "3 missing"]
    assert [text for text in texts if "." in text] == ["0.80", "0.30"]
    dashed = [
        "stroke-dasharray" in line.attrib for line in elements(found.svg, "line") if line.attrib["class"] == "line"
    ]
    assert dashed == [False, True]
    assert found.likeness == row["id_sim_strict"]


def test_a_row_of_a_sheet_has_one_height_and_fits_its_columns():
    rows = [
        [[framed(blank(64, 64), str(k + 1), k) for k in range(3)], [Picture(blank(256, 128))]],
        [[framed(blank(50, 100), "1", 0)], [Picture(blank(300, 100))]],
    ]
    images = [numbers(image, "x", "y", "width", "height") for image in elements(grid(["a", "b"], rows, 400), "image")]
    column = (400 - GAP) / 2
    for row, target in ((images[:4], 256 / 128), (images[4:], 300 / 100)):
        assert len({(y, height) for _, y, _, height in row}) == 1
        assert all(x + width <= column + 0.1 for x, _, width, _ in row[:-1])
        x, _, width, height = row[-1]
        assert x == pytest.approx(column + GAP)
        assert x + width <= 400.1
        assert width / height == pytest.approx(target, rel=0.01)
    assert images[4][1] > images[0][1] + images[0][3]


def test_labels_below_a_picture_do_not_cover_each_other():
    crowd = [Mark((10 * k, 5, 10 * k + 9, 20), f"{k + 1}: 0.50", k) for k in (2, 0, 1)]
    svg = grid(["a"], [[[Picture(blank(256, 128), crowd)]]], 200)
    spans = [numbers(rect, "x", "width") for rect in elements(svg, "rect") if "class" not in rect.attrib]
    assert len(spans) == 3
    assert all(x + width <= following for (x, width), (following, _) in pairwise(spans))
    assert re.findall(r">(\d): 0.50<", svg) == ["1", "2", "3"]
