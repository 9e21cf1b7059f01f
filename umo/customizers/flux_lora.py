"""LoRA files for FLUX.1, in the naming of diffusers or of the original blocks, whoever wrote them (`lora.pairs`).

The original blocks hold query, key and value in one layer, and a single block's MLP beside them; the LoRA of such a
layer has one `down`, and an `up` that is cut as diffusers' layers are. The published UNO and UMO checkpoints name it
after processors (`double_blocks.N.processor.qkv_lora1.{down,up}.weight` for the picture's stream, `lora2` for the
text's, `single_blocks.N.processor.{qkv_lora,proj_lora}...`), everybody else after the layer (`img_attn.qkv`); kohya
writes all of it with underscores. UNO's qkv LoRA on a single block leaves the part of `linear1` that feeds the MLP
alone; its proj LoRA is on all of `linear2`.
"""

import re
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from umo.customizers.lora_file import Naming, Place

# Original layer -> the diffusers layers that it is split into.
DOUBLE = {
    "qkv_lora1": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "qkv_lora2": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "proj_lora1": ("attn.to_out.0",),
    "proj_lora2": ("attn.to_add_out",),
}
SINGLE = {"qkv_lora": ("attn.to_q", "attn.to_k", "attn.to_v"), "proj_lora": ("proj_out",)}
Layers = Mapping[str, tuple[str, ...]]


def _flat(layers: Layers) -> Layers:
    """With underscores for dots, as kohya writes, and with the names in diffusers beside the original ones."""
    own = {name: (name,) for name in chain.from_iterable(layers.values())}
    return {name.replace(".", "_"): parts for name, parts in {**layers, **own}.items()}


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
_DOUBLE = _flat({**_UNO_DOUBLE, **_ORIGINAL_DOUBLE})
_SINGLE = _flat({**_UNO_SINGLE, **_ORIGINAL_SINGLE})
_ENDS = _flat(_ORIGINAL_ENDS)
_BLOCK = re.compile(r"(double|single)_blocks_(\d+)_(\w+)|(single_)?transformer_blocks_(\d+)_(\w+)")
_MLP = 4  # a single block's MLP is so many times as wide as its query


def modules(doubles: int, singles: int) -> list[str]:
    """The diffusers layers a UNO LoRA is on, for so many double and single blocks."""
    double, single = (list(chain.from_iterable(layers.values())) for layers in (DOUBLE, SINGLE))
    return [f"transformer_blocks.{i}.{layer}" for i in range(doubles) for layer in double] + [
        f"single_transformer_blocks.{i}.{layer}" for i in range(singles) for layer in single
    ]


def _places(name: str) -> list[Place]:
    """See `Naming.places`; by the name with underscores for dots, as kohya writes it."""
    flat = name.replace(".", "_")
    if not (block := _BLOCK.fullmatch(flat)):
        # The original has the shift first, diffusers the scale.
        return [Place(layer, swapped=flat.startswith("final_layer_adaLN")) for layer in _ENDS.get(flat, ())]
    single, number, layer = block[1] == "single" or block[4], block[2] or block[5], block[3] or block[6]
    parent = f"{'single_' if single else ''}transformer_blocks.{int(number)}"
    parts = (_SINGLE if single else _DOUBLE).get(layer, ())
    return [Place(f"{parent}.{part}", _MLP if part == "proj_mlp" and len(parts) > 1 else 1) for part in parts]


def with_numbers(double: Layers, single: Layers, ends: Layers) -> tuple[str, ...]:
    """The original layers of double and single blocks, with `{}` for a block's number, and of both ends."""
    return (
        *(f"double_blocks.{{}}.{name}" for name in double),
        *(f"single_blocks.{{}}.{name}" for name in single),
        *ends,
    )


NAMING = Naming(
    "FLUX.1",
    _places,
    originals=with_numbers(_ORIGINAL_DOUBLE, _ORIGINAL_SINGLE, _ORIGINAL_ENDS),
    uno=with_numbers(_UNO_DOUBLE, _UNO_SINGLE, {}),
)


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
