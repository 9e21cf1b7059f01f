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
    numbers, real = cosines.detach().cpu().double().numpy(), valid.cpu().numpy()
    for sample in range(len(numbers)):
        rows, columns = real[sample].any(axis=1).sum(), real[sample].any(axis=0).sum()
        assignment = assign(numbers[sample, :rows, :columns])
        (references,) = np.nonzero(assignment != NONE)
        found[sample, references, assignment[references]] = True
    return torch.from_numpy(found).to(cosines.device)
