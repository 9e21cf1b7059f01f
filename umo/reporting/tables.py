"""What a page's tables show: metrics by the names that readers know, means with intervals, by people and by tag."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from umo.evaluation import metrics
from umo.reporting import figures

LABELS = {
    "id_sim_strict": "likeness, strict",
    "id_sim": "likeness",
    "id_conf_strict": "no confusion, strict",
    "id_conf": "no confusion",
    "coverage": "people covered",
    "absent": "too few faces",
    "surplus": "too many faces",
    "doubled": "somebody twice",
    "swapped": "places exchanged",
    "count_right": "as many faces as people",
    "count_difference": "faces less people",
    "blend": "blend",
    "collapse": "one face for all",
    "sim_target": "likeness to the real picture",
    "copy_paste_covered": "copy-paste, strict",
    "duplicates": "duplicates",
    "extra": "extra faces",
    "copy_paste": "copy-paste",
    "people_right": "number of people right",
    "order_right": "order of people right",
    "background_right": "background right",
    "sharpness_error": "sharpness error",
    "diffusion_loss": "diffusion loss",
    "variety": "variety",
}
MAIN = ("id_sim_strict", "id_sim", "id_conf", "coverage", "copy_paste")
BY_PEOPLE = ("id_sim_strict", "id_conf")
BY_TAG = ("id_sim_strict", "id_conf", "absent", "doubled")


def number(value: float | None) -> str:
    """As a page shows it."""
    return "–" if value is None else f"{value:.3f}".replace("-", "−")


def labels(names: Collection[str]) -> dict[str, str]:
    """Names as the reader knows them, in the page's order, with an arrow to what is better, if either is."""
    arrows = dict.fromkeys(metrics.LOWER_IS_BETTER, " ↓") | dict.fromkeys(metrics.NEUTRAL, "")
    return {name: label + arrows.get(name, " ↑") for name, label in LABELS.items() if name in names}


def results(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What scores.html.j2 shows of evaluations: name -> metrics.json."""
    ns = sorted({n for found in scores.values() for n in found["by_n"]}, key=int)
    return {
        "scores": scores,
        "ladder": labels(MAIN),
        "further": labels(set(metrics.METRICS) - set(MAIN)),
        "metrics": labels(metrics.METRICS),
        "by_people": {
            metric: [n for n in ns if any(_at(found, n, metric)["n"] for found in scores.values())]
            for metric in BY_PEOPLE
        },
        "ns": ns,
        "by_tag": labels(BY_TAG),
        "tags": sorted({tag for found in scores.values() for tag in found.get("by_tag", {})}),
        "figure_of_ladder": figures.intervals(_points(scores, ns), list(scores)),
        "warnings": sorted({found["strangers"]["warning"] for found in scores.values() if found["strangers"]} - {None}),
    }


def _at(found: Mapping[str, Any], n: str, metric: str) -> Mapping[str, Any]:
    """An estimate for a number of people; one of nothing where no case has so many."""
    nothing = {"mean": None, "low": None, "high": None, "n": 0}
    return found["by_n"].get(n, {}).get(metric, nothing)


def _points(scores: Mapping[str, Mapping], ns: Sequence[str]) -> dict[str, dict[str, dict[str, Mapping]]]:
    """Label -> number of people -> name -> estimate."""
    return {
        label: {
            f"{n} {'person' if n == '1' else 'people'}": {name: _at(found, n, metric) for name, found in scores.items()}
            for n in ns
        }
        for metric, label in labels(BY_PEOPLE).items()
    }
