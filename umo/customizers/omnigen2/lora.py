"""LoRA files for OmniGen2: diffusers', ai-toolkit's and ComfyUI's names of its layers differ in a prefix only.

UMO's released one has none, and the adapter's name behind a half: `layers.0.attn.to_q.lora_A.default.weight`. That is
what is written; UMO's code loads it so.
"""

import re
from itertools import chain, product

from umo.customizers.lora_file import Naming, Place

ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
REFINERS = ("context_refiner", "ref_image_refiner", "noise_refiner")
_LAYERS = (*ATTENTION, *(f"feed_forward.linear_{k}" for k in (1, 2, 3)), "norm1.linear")
_ENDS = (
    *("x_embedder", "ref_image_patch_embedder", "time_caption_embed.caption_embedder.1"),
    *(f"time_caption_embed.timestep_embedder.linear_{k}" for k in (1, 2)),
    *(f"norm_out.linear_{k}" for k in (1, 2)),
)
_BLOCK = re.compile(rf"({'|'.join(REFINERS)}|layers)_(\d+)_(\w+)")


def modules(refiners: int, layers: int) -> list[str]:
    """The layers that UMO's LoRA is on, for so many blocks in each refiner and after them."""
    blocks = chain(product(REFINERS, range(refiners)), product(["layers"], range(layers)))
    return [f"{stack}.{number}.{layer}" for stack, number in blocks for layer in ATTENTION]


def _places(name: str) -> list[Place]:
    """See `Naming.places`; by the name with underscores for dots, as kohya writes it."""
    flat = name.replace(".", "_")
    if block := _BLOCK.fullmatch(flat):
        parent = f"{block[1]}.{int(block[2])}."
        return [Place(parent + layer) for layer in _LAYERS if layer.replace(".", "_") == block[3]]
    return [Place(layer) for layer in _ENDS if layer.replace(".", "_") == flat]


NAMING = Naming("OmniGen2", _places, prefix="", suffix=".default")
