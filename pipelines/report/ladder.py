"""The ladder: every method's scores on the same cases, between a ceiling and a floor; docs/results/ladder.json."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.core import products
from pipelines.core.shards import MARKER, WORK, file_digest
from umo import records
from umo.errors import BadInput
from umo.reporting.tables import MAIN

LADDER = Path("docs/results/ladder.json")
METRICS = MAIN


class Rung(NamedTuple):
    """What a method is there for."""

    role: str  # `ceiling`, `floor` or `control` where it only frames the others; else empty
    meaning: str  # a sentence for a reader who does not know the project


METHODS = {
    "target": Rung("ceiling", "The real picture: as alike as two photographs of a person are."),
    "pasted": Rung(
        "copy-paste ceiling", "The reference photographs pasted over its faces: more alike than any real picture."
    ),
    "base": Rung("", "The model before any tuning here."),
    "sft": Rung("control", "The base tuned on the same pictures without a reward."),
    "sir": Rung("", "The base tuned with a reward for each person's most alike face (SIR)."),
    "mimr": Rung("", "The base tuned with the reward of UMO: people and faces matched one to one (MIMR)."),
    "ours": Rung("", "The base tuned with our reward: everybody once, alike, and nobody left out."),
    "shuffled": Rung("floor", "The base, given somebody else's photographs."),
}


def evaluated() -> dict[str, dict[str, Any]]:
    """The metrics.json of the methods that were evaluated, in the ladder's order.

    Raises:
        BadInput: there is none, or they were not judged alike: by one judge, on as many cases.
    """
    paths = {method: products.EVALUATED / method / products.METRICS for method in METHODS}
    found = {method: json.loads(path.read_text()) for method, path in paths.items() if path.is_file()}
    if not found:
        raise BadInput(f"{products.EVALUATED}: no method was evaluated; run dvc repro")
    first, *others = found
    for method in others:
        if any(found[method][key] != found[first][key] for key in ("judge", "cases")):
            raise BadInput(
                f"{products.EVALUATED}: {method} and {first} were not judged alike (judge or cases); run dvc repro"
            )
    return found


def write_ladder(path: Path = LADDER) -> Path:
    """Keep the present scores as {"rows", "command", "seconds", "judge", "cases"}; returns the file.

    `seconds` is what the work behind the present outputs took, summed over shards, whenever they were done. BadInput
    as in `evaluated`.
    """
    scores = evaluated()
    rows = []
    for method, found in scores.items():
        table = records.read(products.EVALUATED / method / products.SCORES_TABLE, records.SCORES, ["seed"])
        by_n = {n: _estimates(part) for n, part in found["by_n"].items()}
        seeds = len(set(table["seed"].to_pylist()))
        rows.append(
            {"method": method, "objective": _objective(method), **_estimates(found), "by_n": by_n, "seeds": seeds}
        )
    first = next(iter(scores.values()))
    content = {"rows": rows, "command": "make repro", "seconds": round(_seconds())}
    content |= {key: first[key] for key in ("judge", "cases")}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def _objective(method: str) -> str | None:
    """How a method's weights were moved; None where nothing was trained."""
    path = products.TRAINED / method / products.TRAINING
    if method not in products.TRAINED_METHODS or not path.is_file():
        return None
    return "sft" if method == "sft" else json.loads(path.read_text())["recipe"].get("objective", "rerefl")


def _estimates(found: Mapping[str, Any]) -> dict[str, Any]:
    return {metric: found[metric] for metric in METRICS}


def _seconds() -> float:
    """Of the shards whose products are all among the present outputs; of two that made the same, the newer one's."""
    present = {file_digest(path) for out in ("datasets", "runs") for path in Path(out).rglob("*") if path.is_file()}
    took: dict[tuple, float] = {}
    for path in sorted(WORK.glob(f"*/*/{MARKER}"), key=lambda path: path.stat().st_mtime):
        marker = json.loads(path.read_text())
        if present.issuperset(marker["sha256"].values()):
            took[path.parts[1], marker["shard"], *marker["sha256"].items()] = marker["seconds"]
    return sum(took.values())
