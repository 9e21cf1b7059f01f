"""The report's tables for `dvc plots`, which draws them beside those of other versions."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.core import products

FOLDER = "plots"
WIDTH = 0.05  # of a bin of cosines


def write_tables(
    folder: Path, scores: Mapping[str, Mapping], metrics: Sequence[str], funnel: Iterable[tuple[str, int, str]]
) -> None:
    """A CSV a metric with a row a method and number of people, `cosines.csv`, and `funnel.csv`.

    Args:
        folder: of the report; the tables go to a folder in it.
        scores: method -> metrics.json, in the order of the page.
        funnel: step, how many, what became of the others.
    """
    (folder / FOLDER).mkdir()
    for metric in metrics:
        names = ("people", "method", "mean", "low", "high", "n")
        _write(folder / FOLDER / f"{metric}.csv", names, _estimates(scores, metric))
    _write(folder / FOLDER / "cosines.csv", ("of", "cosine", "count"), _counts())
    _write(folder / FOLDER / "funnel.csv", ("step", "count", "the others"), funnel)


def _write(path: Path, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([names, *rows])


def _estimates(scores: Mapping[str, Mapping], metric: str) -> Iterable[Sequence[Any]]:
    for method, found in scores.items():
        for people, part in {"all": found, **found["by_n"]}.items():
            if (estimate := part[metric])["n"]:
                bounds = (estimate[key] for key in ("mean", "low", "high"))
                yield people, method, *("" if bound is None else round(bound, 4) for bound in bounds), estimate["n"]


def cosines() -> dict[str, np.ndarray]:
    """Of the sets considered: name -> (n,) cosines of faces."""
    sets = products.sets()
    return {
        "reference and target": sets["reference_cosine"].explode().drop_nulls().to_numpy(),
        "two people of a target": sets["cross_cosine"].drop_nulls().to_numpy(),
    }


def _counts() -> Iterable[Sequence[Any]]:
    """The histograms of the cosines; empty bins between others, before and after them are written as 0."""
    for name, found in cosines().items():
        bins = np.floor(found.astype(np.float64) / WIDTH + 1e-6).astype(int)
        first = int(bins.min()) - 1 if len(bins) else 0
        for k, count in enumerate(np.bincount(bins - first, minlength=1)):
            yield name, round((first + k) * WIDTH, 2), int(count)
        yield name, round((first + k + 1) * WIDTH, 2), 0
