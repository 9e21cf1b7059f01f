"""What a reward could ruin, against formulas worked out by hand."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from umo import records
from umo.evaluation.cases import Case
from umo.evaluation.metrics import SIDE_EFFECTS
from umo.evaluation.side_effects import ROUNDING, sharpness_error, side_effects, summarise, varieties, variety
from umo.images import encode_png
from umo.scenes.prompts import COLOURS, prompt


@pytest.fixture
def noise() -> np.ndarray:
    """(64, 64, 3) of even numbers around 128: half of its contrast is a picture too."""
    grey = np.random.default_rng(0).integers(-60, 61, (64, 64, 1)) * 2 + 128
    return grey.repeat(3, axis=2).astype(np.uint8)


def test_half_the_contrast_is_a_quarter_of_the_sharpness(noise):
    half = ((noise.astype(int) - 128) // 2 + 128).astype(np.uint8)
    assert sharpness_error(noise, noise) == 0
    assert sharpness_error(half, noise) == pytest.approx(2, abs=1e-3)
    assert sharpness_error(noise, half) == pytest.approx(2, abs=1e-3)


def test_the_target_is_cut_to_what_is_drawn(noise):
    flat = np.full((64, 20, 3), 128, np.uint8)
    assert sharpness_error(noise, np.concatenate([flat, noise, flat], axis=1)) == 0


def test_a_picture_of_nothing_has_a_finite_error(noise):
    """And a picture that differs from it by its rounding alone is as sharp as it."""
    flat = np.full((64, 64, 3), 128, np.uint8)
    grey = noise[..., 0].astype(float) / 255
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    expected = math.log2((around - 4 * grey[1:-1, 1:-1]).var() / ROUNDING)
    assert sharpness_error(flat, noise) == pytest.approx(expected, rel=0.01)
    ramp = np.linspace(100, 140, 64 * 64).reshape(64, 64, 1).repeat(3, axis=2).round().astype(np.uint8)
    assert sharpness_error(ramp, flat) < 1


def test_variety_is_the_mean_over_pairs_of_the_root_mean_square():
    flat = [np.full((4, 6, 3), value, np.uint8) for value in (0, 51, 255)]
    assert variety(flat) == pytest.approx((0.2 + 1.0 + 0.8) / 3)
    half = flat[0].copy()
    half[:2] = 255
    assert variety([flat[0], half]) == pytest.approx(math.sqrt(0.5))
    assert variety(flat[:1]) is None


def test_varieties_leave_out_what_cannot_be_read(tmp_path):
    for name, value in (("a", 0), ("b", 255)):
        Image.new("L", (32, 32), value).save(tmp_path / f"{name}.png")
    cases = [
        Case("1", "", (("r",),), ("a.png", "gone.png", "b.png"), None, None),
        Case("2", "", (("r",),), ("a.png", "gone.png"), None, None),
    ]
    assert varieties(cases, tmp_path) == {"1": 1.0, "2": None}


@pytest.fixture
def rows(tmp_path: Path, noise: np.ndarray) -> list[dict]:
    """Four cases of two people before red: right; in the wrong order before blue; unreadable; with a bad reference."""
    for name, colour in (("right", "red"), ("wrong", "blue")):
        picture = noise.copy()
        picture[:8] = COLOURS[colour]
        (tmp_path / f"{name}.png").write_bytes(encode_png(picture))
    boxes = [[0, 0, 9, 9], [20, 0, 29, 9]]
    drawn = {
        "1": ("right", {"n_faces": 2, "boxes": boxes, "assignment": [0, 1]}),
        "2": ("wrong", {"n_faces": 2, "boxes": boxes, "assignment": [1, 0]}),
        "3": ("gone", {"n_faces": 0, "boxes": [], "assignment": [-1, -1]}),
        "4": ("right", {"n_faces": None, "boxes": None, "assignment": None}),
    }
    target = {"1": "right.png", "2": None, "3": "right.png", "4": "gone.png"}
    text = prompt([0.2, 0.8], "plain red")
    cases = [
        Case(case_id, text, (("a",), ("b",)), (f"{picture}.png",), target[case_id], None)
        for case_id, (picture, _) in drawn.items()
    ]
    scores = [
        {"case_id": case_id, "seed": 0, "n": 2, "people": ["ann", "bob"], "image": f"{picture}.png", **found}
        for case_id, (picture, found) in drawn.items()
    ]
    return side_effects(cases, tmp_path, scores, {"1": 0.5, "3": 0.25}, {"2": 0.125, "3": None})


def test_every_case_has_a_row(rows, tmp_path):
    columns = {name: [row[name] for row in rows] for name in SIDE_EFFECTS}
    assert columns == {
        "people_right": [True, True, False, None],
        "order_right": [True, False, None, None],
        "background_right": [True, False, False, True],
        "sharpness_error": [0.0, None, None, None],
        "diffusion_loss": [0.5, None, 0.25, None],
        "variety": [None, 0.125, None, None],
    }
    records.write(tmp_path / "table.parquet", rows, records.SIDE_EFFECTS)
    assert records.read(tmp_path / "table.parquet", records.SIDE_EFFECTS).to_pylist() == rows


def test_order_is_judged_against_what_the_case_asks(tmp_path):
    case = Case("1", "Two people", (("a",), ("b",)), ("gone.png",), None, None, places=(2, 1))
    found = {"n_faces": 2, "boxes": [[0, 0, 9, 9], [20, 0, 29, 9]], "assignment": [1, 0]}
    row = {"case_id": "1", "seed": 0, "n": 2, "people": None, "image": "gone.png", **found}
    said = [side_effects([one], tmp_path, [row], {}, {})[0] for one in (case, replace(case, places=None))]
    assert [one["order_right"] for one in said] == [True, None]


def test_the_summary_is_over_the_cases_that_have_a_value(rows):
    found = summarise(rows)
    assert (found["people_right"].mean, found["people_right"].n) == (pytest.approx(2 / 3), 3)
    assert (found["order_right"].mean, found["order_right"].n) == (0.5, 2)
    assert (found["diffusion_loss"].mean, found["diffusion_loss"].n) == (0.375, 2)
    assert found["people_right"].low is None, "all cases show the same people: one group, no interval"
