"""LoRA files for Qwen-Image and its editions, whoever wrote them (`lora.pairs`).

All writers have diffusers' layers: with its prefix, ComfyUI's and ai-toolkit's or none (DiffSynth, Lightning), or with
underscores for dots (musubi, kohya). diffusers' form, which is written, ComfyUI takes as it is.
"""

import re

from umo.customizers.lora_file import Naming, Place

ATTENTION = tuple(
    f"attn.{layer}"
    for layer in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
)
_MLP = tuple(f"{stream}_{layer}" for stream in ("img", "txt") for layer in ("mlp.net.0.proj", "mlp.net.2", "mod.1"))
_TIME = tuple(f"time_text_embed.timestep_embedder.linear_{k}" for k in (1, 2))
# By their names with underscores for dots, as kohya writes them.
_INSIDE = {name.replace(".", "_"): name for name in (*ATTENTION, *_MLP)}
_OUTSIDE = {name.replace(".", "_"): name for name in ("img_in", "txt_in", "proj_out", "norm_out.linear", *_TIME)}
_BLOCK = re.compile(r"transformer_blocks_(\d+)_(\w+)")


def _places(name: str) -> list[Place]:
    """See `Naming.places`."""
    flat = name.replace(".", "_")
    if block := _BLOCK.fullmatch(flat):
        layer = _INSIDE.get(block[2])
        return [Place(f"transformer_blocks.{int(block[1])}.{layer}")] if layer else []
    return [Place(_OUTSIDE[flat])] if flat in _OUTSIDE else []


NAMING = Naming("Qwen-Image", _places)
