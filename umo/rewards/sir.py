"""The single identity reward (arXiv 2509.06818, section 3), batched."""

import torch


def sir(cosines: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Single Identity Reward (B,) in [-1, 1]: the cosine to the reference.

    The paper defines it for one reference and one face. For several: each reference takes its most similar drawn face
    (two may take the same one, which MIMR was made to forbid), and the reward is the mean over the references.
    """
    references = valid.any(dim=2)
    if not references.any():  # no face in the whole batch: amax refuses an empty dimension; * 0 keeps the graph
        return cosines.sum(dim=(1, 2)) * 0
    best = cosines.masked_fill(~valid, -torch.inf).amax(dim=2).masked_fill(~references, 0)
    return best.sum(dim=1) / references.sum(dim=1).clamp(min=1)
