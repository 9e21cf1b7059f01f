"""Whether a picture does as its prompt says."""

import numpy as np
import pytest

from umo.evaluation import adherence
from umo.scenes.compositing import background
from umo.scenes.prompts import COLOURS, TEXTURES, prompt


@pytest.mark.parametrize(
    ("assignment", "lefts", "places", "expected"),
    [
        ([0, 1], [10, 50], [0, 1], True),
        ([1, 0], [10, 50], [0, 1], False),
        ([1, 0], [10, 50], [0.9, 0.2], True),
        ([1, 0], [50, 10], [0, 1], True),
        ([0, 1], [10, 10], [0, 1], False),
        ([2, 0, 1], [50, 90, 10], [0, 1, 2], True),
        ([0, 2, 1], [10, 50, 90], [0, 1, 2], False),
        ([0, 2, 1], [10, 50, 90], [0, None, 2], True),
        ([0, 2, 1], [10, 50, 90], [0, 1, 1], True),
        ([0], [10], [0], None),
        ([0, -1], [10], [0, 1], None),
        ([0, 1], [10, 50, 90], [0, 1], None),
        ([0, 1], [10, 50], [0, None], None),
        ([0, 1], [10, 50], [1, 1], None),
        ([0, 1], [10, 50], None, None),
    ],
)
def test_order_is_as_asked(assignment, lefts, places, expected):
    assert adherence.order_right(assignment, [(x, 0, x + 20, 20) for x in lefts], places) is expected


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
    for other in ("A photo of people who paint a plain red background.", "Two people in front of a red background."):
        assert adherence.background_right(blue, other) is None, other
    grey = np.full((64, 128, 3), 90, np.uint8)
    assert adherence.background_right(grey, prompt([0.5], "plain white"))
