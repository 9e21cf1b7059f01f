"""LoRA files for FLUX.2, in the naming of diffusers or of the original blocks, whoever wrote them (`lora.pairs`).

Of the original only the double blocks' query, key and value are one layer. What is written has diffusers' names, which
ComfyUI knows too for all layers that we train.
"""

from umo.customizers.flux_blocks import Blocks
from umo.customizers.lora_file import Naming

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
ATTENTION_BLOCKS, BLOCKS = Blocks(ATTENTION, SINGLE, {}), Blocks(DOUBLE, SINGLE, ENDS)
NAMING = Naming("FLUX.2", BLOCKS.places, originals=BLOCKS.numbered())
