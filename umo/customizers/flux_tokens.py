"""How FLUX sees pictures: latents packed into tokens, each with a position; UNO's references follow the picture's."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

PACK = 2  # a token is 2x2 latent pixels


def pack(latents: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h/2 * w/2, 4 C), row by row; a token's numbers run channel, row, column."""
    return F.pixel_unshuffle(latents, PACK).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `pack`, for latents of that height and width."""
    grid = tokens.transpose(1, 2).unflatten(2, (height // PACK, width // PACK))
    return F.pixel_shuffle(grid, PACK)


def diagonal_ids(grids: Sequence[tuple[int, int]]) -> Tensor:
    """Position ids (tokens, 3) of grids (rows, columns), the picture's first: each starts, in both directions, where
    those before it end."""
    ids, top, left = [], 0, 0
    for rows, columns in grids:
        y, x = torch.meshgrid(torch.arange(rows) + top, torch.arange(columns) + left, indexing="ij")
        ids.append(torch.stack([torch.zeros_like(y), y, x], dim=-1).reshape(-1, 3))
        top, left = top + rows, left + columns
    return torch.cat(ids).float()
