"""The multi-identity matching reward (arXiv 2509.06818, section 3, in the form of the released code), batched."""

import numpy as np
import torch

from umo.matching import NONE, assign


def mimr(
    cosines: torch.Tensor, valid: torch.Tensor, lambda_match: float = 1.0, lambda_mismatch: float = -1.0
) -> torch.Tensor:
    """Multi-Identity Matching Reward (B,): the mean over all pairs of the weighted cosine, as published.

    `1/(MN) * sum_jk (lambda_match if k = sigma(j) else lambda_mismatch) * cosine_jk`, with sigma the maximum-weight
    matching. The published form does not reward drawing a missing person, and a pair's weight falls as 1/n^2.
    """
    weights = torch.where(assigned(cosines, valid), lambda_match, lambda_mismatch).to(cosines.dtype)
    return (weights * cosines.masked_fill(~valid, 0)).sum(dim=(1, 2)) / valid.sum(dim=(1, 2)).clamp(min=1)


def assigned(cosines: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """(B, M, N) bool: the pairs of each sample's maximum-weight matching.

    Raises:
        ValueError: a valid cosine is not finite.
    """
    found = np.zeros(tuple(cosines.shape), dtype=bool)
    for sample, real in enumerate(unpadded(cosines, valid)):
        assignment = assign(real)
        (references,) = np.nonzero(assignment != NONE)
        found[sample, references, assignment[references]] = True
    return torch.from_numpy(found).to(cosines.device)


def unpadded(cosines: torch.Tensor, valid: torch.Tensor) -> list[np.ndarray]:
    """The (M_i, N_i) cosines of each sample in float64, without gradient; where there is no face, (0, 0)."""
    numbers, real = cosines.detach().cpu().double().numpy(), valid.cpu().numpy()
    return [one[: known.any(axis=1).sum(), : known.any(axis=0).sum()] for one, known in zip(numbers, real, strict=True)]
