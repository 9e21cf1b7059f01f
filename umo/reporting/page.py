"""`umo report`: one file with everything about some evaluations, and a leaderboard that keeps those of before."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from umo import records
from umo.errors import BadInput
from umo.evaluation.cases import Case, read_cases
from umo.evaluation.comparison import compare
from umo.faces.weights import sha256
from umo.files import write_text
from umo.reporting import panels, tables
from umo.reporting.panels import Shown
from umo.texts import fault, read_json

HERE = Path(__file__).parent / "templates"
TEMPLATES = sorted(HERE.glob("*.j2"))
CASES, METRICS, SCORES = "CASES.jsonl", "metrics.json", "scores.parquet"
SHEET_ROWS = 6
KEPT = ("cases", "images")  # of metrics.json, in a leaderboard


@dataclass(frozen=True)
class Evaluation:
    """A folder that `umo evaluate` or `umo benchmark score` left.

    Attributes:
        found: metrics.json.
        cases: None where the folder has none, and so no pictures can be shown.
    """

    name: str
    folder: Path
    found: Mapping[str, Any]
    rows: panels.Rows
    cases: Sequence[Case] | None

    @property
    def shown(self) -> Shown:
        return Shown(self.name, self.rows, self.folder, self.folder)


def read_evaluation(given: str) -> Evaluation:
    """Of DIR, which names it, or NAME=DIR; BadInput where it holds no whole evaluation."""
    name, equals, place = given.rpartition("=")
    folder = Path(place)
    name = name if equals else folder.resolve().name
    if bad := fault(name, name=True):
        raise BadInput(f"{given}: its name {bad}; give NAME=DIR")
    for file in (METRICS, SCORES):
        if not (folder / file).is_file():
            raise BadInput(f"{folder}: no {file}; give a folder that umo evaluate or umo benchmark score wrote")
    found = read_json(folder / METRICS)
    if not isinstance(found, dict) or not {"judge", "cases", "by_n", "id_sim_strict"} <= found.keys():
        raise BadInput(f"{folder / METRICS}: no metrics of an evaluation; evaluate again")
    rows = panels.by_key(records.read(folder / SCORES, records.SCORES).to_pylist())
    cases = read_cases(folder / CASES) if (folder / CASES).is_file() else None
    return Evaluation(name, folder, found, rows, cases)


def report(given: Sequence[str], out: Path, leaderboard: Path | None = None, title: str = "umo report") -> None:
    """Write the page, and add the evaluations to a leaderboard.

    Args:
        given: evaluations, as `read_evaluation` takes them; the first is what the others are compared with.
        leaderboard: its file; None writes none.

    Raises BadInput: an evaluation is none, two have one name, they were judged differently, or the leaderboard is none.
    """
    evaluations = [read_evaluation(one) for one in given]
    names = [one.name for one in evaluations]
    if len(set(names)) < len(names):
        raise BadInput(f"two evaluations are named {max(names, key=names.count)!r}: give one as NAME=DIR")
    first = evaluations[0]
    for one in evaluations:
        if one.found["judge"] != first.found["judge"]:
            raise BadInput(f"{one.name} and {first.name} were judged differently; evaluate both with one judge")
    merged = None if leaderboard is None else _merged(leaderboard, evaluations)
    page = environment().get_template("page.html.j2").render(title=title, **_content(evaluations))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, page)
    if leaderboard is not None:
        leaderboard.parent.mkdir(parents=True, exist_ok=True)
        write_text(leaderboard, json.dumps(merged, indent=1, allow_nan=False) + "\n")


def environment(*folders: Path) -> Environment:
    """Of templates in some folders and here, which may use each other."""
    loader = FileSystemLoader([*folders, HERE])
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    made.filters["number"] = tables.number
    return made


def _content(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    first, *others = evaluations
    scores = {one.name: one.found for one in evaluations}
    threshold = first.found["judge"]["same_person_cosine"]
    with_cases = [one for one in evaluations if one.cases]
    sheet, standing = "", []
    if with_cases:
        last, before = with_cases[-1], with_cases[0]
        cases = [case for case in before.cases or () if (case.case_id, 0) in last.rows] or list(last.cases or ())
        shown = [one.shown for one in with_cases]
        sheet = panels.contact_sheet(cases, shown, threshold, SHEET_ROWS)
        against = before.shown if before is not last else None
        standing = panels.extremes(last.cases or (), last.shown, against, threshold)
    return tables.results(scores) | {
        "methods": {one.name: {"role": "", "meaning": ""} for one in evaluations},
        "judge": first.found["judge"],
        "n_cases": first.found["cases"],
        "n_pictures": sum(one.found["images"] for one in evaluations),
        "contact_sheet": sheet,
        "extremes": standing,
        "without_cases": [one.name for one in evaluations if not one.cases],
        "published": {one.name: one.found["benchmark"] for one in evaluations if "benchmark" in one.found},
        "comparisons": {f"{one.name}-{first.name}": compare(one.folder, first.folder) for one in others},
        "side_effect_names": {},
        "made": {one.name: _made(one) for one in evaluations},
        "failed": {one.name: one.found["failures"] for one in evaluations if one.found["failures"]},
        "version": version("umo"),
    }


def _made(one: Evaluation) -> dict[str, Any]:
    scores = sha256(one.folder / SCORES)
    return {key: one.found[key] for key in KEPT} | {"failures": len(one.found["failures"]), "scores": scores}


def _merged(path: Path, evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """The leaderboard with these in it: one of the same name, judge and benchmark takes the other's place."""
    before = read_json(path) if path.is_file() else {"rows": []}
    if not isinstance(before, dict) or not isinstance(before.get("rows"), list):
        raise BadInput(f"{path}: no leaderboard (an object with rows); give another file, or move it away")
    rows = {_place(row): row for row in before["rows"]}
    rows |= {_place(row): row for row in map(_row, evaluations)}
    best = sorted(rows.values(), key=lambda row: (_place(row)[1:], -(row["id_sim_strict"]["mean"] or 0), row["name"]))
    return {"rows": best}


def _row(one: Evaluation) -> dict[str, Any]:
    found, own = one.found, one.found.get("benchmark")
    names = tables.labels(set(tables.LABELS) & found.keys())
    return {
        "name": one.name,
        "benchmark": own and {key: own[key] for key in ("name", "revision", "published", "skipped", "comparable")},
        **{name: found[name] for name in names},
        "by_n": {n: {name: part[name] for name in names if name in part} for n, part in found["by_n"].items()},
        "judge": found["judge"],
        "umo": version("umo"),
        **_made(one),
    }


def _place(row: Any) -> tuple[str, str, str]:
    try:
        return row["name"], (row["benchmark"] or {}).get("name", ""), json.dumps(row["judge"]["files"], sort_keys=True)
    except (TypeError, KeyError) as error:
        raise BadInput("the leaderboard has a row without name, benchmark and judge; move its file away") from error
