"""LoRA files for FLUX.1, in the naming of diffusers or of the original blocks, whoever wrote them (`lora.pairs`).

The original blocks hold query, key and value in one layer, and a single block's MLP beside them. The published UNO and
UMO checkpoints name it after processors (`double_blocks.N.processor.qkv_lora1.{down,up}.weight` for the picture's
stream, `lora2` for the text's, `single_blocks.N.processor.{qkv_lora,proj_lora}...`), everybody else after the layer
(`img_attn.qkv`); kohya writes all of it with underscores. UNO's qkv LoRA on a single block leaves the part of `linear1`
that feeds the MLP alone; its proj LoRA is on all of `linear2`.
"""

from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from umo.customizers.flux_blocks import Blocks
from umo.customizers.lora_file import Naming

# Original layer -> the diffusers layers that it is split into.
DOUBLE = {
    "qkv_lora1": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "qkv_lora2": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "proj_lora1": ("attn.to_out.0",),
    "proj_lora2": ("attn.to_add_out",),
}
SINGLE = {"qkv_lora": ("attn.to_q", "attn.to_k", "attn.to_v"), "proj_lora": ("proj_out",)}

_UNO_DOUBLE = {f"processor.{name}": parts for name, parts in DOUBLE.items()}
_UNO_SINGLE = {f"processor.{name}": parts for name, parts in SINGLE.items()}
_ORIGINAL_DOUBLE = (
    {f"{stream}_attn.qkv": DOUBLE[f"qkv_lora{k}"] for k, stream in enumerate(("img", "txt"), start=1)}
    | {f"{stream}_attn.proj": DOUBLE[f"proj_lora{k}"] for k, stream in enumerate(("img", "txt"), start=1)}
    | {f"img_mlp.{k}": (f"ff.net.{k}{end}",) for k, end in ((0, ".proj"), (2, ""))}
    | {f"txt_mlp.{k}": (f"ff_context.net.{k}{end}",) for k, end in ((0, ".proj"), (2, ""))}
    | {"img_mod.lin": ("norm1.linear",), "txt_mod.lin": ("norm1_context.linear",)}
)
_ORIGINAL_SINGLE = {
    "linear1": (*SINGLE["qkv_lora"], "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
}
_ORIGINAL_ENDS = (
    {"img_in": ("x_embedder",), "txt_in": ("context_embedder",), "final_layer.linear": ("proj_out",)}
    | {"final_layer.adaLN_modulation.1": ("norm_out.linear",)}
    | {
        f"{original}_in.{side}_layer": (f"time_text_embed.{embedder}_embedder.linear_{k}",)
        for original, embedder in (("time", "timestep"), ("vector", "text"), ("guidance", "guidance"))
        for k, side in enumerate(("in", "out"), start=1)
    }
)
UNO = Blocks(DOUBLE, SINGLE, {})
_WRITTEN_BY_UNO = Blocks(_UNO_DOUBLE, _UNO_SINGLE, {})
_ORIGINAL = Blocks(_ORIGINAL_DOUBLE, _ORIGINAL_SINGLE, _ORIGINAL_ENDS)
_ALL = Blocks({**_UNO_DOUBLE, **_ORIGINAL_DOUBLE}, {**_UNO_SINGLE, **_ORIGINAL_SINGLE}, _ORIGINAL_ENDS)

NAMING = Naming("FLUX.1", _ALL.places, originals=_ORIGINAL.numbered(), uno=_WRITTEN_BY_UNO.numbered())


def tie(transformer: nn.Module) -> None:
    """Let query, key and value of a stream share one down, as in UNO's fused layers: one weight, trained as one.

    A LoRA that was trained with downs of their own keeps them. A new one, all of whose ups are 0, has the query's.
    """
    for module in transformer.modules():
        for names in (DOUBLE["qkv_lora1"], DOUBLE["qkv_lora2"]):
            layers: list[Any] = [getattr(module, name.removeprefix("attn."), None) for name in names]
            if not all(isinstance(layer, LoraLayer) for layer in layers):
                continue
            first, *others = [layer.lora_A["default"] for layer in layers]
            new = not any(layer.lora_B["default"].weight.any() for layer in layers)
            if new or all(torch.equal(first.weight, down.weight) for down in others):
                for down in others:
                    down.weight = first.weight
