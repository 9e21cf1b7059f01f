"""The two forms a picture comes in, and unit vectors. Nothing here imports torch: arrays need none."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeGuard

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


def is_tensor(images: Sequence[np.ndarray] | Tensor) -> TypeGuard[Tensor]:
    """Whether the pictures are one tensor (then torch is imported already)."""
    return "torch" in sys.modules and isinstance(images, sys.modules["torch"].Tensor)


def to_uint8(images: Tensor) -> np.ndarray:
    """(B, 3, H, W) in [-1, 1] -> (B, H, W, 3) uint8, without gradient."""
    levels = ((images.detach().float() + 1) * 127.5).round().clamp(0, 255)
    return np.ascontiguousarray(levels.byte().permute(0, 2, 3, 1).cpu().numpy())


def unit(vectors: np.ndarray) -> np.ndarray:
    """(n, d), each of length 1."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
