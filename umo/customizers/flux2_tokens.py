"""How FLUX.2 sees pictures: references cut to tokens, and positions in four dimensions (time, row, column, text)."""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from umo.customizers.references import cut, scaled_in_8_bits, to_tensor, too_thin
from umo.errors import BadInput

MIN_SIDE, MAX_RATIO = 64, 8  # of a reference
SPACING = 10  # of the references in time


def fit(reference: Tensor, area: int, multiple: int) -> Tensor:
    """Scale a reference to `area` pixels if it has more, then cut both sides in the middle to multiples of a token's.

    As diffusers' Flux2ImageProcessor does, in 8 bits: (3, H, W) -> (3, h, w), never enlarged. Raises BadInput where it
    is smaller, or longer and thinner, than FLUX.2 takes it.
    """
    height, width = reference.shape[1:]
    if max(height, width) > MAX_RATIO * min(height, width):
        raise too_thin(height, width)
    if min(height, width) < MIN_SIDE:
        raise BadInput(f"reference {width}x{height} px is too small: both sides need at least {MIN_SIDE} px")
    if height * width > area:
        scale = math.sqrt(area / (height * width))
        image = scaled_in_8_bits(reference, (int(width * scale), int(height * scale)))
        reference = to_tensor(np.asarray(image)).to(reference.device)
    return cut(reference, multiple)


def picture_ids(grids: Sequence[tuple[int, int]]) -> Tensor:
    """Positions (tokens, 4) of grids (rows, columns), the picture's first, each reference at a time of its own."""
    return torch.cat(
        [
            torch.cartesian_prod(
                torch.tensor([SPACING * k]), torch.arange(rows), torch.arange(columns), torch.arange(1)
            )
            for k, (rows, columns) in enumerate(grids)
        ]
    )


def text_ids(length: int) -> Tensor:
    """Positions (length, 4) of a text's tokens."""
    return F.pad(torch.arange(length)[:, None], (3, 0))
