"""The README's picture: references, what the base draws of them, and what it draws after training by our reward."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipelines.core import products
from pipelines.report.panels import read_scores
from umo.evaluation.cases import read_cases
from umo.images import read_image
from umo.reporting.panels import Key, Rows, differences, likeness
from umo.reporting.pictures import fitting_height

BEFORE_AFTER = Path("docs/images/before-after.jpg")
METHODS = ("base", "ours")
HEADINGS = ("references", "before: base", "after: ours")
SHOWN = {2: 1, 3: 2}  # number of people -> cases
COLUMN, GAP, SPACE, LETTERS = 560, 8, 40, 26  # pixels; twice those of the page


def write_picture(path: Path = BEFORE_AFTER) -> Path:
    """Draw the cases whose likeness rose by the median; returns the file. BadInput without scores of base and ours."""
    scores = {method: read_scores(method) for method in METHODS}
    cases = {case.case_id: case for case in read_cases(products.CASES / products.CASES_FILE, drawn=False)}
    rows = []
    for key in typical(scores):
        drawn = [[read_image(products.GENERATED / method / scores[method][key]["image"])] for method in METHODS]
        references = [read_image(products.CASES / photos[0]) for photos in cases[key[0]].references]
        rows.append([references, *drawn])
    path.parent.mkdir(parents=True, exist_ok=True)
    _sheet(rows).save(path, quality=88)
    return path


def typical(scores: Mapping[str, Rows]) -> list[Key]:
    """For each number of people that is shown, the pictures whose gain in likeness is nearest the middle of all."""
    before, after = (scores[method] for method in METHODS)
    gains = differences(likeness(after), likeness(before))
    found: list[Key] = []
    for n, count in SHOWN.items():
        keys = sorted((key for key in gains if after[key]["n"] == n), key=lambda key: (gains[key], key))
        start = max(0, len(keys) - count) // 2
        found += keys[start : start + count]
    return found


def _sheet(rows: Sequence[Sequence[Sequence[np.ndarray]]]) -> Image.Image:
    """Columns of one width under their headings; all pictures of a row have one height."""
    heights = [round(min(fitting_height(cell, COLUMN, GAP) for cell in row)) for row in rows]
    width = len(HEADINGS) * COLUMN + (len(HEADINGS) - 1) * SPACE
    sheet = Image.new("RGB", (width, LETTERS + GAP + sum(heights) + GAP * len(rows)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(LETTERS)
    for k, heading in enumerate(HEADINGS):
        pen.text((k * (COLUMN + SPACE), 0), heading, "#333333", font)
    y = LETTERS + 2 * GAP
    for row, height in zip(rows, heights, strict=True):
        for k, cell in enumerate(row):
            x = k * (COLUMN + SPACE)
            for picture in cell:
                size = (round(height * picture.shape[1] / picture.shape[0]), height)
                sheet.paste(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC), (x, y))
                x += size[0] + GAP
        y += height + GAP
    return sheet
