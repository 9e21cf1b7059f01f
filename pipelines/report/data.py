"""The report's data: the way from photographs to sets, sets to look at, and the similarities that thresholds act on."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from pipelines.core import products
from pipelines.core.ledger import SPLITS
from pipelines.core.params import load
from pipelines.report import figures
from pipelines.report.pictures import Mark, Picture, framed, grid
from umo.images import read_image

SHEET_WIDTH = 384


def funnel(curated: Mapping) -> list[tuple[str, int, str]]:
    """The way of the data: step, how many, what became of the others.

    Args:
        curated: the counts that curate left.
    """
    images = products.images(products.INGESTED)
    found = products.people_faces()
    people = products.people()
    drawn = products.images(products.SYNTHESISED)
    return [
        ("photographs read", images.height, ""),
        ("usable", int((images["status"] == "ok").sum()), _why(images.filter(pl.col("status") != "ok"), "error")),
        ("faces measured", found.height, ""),
        ("faces of somebody", int(found["keep"].sum()), _why(found.filter(~pl.col("keep")), "reason")),
        ("people", int(people["keep"].sum()), _why(people.filter(~pl.col("keep")), "reason")),
        ("scenes synthesised", products.scenes().height, _why(drawn.filter(pl.col("status") == "rejected"), "error")),
        ("pictures considered", curated["pictures"], "photographs with faces, and scenes"),
        ("sets kept", curated["kept"], ", ".join(f"{count} {split}" for split, count in curated["by_split"].items())),
    ]


def _why(rows: pl.DataFrame, column: str) -> str:
    counts = rows[column].value_counts().sort("count", column, descending=[True, False]).iter_rows()
    return "; ".join(f"{count} {reason}" for reason, count in counts)


def set_sheets(count: int) -> dict[str, str]:
    """Per split, `count` sets as references | target with faces boxed and numbered."""
    sheets: dict[str, str] = {}
    for split in SPLITS:
        if not products.exported_files(split):
            continue
        rows = products.exported(split, ["n", "references", "target", "target_boxes"])
        # A spread over the numbers of people, the same rows every time.
        rows = sorted(rows, key=lambda row: -row["n"])[:: max(1, len(rows) // count)][:count]
        sheets[split] = grid(["references", "target"], [_set_cells(row) for row in rows], SHEET_WIDTH)
    return sheets


def _set_cells(row: Mapping) -> list[list[Picture]]:
    references = [framed(read_image(image["bytes"]), str(k + 1), k) for k, image in enumerate(row["references"])]
    boxes = [Mark(tuple(box), str(k + 1), k) for k, box in enumerate(row["target_boxes"])]
    return [references, [Picture(read_image(row["target"]["bytes"]), boxes)]]


def similarities() -> dict[str, str]:
    """Caption -> histogram of the cosines that identify's and curate's thresholds act on."""
    identification, band = load("identify").model_dump(), load("curate").model_dump()
    check = json.loads((products.PEOPLE / products.PEOPLE_CHECK).read_text())
    fitted = {
        "equal error at": check["thresholds"]["equal_error"],
        "precision .99 from": check["thresholds"]["precision_99"],
    }
    sets = products.sets()
    considered = sets["reference_cosine"].explode().drop_nulls().to_numpy()
    cross = sets["cross_cosine"].drop_nulls().to_numpy()
    return {
        "Photographs, by the network that curates": figures.histogram(
            _middles(check["histograms"]),
            {
                "one person from": identification["min_cosine"],
                "across groups from": identification["min_cosine_across"],
                **{name: cosine for name, cosine in fitted.items() if cosine is not None},
            },
            "cosine of two faces",
        ),
        "Sets, by the network that curates": figures.histogram(
            {"reference and target": considered, "two people of a target": cross},
            {"from": band["min_cosine"], "to": band["max_cosine"], "people at most": band["max_cross_cosine"]},
            "cosine",
        ),
    }


def _middles(histograms: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """What identify counted, as values in the middle of their bins."""
    edges = np.array(histograms["edges"])
    middles = (edges[1:] + edges[:-1]) / 2
    return {name: np.repeat(middles, counts) for name, counts in histograms.items() if name != "edges"}
