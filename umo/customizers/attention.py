"""Which kernel of attention a transformer uses, by diffusers' dispatcher."""

from typing import Any

import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry

from umo.devices import Kernel
from umo.errors import BadInput


def set_attention(transformer: Any, kernel: Kernel, base: str) -> None:
    """Let a transformer's attention use one of PyTorch's kernels only, instead of its choice at every call.

    `flash` takes neither masks nor, on CUDA, float32; `efficient` takes both; `math` is slow and takes everything.

    Raises BadInput for a transformer that does not attend through diffusers; `base` is its name, for the message.
    """
    if not hasattr(transformer, "set_attention_backend"):
        raise BadInput(f"attention {kernel}: {base} leaves the choice to PyTorch; leave `attention` out")
    transformer.set_attention_backend(f"_native_{kernel}")


def attention() -> dict[str, Any]:
    """What attends in this process, for its report: diffusers' kernel, and whether cuDNN is among PyTorch's."""
    backend, _ = _AttentionBackendRegistry.get_active_backend()
    return {"kernel": backend.value.removeprefix("_native_"), "cudnn": torch.backends.cuda.cudnn_sdp_enabled()}
