"""A cell's pictures: drawn and judged as the stages draw and judge, and what is kept of them."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines.ablate.spaces import run_stage, space
from pipelines.cases import stage as cases_stage
from pipelines.core import products
from pipelines.core.cells import CELL_STRIP
from pipelines.evaluate import stage as evaluate_stage
from pipelines.generate import stage as generate_stage
from umo import records
from umo.evaluation import metrics
from umo.evaluation.cases import Case, read_cases
from umo.files import replacing
from umo.images import read_image

LEFT_OUT = ("image", "cosines", "assignment", "boxes", "target_cosines")  # of records.SCORES: large, or of no use alone
SHOWN = 2  # cases of each number of people from two on
HEIGHT, GAP = 64, 4  # pixels of the strip
DIGITS = 4


def judge(params: Mapping[str, Any], method: str, lora: Path | None, folder: Path) -> dict[str, Any]:
    """Draw the cases of these params and judge the pictures; a LoRA lies in a folder with its training.json.

    Writes scores.parquet, side_effects.parquet and strip.jpg to `folder`.

    Returns:
        `judge`, `cases`, `images`, `tags` ({tag: case_ids}), and each metric and side effect as an estimate.
    """
    folder = folder.resolve()
    with space(params):
        if lora:
            with replacing(products.TRAINED / method) as temporary:
                shutil.copytree(lora, temporary)
        run_stage(cases_stage)
        run_stage(generate_stage, method)
        run_stage(evaluate_stage, method)
        judged, drawn = products.EVALUATED / method, products.GENERATED / method
        scores = records.read(judged / products.SCORES_TABLE, records.SCORES).to_pylist()
        rows = [row | dict.fromkeys(LEFT_OUT) for row in scores]
        records.write(folder / products.SCORES_TABLE, rows, records.SCORES)
        shutil.copy2(judged / products.SIDE_EFFECTS_TABLE, folder)
        found = json.loads((judged / products.METRICS).read_text())
        effects = json.loads((judged / products.SIDE_EFFECTS).read_text())
        cases = read_cases(drawn / products.CASES_FILE)
        _strip(cases, drawn).save(folder / CELL_STRIP, quality=85)
    tags = sorted({tag for case in cases for tag in case.tags or ()})
    estimates = {name: found[name] for name in metrics.METRICS} | effects
    return {
        **{key: found[key] for key in ("judge", "cases", "images")},
        "tags": {tag: [case.case_id for case in cases if tag in (case.tags or ())] for tag in tags},
        **{name: rounded(estimate) for name, estimate in estimates.items()},
    }


def rounded(estimate: Mapping[str, Any]) -> dict[str, Any]:
    return {key: round(value, DIGITS) if isinstance(value, float) else value for key, value in estimate.items()}


def _strip(cases: Sequence[Case], root: Path) -> Image.Image:
    """Some cases side by side, the same ones for every cell: the references above what was drawn."""
    columns = [list(_column(case, root)) for case in _shown(cases)]
    width = sum(max(_width(row) for row in column) + GAP for column in columns) - GAP
    strip, x = Image.new("RGB", (width, 2 * HEIGHT + GAP), "white"), 0
    for column in columns:
        for line, row in enumerate(column):
            left = x
            for picture in row:
                strip.paste(picture, (left, line * (HEIGHT + GAP)))
                left += picture.width + GAP
        x += max(_width(row) for row in column) + GAP
    return strip


def _shown(cases: Sequence[Case]) -> list[Case]:
    """The first of each number of people from two on (of one, where there are no others), those in open order first."""
    several = [case for case in cases if len(case.references) > 1] or list(cases)
    ordered = sorted(several, key=lambda case: ("open" not in (case.tags or ()), case.case_id))
    ns = sorted({len(case.references) for case in several})
    return [case for n in ns for case in [one for one in ordered if len(one.references) == n][:SHOWN]]


def _column(case: Case, root: Path) -> Iterator[list[Image.Image]]:
    """Rows of pictures of one height."""
    for paths in ([photos[0] for photos in case.references], case.images[:1]):
        yield [_scaled(read_image(root / path)) for path in paths]


def _scaled(picture: np.ndarray) -> Image.Image:
    size = (round(HEIGHT * picture.shape[1] / picture.shape[0]), HEIGHT)
    return Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)


def _width(row: Sequence[Image.Image]) -> int:
    return sum(picture.width + GAP for picture in row) - GAP
