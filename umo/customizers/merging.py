"""A LoRA laid into the weights that it is on, for as long as there is no gradient: a forward then costs the base's."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn


@contextmanager
def merged(transformer: nn.Module) -> Iterator[None]:
    """Within, no layer computes its LoRA beside its weights; after it all weights are what they were, bit for bit.

    A layer's sum is rounded once to the dtype of its weights: in bfloat16 what a LoRA adds to a weight is lost where
    it is less than 1/512 of it. Costs the memory of those weights a second time. Layers whose weights are quantised or
    shared out (fp8, bitsandbytes, FSDP) keep their LoRA beside them.
    """
    layers: list[Any] = [layer for layer in transformer.modules() if isinstance(layer, LoraLayer)]
    weights = [(layer, layer.get_base_layer().weight) for layer in layers]
    kept = [(layer, weight, weight.data) for layer, weight in weights if _plain(weight.data)]
    try:
        with torch.no_grad(), torch.autocast(next(transformer.parameters()).device.type, enabled=False):
            for layer, weight, data in kept:
                weight.data = data.clone()
                layer.merge()
        yield
    finally:
        for layer, weight, data in kept:
            layer.merged_adapters.clear()
            weight.data = data


def _plain(weight: Tensor) -> bool:
    return type(weight) is Tensor and weight.is_floating_point() and weight.itemsize > 1
