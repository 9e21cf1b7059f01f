"""Whether a picture does as its prompt says."""

import numpy as np
import pytest

from umo.evaluation import adherence
from umo.scenes.compositing import background
from umo.scenes.prompts import COLOURS, TEXTURES, prompt


@pytest.mark.parametrize(
    ("assignment", "lefts", "expected"),
    [
        ([0, 1], [10, 50], True),
        ([1, 0], [10, 50], False),
        ([1, 0], [50, 10], True),
        ([2, 0, 1], [50, 90, 10], True),
        ([0, 2, 1], [10, 50, 90], False),
        ([0], [10], None),
        ([0, -1], [10], None),
        ([0, 1], [10, 50, 90], None),
    ],
)
def test_order_is_that_of_the_references(assignment, lefts, expected):
    assert adherence.order_right(assignment, [(x, 0, x + 20, 20) for x in lefts]) is expected


@pytest.mark.parametrize("texture", TEXTURES)
@pytest.mark.parametrize("colour", COLOURS)
def test_the_background_is_recognised(texture, colour):
    right = 0
    for seed in range(10):
        ground = f"{texture} {colour}"
        drawn = background(ground, (64, 128), np.random.default_rng(seed)).round().astype(np.uint8)
        right += bool(adherence.background_right(drawn, prompt([0.5], ground)))
    assert right >= 9


def test_another_background_is_not_right():
    blue = np.full((64, 128, 3), COLOURS["blue"], np.uint8)
    assert adherence.background_right(blue, prompt([0.5], "plain red")) is False
    assert adherence.background_right(blue, "A photo of one person.") is None
    grey = np.full((64, 128, 3), 90, np.uint8)
    assert adherence.background_right(grey, prompt([0.5], "plain white"))
