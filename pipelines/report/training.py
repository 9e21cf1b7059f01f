"""The report's training: what each run was and became, and its curves."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.core import products
from umo.reporting.figures import Curve, curves

CURVES = {
    "reward": "reward",
    "matched": "cosine of the matched pairs",
    "no_face": "share of pictures without a face",
    "gradient_norm": "norm of the gradient",
    "diffusion_loss": "diffusion loss",
}
VALIDATION = {f"validation/{key}": CURVES[key] for key in ("reward", "matched", "diffusion_loss")}
SMOOTHED = 20  # a value's neighbours on each side are one in so many of all


def read_trainings() -> dict[str, dict[str, Any]]:
    """training.json of the methods that were trained, in the ladder's order."""
    paths = {method: products.TRAINED / method / products.TRAINING for method in products.TRAINED_METHODS}
    return {method: json.loads(path.read_text()) for method, path in paths.items() if path.is_file()}


def training_curves(trainings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Figures of the training pictures, over the updates."""
    drawn = []
    for key, label in CURVES.items():
        named = {}
        for method, training in trainings.items():
            file = products.TRAINED / method / products.LIVE / f"plots/metrics/train/{key}.tsv"
            if file.is_file():
                named[method] = read_curve(file, training["chosen_update"])
        if named:
            longest = max(len(curve.values) for curve in named.values())
            drawn.append(curves(named, label, max(1, longest // SMOOTHED)))
    return drawn


def validation_curves(trainings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Figures of the validation people's pictures; none where nothing was validated."""
    drawn = []
    for key, label in VALIDATION.items():
        named = {}
        for method, training in trainings.items():
            if rows := training["validation"]:
                updates, values = np.array([(row["update"], row[key]) for row in rows]).T
                named[method] = Curve(updates, values, training["chosen_update"])
        if named:
            drawn.append(curves(named, label))
    return drawn


def read_curve(file: Path, chosen: int) -> Curve:
    """A curve as DVCLive writes it: tab-separated, with a heading; a skipped update has no line."""
    with file.open(newline="") as lines:
        rows = [(float(row["step"]), float(row[file.stem])) for row in csv.DictReader(lines, delimiter="\t")]
    updates, values = np.array(rows).T
    return Curve(updates, values, chosen)
