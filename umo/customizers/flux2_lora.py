"""LoRA files for FLUX.2, in the naming of diffusers or of the original blocks, whoever wrote them (`lora.pairs`).

A double block of the original holds query, key and value in one layer; the LoRA of such a layer has one `down`, and an
`up` that is cut as diffusers' layers are. A single block's layers are whole in both. What is written has diffusers'
names, which ComfyUI knows too for all layers that we train.
"""

import re
from collections.abc import Mapping
from itertools import chain

from umo.customizers.lora_file import Naming, Place

# Original layer -> the diffusers layers that it is split into.
ATTENTION = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn.proj": ("attn.to_add_out",),
}
SINGLE = {"linear1": ("attn.to_qkv_mlp_proj",), "linear2": ("attn.to_out",)}
DOUBLE = ATTENTION | {
    f"{stream}_mlp.{k}": (f"{layer}.linear_{side}",)
    for stream, layer in (("img", "ff"), ("txt", "ff_context"))
    for k, side in ((0, "in"), (2, "out"))
}
ENDS = (
    {"img_in": ("x_embedder",), "txt_in": ("context_embedder",), "final_layer.linear": ("proj_out",)}
    | {"final_layer.adaLN_modulation.1": ("norm_out.linear",)}
    | {
        f"{name}.lin": (f"{name}.linear",)
        for name in ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation")
    }
    | {
        f"{original}_in.{side}_layer": (f"time_guidance_embed.{embedder}_embedder.linear_{k}",)
        for original, embedder in (("time", "timestep"), ("guidance", "guidance"))
        for k, side in enumerate(("in", "out"), start=1)
    }
)
Layers = Mapping[str, tuple[str, ...]]


def _flat(layers: Layers) -> Layers:
    """With underscores for dots, as kohya writes, and with the names in diffusers beside the original ones."""
    own = {name: (name,) for name in chain.from_iterable(layers.values())}
    return {name.replace(".", "_"): parts for name, parts in {**layers, **own}.items()}


_DOUBLE, _SINGLE, _ENDS = _flat(DOUBLE), _flat(SINGLE), _flat(ENDS)
_BLOCK = re.compile(r"(double|single)_blocks_(\d+)_(\w+)|(single_)?transformer_blocks_(\d+)_(\w+)")


def modules(doubles: int, singles: int) -> list[str]:
    """The diffusers layers of attention, for so many double and single blocks."""
    double, single = (list(chain.from_iterable(layers.values())) for layers in (ATTENTION, SINGLE))
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
    return [Place(f"{parent}.{part}") for part in (_SINGLE if single else _DOUBLE).get(layer, ())]


NAMING = Naming("FLUX.2", _places)
