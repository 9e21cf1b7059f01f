"""The report: which cases it shows and what is drawn over them, the ladder's rows, and a page that stands alone."""

import json
import os
import re
import xml.etree.ElementTree as ET
from dataclasses import asdict
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.core import products
from pipelines.report import figures, ladder
from pipelines.report import panels as report_cases
from pipelines.report import stage as report
from pipelines.report import training as report_training
from pipelines.report.panels import highest, likeness, lowest, marks, standing_out
from pipelines.report.pictures import GAP, LINES, TILE, Link, Mark, Picture, framed, grid, panel
from umo import records
from umo.errors import BadInput
from umo.evaluation import metrics
from umo.evaluation.cases import Case
from umo.evaluation.metrics import Estimate
from umo.images import encode_png

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


def by_key(*rows: dict) -> dict[tuple[str, int], dict]:
    return {(row["case_id"], row["seed"]): row for row in rows}


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
    rows = by_key(alone("a", 0.9), pair("b", 0.5), unjudged("c", 2))
    assert likeness(rows) == {("b", 0): pytest.approx(0.5)}
    assert likeness(by_key(alone("a", 0.9), unjudged("c", 1))) == {("a", 0): pytest.approx(0.9)}


def test_the_last_method_stands_out_against_the_base():
    names = "abcdefgh"
    base = by_key(*(pair(name, 0.5) for name in names))
    mimr = by_key(*(pair(name, 0.1 * k) for k, name in enumerate(names)))  # 0, 0.1, ... 0.7; "f" has 0.5
    groups = standing_out({"target": base, "base": base, "sft": base, "mimr": mimr})
    assert [[case_id for case_id, _ in keys] for _, keys, _ in groups] == [
        ["h", "g", "f"],
        ["a", "b", "c"],
        ["h", "g"],
        ["a", "b", "c"],
    ]
    assert [methods for _, _, methods in groups] == [["mimr"], ["mimr"], ["base", "mimr"], ["base", "mimr"]]


def test_the_best_are_not_among_the_worst():
    mimr = by_key(*(pair(name, 0.1) for name in "abcd"))
    (_, best, _), (_, worst, _) = standing_out({"mimr": mimr})
    assert [key[0] for key in best] == ["a", "b", "c"]
    assert [key[0] for key in worst] == ["d"]


def test_without_a_trained_method_the_base_stands_out_and_without_a_base_nobody():
    base = by_key(*(pair(name, 0.1 * k) for k, name in enumerate("abcdef")))
    groups = standing_out({"target": base, "base": base})
    assert [methods for _, _, methods in groups] == [["base"], ["base"]]
    assert standing_out({"target": base, "pasted": base}) == []


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
    rows = by_key(scored("a", [[0.7], [0.2]]), unjudged("b", 3))
    found = report_cases.assigned_cosines(rows)
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


def test_a_reference_without_a_face_that_is_alike_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (products.CASES / "references").mkdir(parents=True)
    (products.GENERATED / "mimr/images").mkdir(parents=True)
    paths = [f"references/{k}.png" for k in range(3)]
    for path in paths:
        (products.CASES / path).write_bytes(encode_png(blank(32, 32)))
    row = scored("a", [[0.8, 0.0], [0.1, 0.3], [0.0, 0.1]])
    assert row["assignment"] == [0, 1, -1]
    case = Case("a", "three people", tuple((path,) for path in paths), (), None, None)
    (products.GENERATED / "mimr" / row["image"]).write_bytes(b"not a picture")
    found = report_cases.draw_panel(case, "mimr", row, THRESHOLD)
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


# Training


@pytest.mark.parametrize("reach", [0, 1, 3, 50])
def test_smoothing_is_the_mean_of_the_neighbours(reach):
    values = np.random.default_rng(0).normal(size=20)
    found = figures.smooth(values, reach)
    for k in range(20):
        near = [values[j] for j in range(20) if abs(j - k) <= reach]
        assert found[k] == pytest.approx(sum(near) / len(near))


def test_curves_are_of_the_methods_that_have_them(tmp_path, monkeypatch):
    """SFT has no reward, and a skipped update leaves a gap."""
    monkeypatch.chdir(tmp_path)
    validation = [{"update": k, **dict.fromkeys(report_training.VALIDATION, 0.1 * k)} for k in (0, 2)]
    for method, curves in (("sft", ["diffusion_loss"]), ("mimr", ["diffusion_loss", "reward"])):
        folder = products.TRAINED / method
        (folder / products.LIVE / "plots/metrics/train").mkdir(parents=True)
        (folder / products.TRAINING).write_text(json.dumps({"chosen_update": 3, "validation": validation}))
        for name in curves:
            (folder / products.LIVE / f"plots/metrics/train/{name}.tsv").write_text(f"step\t{name}\n1\t0.5\n3\t0.25\n")
    trainings = report_training.read_trainings()
    assert list(trainings) == ["sft", "mimr"]
    assert len(report_training.training_curves(trainings)) == 2
    assert len(report_training.validation_curves(trainings)) == len(report_training.VALIDATION)
    assert report_training.validation_curves({"sft": {"validation": []}}) == []
    curve = report_training.read_curve(products.TRAINED / "mimr/live/plots/metrics/train/reward.tsv", 3)
    assert curve.updates.tolist() == [1, 3]
    assert curve.values.tolist() == [0.5, 0.25]


def test_figures_are_the_same_bytes_every_time():
    curve = figures.Curve(np.arange(9), np.arange(9) / 9, 4)
    assert figures.curves({"mimr": curve}, "reward", 2) == figures.curves({"mimr": curve}, "reward", 2)


# The ladder


def write_evaluation(method: str, seeds: int = 1, cases: int = 1, judge: str = "somebody") -> None:
    folder = products.EVALUATED / method
    folder.mkdir(parents=True)
    estimates = {name: asdict(Estimate(0.5, 0.4, 0.6, cases)) for name in metrics.METRICS}
    content = estimates | {"by_n": {"2": estimates}, "judge": {"name": judge}, "cases": cases}
    (folder / products.METRICS).write_text(json.dumps(content))
    rows = [pair("a", 0.5, seed) for seed in range(seeds)]
    records.write(folder / products.SCORES_TABLE, rows, records.SCORES)


def write_marker(folder: Path, seconds: float, product: Path, age: int) -> None:
    folder.mkdir(parents=True)
    digest = ladder.file_digest(product)
    (folder / "marker.json").write_text(json.dumps({"shard": "", "seconds": seconds, "sha256": {product.name: digest}}))
    os.utime(folder / "marker.json", (1_000_000 - age, 1_000_000 - age))


def test_the_ladder_has_the_methods_that_were_evaluated_in_its_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for method, seeds in (("mimr", 2), ("shuffled", 2), ("target", 1)):
        write_evaluation(method, seeds)
    content = json.loads(ladder.write_ladder(Path("results/ladder.json")).read_text())
    assert [(row["method"], row["seeds"]) for row in content["rows"]] == [("target", 1), ("mimr", 2), ("shuffled", 2)]
    estimate = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 1}
    for row in content["rows"]:
        assert all(row[name] == row["by_n"]["2"][name] == estimate for name in ladder.METRICS)
        assert row.keys() == {"method", "objective", "by_n", "seeds", *ladder.METRICS}
    assert content["judge"] == {"name": "somebody"}
    assert content["cases"] == 1


@pytest.mark.parametrize("other", [{"judge": "another"}, {"cases": 2}])
def test_methods_that_were_not_judged_alike_make_no_ladder(tmp_path, monkeypatch, other):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="no method was evaluated"):
        ladder.evaluated()
    write_evaluation("target")
    write_evaluation("base", **other)
    with pytest.raises(BadInput, match="base and target were not judged alike"):
        ladder.evaluated()


def test_seconds_are_those_of_the_present_outputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_evaluation("target")
    write_evaluation("base", seeds=2)
    of_target, of_base = (products.EVALUATED / method / products.SCORES_TABLE for method in ("target", "base"))
    gone = tmp_path / "gone.json"
    gone.write_text("of an earlier run")
    write_marker(Path(".work/evaluate/1"), 5, of_target, age=0)
    write_marker(Path(".work/evaluate/2"), 90, of_target, age=10)  # made the same before
    write_marker(Path(".work/evaluate/3"), 7, of_base, age=20)
    write_marker(Path(".work/generate/4"), 400, gone, age=0)
    assert json.loads(ladder.write_ladder(Path("ladder.json")).read_text())["seconds"] == 12


# The page


class References(HTMLParser):
    """Collects whatever a page would fetch, or leads to, outside of itself."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)
        self.found += re.findall(r"@import|url\((?!#)", page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = [value or "" for name, value in attributes if name in ("src", "href", "xlink:href", "srcset", "data")]
        self.found += [value for value in values if not value.startswith(("data:image/jpeg;base64,", "#"))]
        self.found += [tag] * (tag in ("script", "link", "iframe"))


def test_the_report_is_one_file_with_everything(repro):
    folder = repro.path / products.REPORT
    assert {path.name for path in folder.iterdir()} == {"report.html", "plots"}, "plots: the tables of dvc plots"
    page = (folder / "report.html").read_text()
    assert References(page).found == []
    for part in ("id_sim_strict", "funnel"):
        assert part not in page.split("<h3>params.yaml</h3>")[0], "internal names are not for the reader"
    found = json.loads((repro.path / products.EVALUATED / "pasted" / products.METRICS).read_text())
    assert f"{found['id_sim_strict']['mean']:.3f}" in page
    assert found["judge"]["files"]["dlib_face_recognition_resnet_model_v1.dat"] in page
    assert "Free for research with credit (AT&amp;T Laboratories Cambridge)" in page
    assert "adjusted Rand index is 1.0" in page


def test_a_method_that_was_not_run_is_left_out_and_a_notice_comes_first(workspace):
    last = [method for method in ladder.METHODS if (workspace.path / products.EVALUATED / method).exists()][-1]
    for file in (workspace.path / products.EVALUATED / last).iterdir():
        file.unlink()
    workspace.params(report={"notice": "Numbers <mean> nothing."})
    workspace.stage("report", check=True)
    page = (workspace.path / products.REPORT / "report.html").read_text()
    body = page.split("<body>")[1]
    assert body.index("Numbers &lt;mean&gt; nothing.") < body.index("<h1>")
    ladder_table = body.split("<table>")[1]
    assert "<b>target</b>" in ladder_table
    assert f"<b>{last}</b>" not in ladder_table


def test_every_method_and_every_metric_is_on_the_page():
    from pipelines.__main__ import METHODS

    assert set(METHODS) == ladder.METHODS.keys() == figures.COLOURS.keys()
    assert {*metrics.METRICS, *metrics.SIDE_EFFECTS} == report.LABELS.keys()
