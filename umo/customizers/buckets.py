"""Sizes of training pictures: each keeps about its shape, and few enough sizes are left to make batches of."""

import math
from collections.abc import Callable

from umo.customizers.base import Settings, Size, default_size


def training_size(settings: Settings, references: int, shape: Callable[[], Size]) -> Size:
    """Height and width that a training picture of a shape, with so many references, is brought to.

    `shape` is asked only where there are buckets to choose from.
    """
    if settings.only_sizes or not settings.buckets:
        return default_size(settings, references)
    height, width = shape()
    return min(settings.buckets, key=lambda size: abs(math.log(size[1] / size[0] * height / width)))


def buckets_around(side: int, step: int = 64, most: float = 3.0) -> tuple[Size, ...]:
    """Sizes of about `side` squared pixels, their sides multiples of `step`, from upright to wide.

    `most`: the longest side over the shortest.
    """
    heights = range(step, side, step)
    upright = [(round(side**2 / height / step) * step, height) for height in heights]
    upright = [size for size in upright if size[0] / size[1] <= most]
    return (*upright, (side, side), *(size[::-1] for size in reversed(upright)))
