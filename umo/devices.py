"""What a device computes with: number formats, and what is switched off there once for the whole process.

torch is imported when it is asked for: commands read these names before they load it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from umo.errors import BadInput

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "bf16"]
Kernel = Literal["flash", "efficient", "math"]
Frozen = Literal["full", "fp8", "int8", "nf4"]
Optimizer = Literal["adamw", "adamw8bit"]


def dtype_of(precision: Precision) -> torch.dtype:
    """Of weights that are not trained."""
    import torch

    return torch.bfloat16 if precision == "bf16" else torch.float32


def prepare(device: torch.device | str) -> None:
    """To be called before anything runs on a device; again does no harm.

    On CUDA it takes cuDNN out of PyTorch's choice of attention kernels, for the whole process: with it the backward
    pass of heads of 128 numbers in bf16 ended in an illegal memory access on an H200 (torch 2.11). A context around the
    forward pass would not do, because recomputation under gradient checkpointing chooses again.

    Raises BadInput for a device that is not here.
    """
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA raises the latter
        raise BadInput(f"device {device}: not to be had here; choose another, such as cpu") from error
    if torch.device(device).type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)


def precision_on(device: torch.device | str, asked: Precision | None = None) -> Precision:
    """What is asked for, or bf16 on CUDA and fp32 elsewhere.

    Raises BadInput for a device that is not here, or a card without bfloat16.
    """
    import torch

    prepare(device)
    chosen: Precision = asked or ("bf16" if torch.device(device).type == "cuda" else "fp32")
    check_dtype(device, dtype_of(chosen))
    return chosen


def check_dtype(device: torch.device | str, dtype: torch.dtype) -> None:
    """Raises BadInput for bfloat16 on a card that has none, or only emulates it."""
    import torch

    if torch.device(device).type != "cuda" or dtype != torch.bfloat16:
        return
    with torch.cuda.device(device):
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            name = torch.cuda.get_device_name()
            raise BadInput(f"device {device}: {name} has no bfloat16: give --dtype fp32 (precision: fp32 in a recipe)")
