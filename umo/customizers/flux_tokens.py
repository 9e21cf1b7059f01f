"""How FLUX sees pictures: latents packed into tokens, each with a position; UNO's references follow the picture's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

PACK = 2  # a token is 2x2 latent pixels


@dataclass
class FluxCondition:
    """See `umo.customizers.base.Condition`.

    Attributes:
        text: (B, S, D) of T5.
        pooled: (B, P) of CLIP.
        references: for each sample its references' latents, (C, h, w) each.
        guidance: (B,).
    """

    text: Tensor
    pooled: Tensor
    references: list[list[Tensor]]
    guidance: Tensor

    def __len__(self) -> int:
        return len(self.references)

    def take(self, rows: Sequence[int]) -> Self:
        picked = list(rows)
        references = [self.references[row] for row in picked]
        return type(self)(self.text[picked], self.pooled[picked], references, self.guidance[picked])

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        text, pooled, guidance = (
            torch.cat([getattr(p, name) for p in parts]) for name in ("text", "pooled", "guidance")
        )
        return cls(text, pooled, [references for part in parts for references in part.references], guidance)

    def state(self) -> dict[str, Tensor]:
        if len(self) != 1:
            raise ValueError(f"one sample is stored at a time, not {len(self)}")
        named = {"text": self.text, "pooled": self.pooled, "guidance": self.guidance}
        return named | {f"reference{k}": latents for k, latents in enumerate(self.references[0])}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        count = sum(name.startswith("reference") for name in state)
        references = [[state[f"reference{k}"] for k in range(count)]]
        return cls(state["text"], state["pooled"], references, state["guidance"])

    def guided(self, guidance: float) -> Self:
        return replace(self, guidance=torch.full_like(self.guidance, guidance))

    def groups(self) -> list[list[int]]:
        """Rows whose references have the same sizes in the same order, and so the same position ids."""
        rows: dict[tuple, list[int]] = {}
        for row, references in enumerate(self.references):
            rows.setdefault(tuple(tuple(r.shape) for r in references), []).append(row)
        return list(rows.values())


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
