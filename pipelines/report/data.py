"""The report's data: the way from photographs to sets, sets to look at, and the similarities that thresholds act on."""

import json
from collections.abc import Mapping

import numpy as np
import polars as pl

from pipelines.core import products
from pipelines.core.ledger import SPLITS
from pipelines.core.params import load
from pipelines.report import plots
from umo.images import read_image
from umo.reporting import figures
from umo.reporting.pictures import Mark, Picture, framed, grid

SHEET_WIDTH = 384


def funnel(curated: Mapping) -> list[tuple[str, int, str]]:
    """The way of the data: step, how many, what became of the others.

    Args:
        curated: the counts that curate left.
    """
    images, drawn = products.images(products.INGESTED), products.images(products.SYNTHESISED)
    found, people = products.people_faces(), products.people()
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
        sets = products.exported(split, ["references", "target", "target_boxes"])
        # A spread over the numbers of people, the same rows every time.
        ns = sets.table("n")["n"].to_pylist()
        shown = sorted(range(len(ns)), key=lambda k: -ns[k])[:: max(1, len(ns) // count)][:count]
        cells = []
        for row in map(sets.__getitem__, shown):
            references = [framed(read_image(one["bytes"]), str(k + 1), k) for k, one in enumerate(row["references"])]
            boxes = [Mark(tuple(box), str(k + 1), k) for k, box in enumerate(row["target_boxes"])]
            cells.append([references, [Picture(read_image(row["target"]["bytes"]), boxes)]])
        sheets[split] = grid(["references", "target"], cells, SHEET_WIDTH)
    return sheets


def similarities() -> dict[str, str]:
    """Caption -> histogram of the cosines that identify's and curate's thresholds act on."""
    identification, band = load("identify").model_dump(), load("curate").model_dump()
    check = json.loads((products.PEOPLE / products.PEOPLE_CHECK).read_text())
    fitted = check["thresholds"]
    marked = {
        "one person from": identification["min_cosine"],
        "across groups from": identification["min_cosine_across"],
        "equal error at": fitted["equal_error"],
        "precision .99 from": fitted["precision_99"],
    }
    # What identify counted, as values in the middle of their bins.
    edges = np.array(check["histograms"].pop("edges"))
    counted = {name: np.repeat((edges[1:] + edges[:-1]) / 2, counts) for name, counts in check["histograms"].items()}
    return {
        "Photographs, by the network that curates": figures.histogram(
            counted, {name: cosine for name, cosine in marked.items() if cosine is not None}, "cosine of two faces"
        ),
        "Sets, by the network that curates": figures.histogram(
            plots.cosines(),
            {"from": band["min_cosine"], "to": band["max_cosine"], "people at most": band["max_cross_cosine"]},
            "cosine",
        ),
    }
