"""One self-contained HTML file: scores with intervals, pictures, the data's funnel, thresholds, provenance."""

import importlib.metadata
import json
import subprocess
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import Field

from pipelines import figures, products
from pipelines.ledger import SPLITS
from pipelines.params import PARAMS, Section, load
from pipelines.shards import ROOT, Counts, Machine, Shard, file_digest, tree_digest
from pipelines.shards import run as run_shards
from pipelines.sources import SOURCES, read_sources
from umo import faces, records
from umo.cases import Case, read_cases
from umo.images import ImageError, read_image

PAGE = "report.html"
TEMPLATE = ROOT / "pipelines/report.html.j2"
METRICS = {
    "id_sim_strict": "likeness, strict",
    "id_sim": "likeness",
    "id_conf_strict": "no confusion, strict",
    "id_conf": "no confusion",
    "coverage": "people covered",
    "duplicates": "duplicates",
    "extra": "extra faces",
    "copy_paste": "copy-paste",
}
ADHERENCE = {
    "people_right": "number of people",
    "order_right": "order of people",
    "background_right": "background",
}
METHODS = {
    "target": "the real picture: the ceiling",
    "pasted": "the reference photograph pasted over each face: the copy-paste ceiling",
    "base": "the base model",
    "shuffled": "the base model with somebody else's references: the floor",
}
INPUTS = (
    products.INGESTED,
    products.MEASURED_PHOTOS,
    products.PEOPLE,
    products.SYNTHESISED,
    products.CURATED,
    products.VALIDATED / products.VALIDATION,
    products.EXPORTED,
    products.CASES,
    products.GENERATED,
    products.EVALUATED,
    PARAMS,
    SOURCES,
)
PACKAGES = (
    "torch",
    "onnxruntime",
    "opencv-python-headless",
    "dlib-bin",
    "numpy",
    "polars",
    "great-expectations",
    "dvc",
)
MAX_PAIRS = 50_000
SHEET_HEIGHT = 192


class Params(Section):
    """
    sheet_rows: sets shown a split, and cases shown.
    """

    sheet_rows: int = Field(ge=1, le=50)


def run(params: Params, machine: Machine) -> None:
    """Write runs/report/report.html from what the other stages left."""
    shard = Shard("", {str(product): tree_digest(product) for product in INPUTS} | {"revision": _revision()})
    run_shards(
        "report",
        partial(_report, params),
        [shard],
        products.REPORT,
        params=params,
        files=[TEMPLATE],
        machine=machine,
    )


def _report(params: Params, shard: Shard, folder: Path) -> Counts:
    scores = {method: _json(products.EVALUATED / method / products.METRICS) for method in METHODS}
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["number"] = _number
    page = environment.get_template(TEMPLATE.name).render(
        methods=METHODS,
        metrics=METRICS,
        scores=scores,
        adherence_names=ADHERENCE,
        adherence={method: _json(products.EVALUATED / method / products.ADHERENCE) for method in METHODS},
        comparisons=_json(products.COMPARISONS),
        ns=sorted({n for found in scores.values() for n in found["by_n"]}),
        sheets=_sheets(params),
        case_sheet=_case_sheet(params),
        funnel=_funnel(),
        turned_away=_json(products.CURATED / products.FUNNEL)["reasons"],
        people_check=_json(products.PEOPLE / products.PEOPLE_CHECK),
        validation=_json(products.VALIDATED / products.VALIDATION)["suites"],
        figures=_figures(),
        sources=read_sources(),
        revision=_revision(),
        params=yaml.safe_dump(yaml.safe_load(PARAMS.read_text()), sort_keys=False),
        models=_models(scores),
        packages={name: importlib.metadata.version(name) for name in PACKAGES},
    )
    (folder / PAGE).write_text(page)
    return Counts({"pages": 1})


def _json(path: Path) -> dict:
    return json.loads(path.read_text())


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _revision() -> str:
    """The git revision that the report is made from, marked where code or params differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout.strip()

    revision = git("rev-parse", "--short", "HEAD") or "no git revision"
    changed = git("status", "--porcelain", "--", "umo", "pipelines", str(PARAMS), str(SOURCES))
    return f"{revision}, with changes not committed" if changed else revision


def _sheets(params: Params) -> dict[str, str]:
    """Per split, sets as references | target with faces boxed and named."""
    sheets: dict[str, str] = {}
    for split in SPLITS:
        if not products.exported_files(split):
            continue
        rows = products.exported(split, ["n", "references", "target", "target_boxes", "person_ids"])
        # A spread over the numbers of people, the same rows every time.
        rows = sorted(rows, key=lambda row: -row["n"])[:: max(1, len(rows) // params.sheet_rows)][: params.sheet_rows]
        lines = []
        for row in rows:
            names = [person[:6] for person in row["person_ids"]]
            target = read_image(row["target"]["bytes"])
            target = figures.boxed(target, row["target_boxes"], names, range(row["n"]), SHEET_HEIGHT)
            lines.append([*(read_image(image["bytes"]) for image in row["references"]), target])
        sheets[split] = figures.sheet(lines, SHEET_HEIGHT)
    return sheets


def _case_sheet(params: Params) -> str:
    """Cases with what each method drew, faces as the judge found them and the reference each was assigned to."""
    lines = []
    scores = {method: _scores(method) for method in METHODS}
    for case in _chosen_cases(params.sheet_rows):
        line = [read_image(products.CASES / path) for photos in case.references for path in photos]
        for method in METHODS:
            row = scores[method][case.case_id]
            names, colours = _labels(row)
            picture = _picture(products.GENERATED / method / row["image"])
            line.append(figures.boxed(picture, row["boxes"] or [], names, colours, SHEET_HEIGHT))
        lines.append(line)
    return figures.sheet(lines, SHEET_HEIGHT)


def _picture(path: Path) -> np.ndarray:
    """A drawn picture; a grey one stands for what cannot be read."""
    try:
        return read_image(path)
    except ImageError:
        return np.full((64, 64, 3), 128, np.uint8)


def _chosen_cases(count: int) -> list[Case]:
    found = read_cases(products.CASES / products.CASES_FILE, drawn=False)
    found = [case for case in found if len(case.references) == 2] or found
    return found[:: max(1, len(found) // count)][:count]


def _scores(method: str) -> dict[str, dict]:
    """By case, the scores of its first picture."""
    table = records.read(products.EVALUATED / method / products.SCORES_TABLE, records.SCORES)
    return {row["case_id"]: row for row in table.to_pylist() if row["seed"] == 0}


def _labels(row: Mapping) -> tuple[list[str], list[int]]:
    """A label and a colour for each drawn face: the reference that it is assigned to, and their cosine."""
    names, colours = ["extra"] * len(row["boxes"] or []), [-1] * len(row["boxes"] or [])
    for reference, face in enumerate(row["assignment"] or []):
        if face >= 0:
            names[face] = f"{reference + 1}: {row['cosines'][reference][face]:.2f}"
            colours[face] = reference
    return names, colours


def _funnel() -> list[tuple[str, int, str]]:
    """The way of the data: step, how many, what became of the others."""
    images = products.images(products.INGESTED)
    found = products.people_faces()
    people = products.people()
    scenes = products.scenes()
    funnel = _json(products.CURATED / products.FUNNEL)
    return [
        ("photographs read", images.height, ""),
        ("usable", int((images["status"] == "ok").sum()), _why(images.filter(pl.col("status") != "ok"), "error")),
        ("faces measured", found.height, ""),
        ("faces of somebody", int(found["keep"].sum()), _why(found.filter(~pl.col("keep")), "reason")),
        ("people", int(people["keep"].sum()), _why(people.filter(~pl.col("keep")), "reason")),
        ("scenes synthesised", scenes.height, ""),
        ("pictures considered", funnel["pictures"], "photographs with faces, and scenes"),
        ("sets kept", funnel["kept"], ", ".join(f"{count} {split}" for split, count in funnel["by_split"].items())),
    ]


def _why(rows: pl.DataFrame, column: str) -> str:
    counts = rows[column].value_counts().sort("count", column, descending=[True, False]).iter_rows()
    return "; ".join(f"{count} {reason}" for reason, count in counts)


def _figures() -> dict[str, str]:
    """Similarities with the thresholds that act on them."""
    identification, band = load("identify").model_dump(), load("curate").model_dump()
    same, different = _pairs()
    sets = products.sets()
    considered = sets["reference_cosine"].explode().drop_nulls().to_numpy()
    cross = sets["cross_cosine"].drop_nulls().to_numpy()
    judge = _json(products.EVALUATED / "target" / products.METRICS)["judge"]
    return {
        "Photographs, by the network that curates": figures.histogram(
            {"same person": same, "different people": different},
            {"one person from": identification["min_cosine"]},
            "cosine of two faces",
        ),
        "Sets, by the network that curates": figures.histogram(
            {"reference and target": considered, "two people of a target": cross},
            {"from": band["min_cosine"], "to": band["max_cosine"], "people at most": band["max_cross_cosine"]},
            "cosine",
        ),
        f"Cases, by the judge ({judge['name']})": figures.histogram(
            {method: _assigned(method) for method in METHODS},
            {"same person from": judge["same_person_cosine"]},
            "cosine of a reference and its assigned face",
        ),
    }


def _pairs() -> tuple[np.ndarray, np.ndarray]:
    """Cosines of pairs of photographed faces: of one person, and of two (a sample)."""
    owner = products.people_faces().filter("keep").select("face_id", "person_id")
    table = products.faces(products.MEASURED_PHOTOS, ["face_id", "embedding"])
    found = table.join(owner, on="face_id").sort("face_id")
    found = found.sample(min(len(found), 2000), seed=0)
    vectors = found["embedding"].to_numpy().astype(np.float32)
    person = found["person_id"].to_numpy()
    first, second = np.triu_indices(len(vectors), 1)
    cosines = (vectors @ vectors.T)[first, second]
    same = person[first] == person[second]
    thin = np.random.default_rng(0).permutation
    return thin(cosines[same])[:MAX_PAIRS], thin(cosines[~same])[:MAX_PAIRS]


def _assigned(method: str) -> np.ndarray:
    return np.array(
        [
            row["cosines"][reference][face]
            for row in _scores(method).values()
            for reference, face in enumerate(row["assignment"] or [])
            if face >= 0
        ],
        np.float32,
    )


def _models(scores: Mapping[str, Mapping]) -> list[tuple[str, str, str, str]]:
    """Role, name, file, sha256 of every network that had a say."""
    curating = faces.load(load("measure").model_dump()["faces"])
    found = [("curates", curating.name, path.name, file_digest(path)) for path in curating.files]
    judge = scores["target"]["judge"]
    return found + [("judges", judge["name"], name, value) for name, value in judge["files"].items()]
