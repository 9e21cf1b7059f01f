"""One self-contained HTML file: scores with intervals, training, pictures, the data's funnel, provenance.

Beside it the tables that `dvc plots` draws.
"""

import importlib.metadata
import json
import subprocess
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from pipelines.core import products
from pipelines.core.params import PARAMS, Section, load
from pipelines.core.shards import ROOT, Counts, Machine, Shard, file_digest, tree_digest
from pipelines.core.shards import run as run_shards
from pipelines.core.sources import SOURCES, read_sources
from pipelines.report import data, ladder, panels, plots, training
from umo import faces
from umo.evaluation import metrics
from umo.evaluation.cases import read_cases
from umo.reporting import figures, tables
from umo.reporting.page import TEMPLATES, environment
from umo.reporting.panels import assigned_cosines

PAGE = "report.html"
TEMPLATE = ROOT / "pipelines/report/report.html.j2"
INPUTS = (
    *(products.INGESTED, products.MEASURED_PHOTOS, products.PEOPLE, products.SYNTHESISED, products.CURATED),
    *(products.VALIDATED / products.VALIDATION, products.EXPORTED),
    *(products.CASES, products.GENERATED, products.EVALUATED, PARAMS, SOURCES),
)
PACKAGES = (
    *("torch", "diffusers", "accelerate", "onnxruntime", "opencv-python-headless", "dlib-bin", "numpy", "polars"),
    *("great-expectations", "dvc"),
)


class Params(Section):
    """
    sheet_rows: sets shown a split, and cases shown.
    notice: a warning at the top of the page; null shows none.
    """

    sheet_rows: int = Field(ge=1, le=50)
    notice: str | None = None


def run(params: Params, machine: Machine) -> None:
    """Write runs/report/report.html from what the others left; BadInput where `ladder.evaluated` says so."""
    trained = [products.TRAINED] if products.TRAINED.exists() else []
    inputs = {str(product): tree_digest(product) for product in (*INPUTS, *trained)} | {"revision": _revision()}
    work, shard = partial(_report, params), Shard("", inputs)
    run_shards("report", work, [shard], products.REPORT, params=params, files=[TEMPLATE, *TEMPLATES], machine=machine)


def _report(params: Params, shard: Shard, folder: Path) -> Counts:
    scores = ladder.evaluated()
    judge = next(iter(scores.values()))["judge"]
    trainings = training.read_trainings()
    curated = _json(products.CURATED / products.FUNNEL)
    funnel = data.funnel(curated)
    template = environment(TEMPLATE.parent).get_template(TEMPLATE.name)
    page = template.render(
        notice=params.notice,
        judge=judge,
        **_results(scores),
        **_cases(params, list(scores), judge["same_person_cosine"]),
        trainings=trainings,
        colours={method: figures.COLOURS[method] for method in trainings},
        training_curves=training.training_curves(trainings),
        validation_curves=training.validation_curves(trainings),
        sheets=data.set_sheets(params.sheet_rows),
        funnel=funnel,
        turned_away=curated["reasons"],
        people_check=_json(products.PEOPLE / products.PEOPLE_CHECK),
        similarities=data.similarities(),
        validation=_json(products.VALIDATED / products.VALIDATION)["suites"],
        sources=read_sources(),
        revision=_revision(),
        params=yaml.safe_dump(yaml.safe_load(PARAMS.read_text()), sort_keys=False),
        models=_models(judge),
        packages={name: importlib.metadata.version(name) for name in PACKAGES},
    )
    (folder / PAGE).write_text(page)
    plots.write_tables(folder, scores, tables.BY_PEOPLE, funnel)
    return Counts({"pages": 1})


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def _results(scores: Mapping[str, Mapping]) -> dict[str, Any]:
    """The ladder, its figure, side effects and comparisons."""
    return tables.results(scores) | {
        "methods": {method: ladder.METHODS[method] for method in scores},
        "side_effect_names": tables.labels(metrics.SIDE_EFFECTS),
        "side_effects": {method: _json(products.EVALUATED / method / products.SIDE_EFFECTS) for method in scores},
        "comparisons": _json(products.COMPARISONS),
    }


def _cases(params: Params, methods: Sequence[str], threshold: float) -> dict[str, Any]:
    """Pictures of cases, and how alike the judge finds the assigned faces of all of them."""
    scores = {method: panels.read_scores(method) for method in methods}
    cases = read_cases(products.CASES / products.CASES_FILE, drawn=False)
    return {
        "n_cases": len(cases),
        "n_people": len({person for case in cases for person in case.people or ()}),
        "split": load("cases").model_dump()["split"],
        "contact_sheet": panels.contact_sheet(cases, scores, threshold, params.sheet_rows),
        "extremes": panels.extremes(cases, scores, threshold),
        "figure_of_cosines": figures.shares(
            {method: assigned_cosines(rows) for method, rows in scores.items()},
            threshold,
            "cosine of a reference and its face, at least",
        ),
    }


def _revision() -> str:
    """The git revision that the report is made from, marked where code or params differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout.strip()

    revision = git("rev-parse", "--short", "HEAD") or "no git revision"
    changed = git("status", "--porcelain", "--", "umo", "pipelines", str(PARAMS), str(SOURCES))
    return f"{revision}, with changes not committed" if changed else revision


def _models(judge: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Role, name, file, sha256 of every face network that had a say."""
    found = [("judges", judge["name"], name, value) for name, value in judge["files"].items()]
    for role, stage, key in (("curates", "measure", "faces"), ("gives the reward", "train", "reward")):
        network = faces.load(load(stage).model_dump()[key])
        found += [(role, network.name, path.name, file_digest(path)) for path in network.files]
    return found
