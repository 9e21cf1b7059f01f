"""Base models that draw given people, one adapter a family: `load` finds the family in the folder itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from umo import devices
from umo.customizers.base import Customizer, Drawing, Settings, draw
from umo.customizers.condition import Condition
from umo.errors import BadInput
from umo.guidance import CONDITIONAL, Guidance
from umo.model_index import read_index

__all__ = ["CONDITIONAL", "CUSTOMIZERS", "Condition", "Customizer", "Drawing", "Guidance", "Settings", "draw", "load"]


def _flux_uno() -> Any:
    from umo.customizers.flux_uno import FluxUno

    return FluxUno


def _flux2() -> Any:
    from umo.customizers.flux2 import Flux2

    return Flux2


def _omnigen2() -> Any:
    from umo.customizers.omnigen2.adapter import OmniGen2

    return OmniGen2


def _qwen_edit() -> Any:
    from umo.customizers.qwen_edit import QwenEdit

    return QwenEdit


# `_class_name` of model_index.json -> the adapter, imported when it is asked for: diffusers and transformers are heavy.
CUSTOMIZERS: dict[str, Callable[[], Any]] = {
    "FluxPipeline": _flux_uno,
    "Flux2KleinPipeline": _flux2,
    "Flux2Pipeline": _flux2,
    "OmniGen2Pipeline": _omnigen2,
    "QwenImageEditPlusPipeline": _qwen_edit,
}


def load(
    folder: Path,
    lora: Path | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    attention: devices.Kernel | None = None,
    encode_first: bool = False,
    rank: int | None = None,
) -> Customizer:
    """A base from a diffusers folder, frozen and ready to draw.

    Args:
        lora: a .safetensors file or the folder of one, in any naming of its family.
        dtype: of the weights; None takes bfloat16 on CUDA and float32 elsewhere.
        attention: see `umo.customizers.attention`; None leaves the choice to PyTorch, but for cuDNN's on CUDA.
        encode_first: leave the transformer where it was loaded, so that a card need not hold it beside the text
            encoders; `to` moves it.
        rank: that the LoRA must have, to be trained on.

    BadInput says what is unfit: the folder, its family, a component, a LoRA that is not whole or for another base, a
    device that is not here or has no such dtype.
    """
    index = read_index(Path(folder))
    family = index["_class_name"]
    if family not in CUSTOMIZERS:
        raise BadInput(f"{folder}: a {family} folder; umo draws with {', '.join(CUSTOMIZERS)}: give a folder of those")
    devices.prepare(device)
    dtype = dtype or devices.dtype_of(devices.precision_on(device))
    devices.check_dtype(device, dtype)
    adapter, lora = CUSTOMIZERS[family](), None if lora is None else Path(lora)
    adapter.check(Path(folder), lora, rank)
    customizer = adapter.load(Path(folder), index, dtype)
    if lora is not None:
        adapter.naming.attach(customizer.transformer, lora, base=customizer.name)
    if attention:
        from umo.customizers.attention import set_attention  # with diffusers

        set_attention(customizer.transformer, attention, customizer.name)
    return customizer.to_encode(device) if encode_first else customizer.to(device)
