"""The ladder's cells that are made (runs/ablate), seeds of one cell together: their numbers, and their differences."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.core import products
from pipelines.core.cells import CELL_METRICS, Ladder, Place
from umo import records
from umo.errors import BadInput
from umo.evaluation import comparison, metrics, seeds

ABSENT_DOUBLED = "absent_doubled"  # whether a picture has somebody too few, and whether somebody twice, added
SHOWN = (
    *("id_sim_strict", "id_conf_strict", "coverage", "absent", "doubled", ABSENT_DOUBLED, "surplus", "swapped"),
    *("copy_paste", "id_sim", "id_conf"),
)
EFFECTS = ("people_right", "sharpness_error", "diffusion_loss", "variety")
LOWER_IS_BETTER = metrics.LOWER_IS_BETTER | {ABSENT_DOUBLED}
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Made:
    """A cell of a group, as far as it is made.

    Attributes:
        heads: by seed, its metrics.json.
        rows: by seed, a row a picture: case_id, people, n, tags, and every metric and side effect by name.
    """

    name: str
    heads: dict[int, dict[str, Any]]
    rows: dict[int, Rows]

    @property
    def method(self) -> str:
        return self.first["method"]

    @property
    def objective(self) -> str | None:
        """How its reward moved the weights; None for the base."""
        if self.method in ("base", "sft"):
            return None if self.method == "base" else "sft"
        return self.first["recipe"].get("objective", "rerefl")

    @property
    def first(self) -> dict[str, Any]:
        return next(iter(self.heads.values()))

    def of(self, n: int | None = None, tag: str | None = None, several: bool = False) -> dict[int, Rows]:
        """The rows of cases of so many people, of a kind, or of two and more."""
        return {
            seed: [
                row
                for row in rows
                if n in (None, row["n"]) and (tag is None or tag in row["tags"]) and (row["n"] > 1 or not several)
            ]
            for seed, rows in self.rows.items()
        }


def read_made(ladder: Ladder, group: str) -> tuple[dict[str, Made], list[Place]]:
    """The cells of a group by name, in the ladder's order, and those that are not made.

    Raises BadInput: two of them were not judged alike.
    """
    found: dict[str, Made] = {}
    missing = []
    for place in sorted(ladder.places(group), key=lambda place: ladder.group(group).cells.index(place.cell)):
        if not (place.path / CELL_METRICS).is_file():
            missing.append(place)
            continue
        head = json.loads((place.path / CELL_METRICS).read_text())
        made = found.setdefault(place.cell, Made(place.cell, {}, {}))
        made.heads[place.seed], made.rows[place.seed] = head, _rows(place, head)
    every = [head for made in found.values() for head in made.heads.values()]
    if any(head[key] != every[0][key] for head in every for key in ("judge", "cases")):
        raise BadInput(f"{group} cells of runs/ablate were not judged alike; make the older ones again")
    return found, missing


def _rows(place: Place, head: Mapping[str, Any]) -> Rows:
    scores = records.read(place.path / products.SCORES_TABLE, records.SCORES).to_pylist()
    effects = records.read(place.path / products.SIDE_EFFECTS_TABLE, records.SIDE_EFFECTS).to_pylist()
    tags = {
        case: [tag for tag, cases in head["tags"].items() if case in cases]
        for row in scores
        if (case := row["case_id"])
    }
    rows = []
    for score, effect in zip(scores, effects, strict=True):
        own = {name: metrics.of_row(score, name) for name in metrics.METRICS}
        absent, doubled = own["absent"], own["doubled"]
        own[ABSENT_DOUBLED] = None if absent is None or doubled is None else absent + doubled
        known = {key: score[key] for key in ("case_id", "people", "n")}
        rows.append(known | {"tags": tags[score["case_id"]]} | own | {name: effect[name] for name in EFFECTS})
    return rows


def row_of(made: Made) -> dict[str, Any]:
    """A cell as a row of docs/results/ladder.json; intervals over people and training seeds."""
    ns = sorted({row["n"] for rows in made.rows.values() for row in rows})
    tags = sorted({tag for rows in made.rows.values() for row in rows for tag in row["tags"]})
    costs = {key: [head[key] for head in made.heads.values()] for key in ("updates", "evaluations", "seconds")}
    return {
        "cell": made.name,
        "method": made.method,
        "objective": made.objective,
        **_estimates(made.of(), (*SHOWN, *EFFECTS)),
        "by_n": {str(n): _estimates(made.of(n=n), SHOWN) for n in ns},
        "by_tag": {tag: _estimates(made.of(tag=tag), SHOWN) for tag in tags},
        "seeds": len(made.rows),
        **{key: round(sum(values) / len(values)) for key, values in costs.items()},
        "points": made.first["points"],
    }


def _estimates(rows: Mapping[int, Rows], names: Sequence[str]) -> dict[str, Any]:
    return {name: rounded(asdict(seeds.estimate(rows, name))) for name in names}


def rounded(found: Mapping[str, Any]) -> dict[str, Any]:
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in found.items()}


@dataclass(frozen=True)
class Question:
    """A difference a - b that the ladder is to decide; `kind` says of which cases: all, or open prompts to several."""

    a: str
    b: str
    metric: str
    kind: str = "all"


QUESTIONS = (
    *(Question("ours", "mimr", name) for name in (ABSENT_DOUBLED, "copy_paste", "coverage", "id_sim_strict")),
    *(Question("mimr", "sir", name, "open") for name in ("id_conf_strict", "doubled")),
)


def differences(made: Mapping[str, Made], questions: Sequence[Question] = QUESTIONS) -> list[dict[str, Any]]:
    """The answers that there are cells for, each as `comparison.compare` has it, corrected together (Holm)."""
    found = list(_differences(made, questions))
    comparison.correct(found)
    return found


def _differences(made: Mapping[str, Made], questions: Sequence[Question]) -> Iterator[dict[str, Any]]:
    for asked in questions:
        if asked.a in made and asked.b in made:
            kind: dict[str, Any] = {"tag": "open", "several": True} if asked.kind == "open" else {}
            found, p = seeds.difference(made[asked.a].of(**kind), made[asked.b].of(**kind), asked.metric)
            verdict = "cannot tell"
            if found.low is not None and found.high is not None and (found.low > 0 or found.high < 0):
                verdict = "better" if (found.low > 0) != (asked.metric in LOWER_IS_BETTER) else "worse"
            estimate = {"difference": found.mean, "low": found.low, "high": found.high, "n": found.n}
            yield {**asdict(asked), **rounded(estimate), "verdict": verdict, "p": p}
