"""docs/results/ladder.md and ladder.json: what the ladder's cells and the graph's methods came to."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipelines.core import products
from pipelines.core.cells import CELL_STRIP, Place, read_cells
from pipelines.core.shards import ROOT
from pipelines.report import cells, claims, ladder
from pipelines.report.cells import ABSENT_DOUBLED, Made
from pipelines.report.courses import courses
from umo.files import write_text

PAGE, TEMPLATE = Path("docs/results/ladder.md"), ROOT / "pipelines/report/ladder.md.j2"
GROUPS = {"test": "Test people", "validation": "Validation people"}
COLUMNS = (
    *("id_sim_strict", "id_conf_strict", "coverage", "absent", "doubled", ABSENT_DOUBLED, "surplus", "swapped"),
    "copy_paste",
)
COSTS = ("updates", "evaluations", "seconds")
IN_PARTS = ("id_sim_strict", "id_conf_strict", "coverage", "absent", "doubled")
PICTURED = ("base", "sft", "sir", "mimr", "ours")
CURVES = ("sft", "sir", "mimr", "ours", "ours-nft", "ours-grpo")


def write(page: Path = PAGE, path: Path = ladder.LADDER) -> str:
    """Write both; returns a line about it.

    Where the graph's scores are not here (a fresh clone), ladder.json keeps the rows that it has. BadInput as
    `ladder.evaluated`, `read_cells` and `cells.read_made`.
    """
    if any(products.EVALUATED.glob(f"*/{products.SCORES_TABLE}")):
        ladder.write_ladder(path)
    content = json.loads(path.read_text())
    specified = read_cells()
    made: dict[str, dict[str, Made]] = {}
    missing: list[Place] = []
    for group in GROUPS:
        made[group], lacking = cells.read_made(specified, group)
        missing += lacking
    rows = {group: [cells.row_of(one) for one in found.values()] for group, found in made.items()}
    differences = {group: cells.differences(found) for group, found in made.items()}
    content |= {"cells": rows, "differences": differences, "missing": [f"{p.group}/{p.name}" for p in missing]}
    write_text(path, json.dumps(content, indent=1) + "\n")
    decided = "test" if differences["test"] else "validation"
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.get_template(TEMPLATE.name).render(
        judge=_judge(content, made),
        of="no cell is made yet"
        if not any(made.values())
        else GROUPS["test" if made["test"] else "validation"].lower(),
        said=_said(made, differences) if any(made.values()) else [],
        missing=[f"`{name}`" for name in content["missing"]],
        parts=[_part(group, made[group], rows[group]) for group in GROUPS if made[group]],
        differences=_differences(differences[decided]) if differences[decided] else "",
        figures=list(_figures(rows["validation"], page.parent)),
        strips=_strips(made, page.parent),
    )
    write_text(page, text.rstrip("\n") + "\n")
    return f"{page}, {path}: {sum(map(len, made.values()))} cells, {len(missing)} missing"


def _judge(content: Mapping[str, Any], made: Mapping[str, Mapping[str, Made]]) -> str:
    """The cells' own, where there are any."""
    first = next((one.first for found in made.values() for one in found.values()), content)
    return first["judge"]["name"]


def _said(made: Mapping[str, Mapping[str, Made]], found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """On test people where they were judged; what only validation people were asked is said of those."""
    group = "test" if made["test"] else "validation"
    said = claims.sentences(made[group], found[group])
    if group == "test":
        said += [f"On validation people: {one}" for one in claims.over_optimised(made["validation"])]
    return said


def _part(group: str, made: Mapping[str, Made], rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    first = next(iter(made.values())).first
    seeds = sorted({seed for one in made.values() for seed in one.heads})
    text = (
        f"{first['cases']} cases; training seeds {', '.join(map(str, seeds))}. Updates, evaluations of the transformer "
        "(samples that went forward through it while weights were moved) and seconds are a training's."
    )
    ns = sorted({n for row in rows for n in row["by_n"]}, key=int)
    tags = sorted({tag for row in rows for tag in row["by_tag"]})
    return {
        "title": GROUPS[group],
        "text": text,
        "table": _table(
            ("cell", "objective", *COLUMNS, *COSTS),
            ((row["cell"], row["objective"] or "–", *_estimates(row, COLUMNS), *_costs(row)) for row in rows),
        ),
        "effects": _table(("cell", *cells.EFFECTS), ((row["cell"], *_estimates(row, cells.EFFECTS)) for row in rows)),
        "by_tag": _by(rows, "by_tag", tags) if tags else "",
        "by_n": _by(rows, "by_n", ns),
    }


def _by(rows: Sequence[Mapping[str, Any]], key: str, kinds: Sequence[str]) -> str:
    lines = []
    for row in rows:
        for kind in kinds:
            if own := row[key].get(kind):
                lines.append((row["cell"], kind, *_estimates(own, IN_PARTS)))
    return _table(("cell", "kind" if key == "by_tag" else "people", *IN_PARTS), lines)


def _differences(found: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for one in found:
        interval = _estimate({"mean": one["difference"], "low": one["low"], "high": one["high"]})
        holds = " ✓" if one["holds"] else ""
        rows.append((f"{one['a']} − {one['b']}", one["metric"], one["kind"], interval, one["verdict"] + holds))
    return _table(("A − B", "metric", "cases", "difference", "verdict"), rows)


def _figures(rows: Sequence[Mapping[str, Any]], folder: Path) -> Iterator[dict[str, str]]:
    """Written beside the page."""
    by_name = {row["cell"]: row for row in rows}
    start = by_name["base"]["points"] if "base" in by_name else []
    several = {
        "ladder-courses": ("In their course", "What the judge sees of a training over what it has cost.", CURVES),
        "ladder-long": (
            "Four times as long",
            "With the last weights, and with guards: an early stop, and the weights with the best validation reward.",
            [name for name in by_name if "-long" in name],
        ),
    }
    for name, (title, text, wanted) in several.items():
        named = {cell: [*start, *by_name[cell]["points"]] for cell in wanted if cell in by_name}
        if named:
            drawn = courses(named, {cell: by_name[cell]["method"] for cell in named})
            write_text(folder / f"{name}.svg", drawn)
            yield {"title": title, "text": text, "path": f"{name}.svg"}


def _strips(made: Mapping[str, Mapping[str, Made]], folder: Path) -> dict[str, str]:
    """Copied beside the page: of the first seed."""
    group = "test" if made["test"] else "validation"
    found = {}
    for name in PICTURED:
        if one := made[group].get(name):
            target = folder / "ladder" / f"{name}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Place(group, name, min(one.heads)).path / CELL_STRIP, target)
            found[name] = f"ladder/{name}.jpg"
    return found


def _estimates(row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    return [_estimate(row[name]) for name in names]


def _costs(row: Mapping[str, Any]) -> list[str]:
    return [f"{row[cost]:,}" for cost in COSTS]


def _estimate(found: Mapping[str, Any]) -> str:
    if found["mean"] is None:
        return "–"
    numbers = [found[key] for key in ("mean", "low", "high") if found[key] is not None]
    mean, *bounds = (f"{number:.3f}".replace("-", "−") for number in numbers)
    return f"{mean} [{', '.join(bounds)}]" if bounds else mean


def _table(head: Sequence[str], rows: Any) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
