"""The report: which cases it shows and what is drawn over them, the ladder's rows, and a page that stands alone."""

import json
import os
import re
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from pipelines.core import products
from pipelines.report import ladder, panels
from pipelines.report import training as report_training
from umo import records
from umo.errors import BadInput
from umo.evaluation import metrics
from umo.evaluation.metrics import Estimate
from umo.reporting import figures, tables

# Which methods


def test_the_last_method_is_held_against_the_base():
    assert panels.chosen(["target", "base", "sft", "mimr"]) == ("mimr", "base")
    assert panels.chosen(["target", "base"]) == ("base", None)
    assert panels.chosen(["mimr"]) == ("mimr", None)
    assert panels.chosen(["target", "pasted"]) is None


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
    known = {"case_id": "a", "image": "a.png", "judge": judge, "n": 2}
    scored = dict.fromkeys(records.SCORES.names) | known | metrics.score(np.eye(2) / 2, 0.4)
    rows = [scored | {"seed": seed} for seed in range(seeds)]
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
    assert {*metrics.METRICS, *metrics.SIDE_EFFECTS} == tables.LABELS.keys()
