"""Reference pictures of any size and kind -> tensors at the size a base takes them."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from umo.customizers.base import Reference, Size
from umo.errors import BadInput
from umo.images import filled


def to_tensor(reference: Reference) -> Tensor:
    """(H, W, 3) uint8 array or (3, H, W) float tensor in [-1, 1] -> (3, H, W) float32 in [-1, 1]; else BadInput."""
    if isinstance(reference, np.ndarray) and reference.dtype == np.uint8:
        if reference.ndim == 3 and reference.shape[2] == 3:
            return torch.from_numpy(np.array(reference)).permute(2, 0, 1).float() / 127.5 - 1
    elif isinstance(reference, Tensor) and reference.is_floating_point():
        outside = reference.numel() and float(reference.detach().abs().max()) > 1.01
        if reference.ndim == 3 and reference.shape[0] == 3 and not outside:
            return reference.float()
    found = getattr(reference, "shape", type(reference).__name__)
    raise BadInput(f"reference {found}: give (H, W, 3) uint8 arrays or (3, H, W) float tensors in [-1, 1]")


def fit(reference: Tensor, longest: int, multiple: int) -> Tensor:
    """Scale the longest side to `longest` pixels, then cut both in the middle to multiples of a token's (as UNO does).

    (3, H, W) -> (3, h, w); the reference itself where it fits already. One so long and thin that nothing is left of the
    shorter side raises BadInput.
    """
    height, width = reference.shape[1:]
    scale = longest / max(height, width)
    if scale != 1:
        # int, not round: UNO's own preprocessing truncates.
        size = (longest, int(height * scale)) if width >= height else (int(width * scale), longest)
        reference = _resize(reference, size) if min(size) > 0 else reference[:, :0]
    if min(reference.shape[1:]) < multiple:
        raise too_thin(height, width)
    return cut(reference, multiple)


def shrunk(reference: Tensor, area: int, longest: int, multiple: int) -> Tensor:
    """Scale down to at most `area` pixels and a longest side, then round both sides down to multiples of a token's.

    (3, H, W) -> (3, h, w), by Lanczos in 8 bits (as OmniGen2 does); the reference itself where it fits already. One so
    long and thin that nothing is left of the shorter side raises BadInput.
    """
    height, width = reference.shape[1:]
    scale = min(1.0, (area / (height * width)) ** 0.5, longest / max(height, width))
    rows, columns = (int(side * scale) // multiple * multiple for side in (height, width))
    if not rows or not columns:
        raise too_thin(height, width)
    if (rows, columns) == (height, width):
        return reference
    return to_tensor(np.asarray(scaled_in_8_bits(reference, (columns, rows)))).to(reference.device)


def cut(reference: Tensor, multiple: int) -> Tensor:
    """The middle of (3, H, W), its sides rounded down to multiples."""
    top, left = (side % multiple // 2 for side in reference.shape[1:])
    rows, columns = (side // multiple * multiple for side in reference.shape[1:])
    return reference[:, top : top + rows, left : left + columns]


def scaled_in_8_bits(reference: Tensor, size: tuple[int, int]) -> Image.Image:
    """(3, H, W) in [-1, 1] at a size (width, height), by Lanczos as PIL does it for pictures; off the graph."""
    pixels = ((reference.detach() + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)


def too_thin(height: int, width: int) -> BadInput:
    return BadInput(f"reference {width}x{height} px is too long and thin: cut it to the face")


def fill(picture: np.ndarray, size: Size) -> Tensor:
    """A target (H, W, 3) uint8 at a size that a base draws (`umo.images.filled`): (3, height, width) float32."""
    return to_tensor(filled(picture, size))


def _resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(3, H, W) -> (3, height, width) for a size (width, height), by Lanczos; off the graph."""
    channels = [Image.fromarray(channel) for channel in image.detach().cpu().numpy()]
    resized = [np.asarray(channel.resize(size, Image.Resampling.LANCZOS)) for channel in channels]
    return torch.from_numpy(np.stack(resized)).to(image.device).clamp(-1, 1)
