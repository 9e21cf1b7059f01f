"""How the frozen weights of the network that is trained are stored: in full, or in fewer bits to save memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from umo.devices import Frozen, Optimizer
from umo.errors import BadInput

NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)  # bytes a weight: a scale for 64 of them, and one for 256 scales
REMEDY = "pip install 'umo[quantised]'"

_loading: ContextVar[Frozen] = ContextVar("frozen", default="full")


@contextmanager
def loading(weights: Frozen) -> Iterator[None]:
    """Within, transformers of all families are quantised as they load, where it is int8 or nf4.

    Raises BadInput where bitsandbytes, or a GPU for it, is missing.
    """
    if weights in ("int8", "nf4"):
        _need_bitsandbytes(f"weights {weights}", "weights: fp8 needs no package")
        if not torch.cuda.is_available():
            raise BadInput(f"weights {weights}: bitsandbytes quantises on a GPU, and there is none: choose full or fp8")
    token = _loading.set(weights)
    try:
        yield
    finally:
        _loading.reset(token)


def quantization(component: str) -> dict[str, Any]:
    """What diffusers' `from_pretrained` is told for a component that is being loaded."""
    weights = _loading.get()
    if component != "transformer" or weights not in ("int8", "nf4"):
        return {}
    from diffusers import BitsAndBytesConfig

    if weights == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    options = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16, **options)
    return {"quantization_config": config}


def cast_storage(transformer: Any, weights: Frozen) -> None:
    """fp8: each layer is cast to its own dtype while it computes; norms and what modulates them stay as they are.

    After `add_lora`: peft makes a new LoRA's numbers in the dtype of the layer that it is put on.
    """
    if weights == "fp8":
        transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=transformer.dtype)


def stored_bytes(transformer: nn.Module, weights: Frozen) -> int:
    """Bytes of all that a LoRA does not train; of fp8, after `cast_storage`."""
    linear = {id(one.weight): one for one in transformer.modules() if isinstance(one, nn.Linear)}
    total = sum(buffer.nbytes for buffer in transformer.buffers())
    for name, weight in transformer.named_parameters():
        if ".lora_" in name:
            continue
        if weights == "nf4" and id(weight) in linear:
            total += int(weight.numel() * NF4)
        elif weights == "int8" and id(weight) in linear:
            total += weight.numel() + 4 * len(weight)  # a float32 scale a row
        else:
            total += weight.nbytes
    return total


def make_optimizer(kind: Optimizer, weights: Any, **options: Any) -> torch.optim.Optimizer:
    """AdamW, or bitsandbytes' with its state in 8 bits; BadInput where that is missing."""
    if kind == "adamw":
        return torch.optim.AdamW(weights, **options)
    _need_bitsandbytes("optimizer adamw8bit", "optimizer: adamw needs no package")
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(weights, **options)


def _need_bitsandbytes(what: str, otherwise: str) -> None:
    if find_spec("bitsandbytes") is None:
        raise BadInput(f"{what}: bitsandbytes is missing: {REMEDY}, or {otherwise}")
