"""The tables for `dvc plots`, and that DVC draws every plot of dvc.yaml from them with the templates of .dvc/plots."""

import csv
import json
import shutil
from pathlib import Path

import polars as pl
import pytest
import yaml

from pipelines.core import products
from pipelines.core.shards import ROOT
from pipelines.report import plots as report_plots
from tests.pipelines.conftest import Workspace

PLOTS = yaml.safe_load((ROOT / "dvc.yaml").read_text())["plots"]
ESTIMATE = {"mean": 0.5, "low": 0.25, "high": 0.75, "n": 6}
UNSURE = {"mean": 0.5, "low": None, "high": None, "n": 1}
NONE = {"mean": None, "low": None, "high": None, "n": 0}
SCORES = {
    method: {
        "id_sim_strict": ESTIMATE,
        "id_conf": ESTIMATE,
        "by_n": {
            "1": {"id_sim_strict": UNSURE, "id_conf": NONE},
            "2": {"id_sim_strict": ESTIMATE, "id_conf": ESTIMATE},
        },
    }
    for method in ("target", "mimr")
}
SETS = pl.DataFrame({"reference_cosine": [[0.65], [0.66, 0.79]], "cross_cosine": [None, 0.1]})
FUNNEL = [("photographs read", 9, ""), ("usable", 7, "1 empty file, 1 the same")]


def rows(path: Path) -> list[dict]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def tables(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(products, "sets", lambda: SETS)
    folder = tmp_path / "umo/runs/report"
    folder.mkdir(parents=True)
    report_plots.write_tables(folder, SCORES, ("id_sim_strict", "id_conf"), FUNNEL)
    return folder / report_plots.FOLDER


def test_a_row_a_method_and_number_of_people(tables):
    """Where nothing was measured there is no row; where there is no interval, none is made up."""
    found = rows(tables / "id_conf.csv")
    assert [(row["method"], row["people"]) for row in found] == [
        ("target", "all"),
        ("target", "2"),
        ("mimr", "all"),
        ("mimr", "2"),
    ]
    assert found[0] == {"people": "all", "method": "target", "mean": "0.5", "low": "0.25", "high": "0.75", "n": "6"}
    alone = next(row for row in rows(tables / "id_sim_strict.csv") if row["people"] == "1")
    assert (alone["mean"], alone["low"], alone["high"], alone["n"]) == ("0.5", "", "", "1")


def test_cosines_are_counted(tables):
    found = [
        (row["cosine"], row["count"]) for row in rows(tables / "cosines.csv") if row["of"] == "reference and target"
    ]
    assert found == [("0.6", "0"), ("0.65", "2"), ("0.7", "0"), ("0.75", "1"), ("0.8", "0")]
    assert sum(int(row["count"]) for row in rows(tables / "cosines.csv")) == 4


def test_no_set_has_no_cosines(tmp_path, monkeypatch):
    none = pl.DataFrame(
        {"reference_cosine": [], "cross_cosine": []},
        {"reference_cosine": pl.List(pl.Float32), "cross_cosine": pl.Float32},
    )
    monkeypatch.setattr(products, "sets", lambda: none)
    report_plots.write_tables(tmp_path, SCORES, (), FUNNEL)
    assert not any(int(row["count"]) for row in rows(tmp_path / report_plots.FOLDER / "cosines.csv"))


def test_dvc_draws_every_plot(tables):
    workspace = Workspace(tables.parents[2])
    shutil.copytree(ROOT / ".dvc/plots", workspace.path / ".dvc/plots")
    (workspace.path / "dvc.yaml").write_text(yaml.safe_dump({"plots": PLOTS}))
    for entry in PLOTS:
        for plot in entry.values():
            for file, field in plot["y"].items():
                if file.endswith(".tsv"):
                    (workspace.path / file).parent.mkdir(parents=True, exist_ok=True)
                    (workspace.path / file).write_text(f"step\t{field}\n0\t0.5\n20\t0.25\n")
    workspace.run("git", "init", "--quiet")
    shown = json.loads(workspace.run("dvc", "plots", "show", "--json").stdout)
    assert not shown.get("errors")
    specs = {name: plot["content"] for name, (plot,) in shown["data"].items()}
    assert specs.keys() == {name for entry in PLOTS for name in entry}
    for entry in PLOTS:
        for name, plot in entry.items():
            spec = specs[name]
            assert spec["title"]["text"] == plot["title"]
            assert "<DVC_METRIC" not in json.dumps(spec), "an anchor that DVC does not fill"
            assert spec["data"]["values"]
