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

import torch
from torch import Tensor, nn

from umo.customizers.lora import State
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


_DOUBLE = _flat(
    {f"processor.{name}": parts for name, parts in DOUBLE.items()}
    | {f"{stream}_attn.qkv": DOUBLE[f"qkv_lora{k}"] for k, stream in enumerate(("img", "txt"), start=1)}
    | {f"{stream}_attn.proj": DOUBLE[f"proj_lora{k}"] for k, stream in enumerate(("img", "txt"), start=1)}
    | {f"img_mlp.{k}": (f"ff.net.{k}{end}",) for k, end in ((0, ".proj"), (2, ""))}
    | {f"txt_mlp.{k}": (f"ff_context.net.{k}{end}",) for k, end in ((0, ".proj"), (2, ""))}
    | {"img_mod.lin": ("norm1.linear",), "txt_mod.lin": ("norm1_context.linear",)}
)
_SINGLE = _flat(
    {f"processor.{name}": parts for name, parts in SINGLE.items()}
    | {"linear1": (*SINGLE["qkv_lora"], "proj_mlp"), "linear2": ("proj_out",), "modulation.lin": ("norm.linear",)}
)
_ENDS = _flat(
    {"img_in": ("x_embedder",), "txt_in": ("context_embedder",), "final_layer.linear": ("proj_out",)}
    | {"final_layer.adaLN_modulation.1": ("norm_out.linear",)}
    | {
        f"{original}_in.{side}_layer": (f"time_text_embed.{embedder}_embedder.linear_{k}",)
        for original, embedder in (("time", "timestep"), ("vector", "text"), ("guidance", "guidance"))
        for k, side in enumerate(("in", "out"), start=1)
    }
)
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


NAMING = Naming("FLUX.1", _places)


def to_original(state: Mapping[str, Tensor]) -> State:
    """diffusers' naming -> original; the inverse of `NAMING.to_layers`.

    Where query, key and value have downs of their own (a LoRA trained in diffusers), theirs are stacked and the ups
    laid on the diagonal: the same function at three times the rank. All other layers are then padded with zeros to
    that rank, because UNO's loader takes one rank for all.
    """
    original: State = {}
    left = set(state)
    found = {match.groups() for key in state if (match := re.match(r"(single_)?transformer_blocks\.(\d+)", key))}
    for single, number in sorted(found, key=lambda block: (block[0] is not None, int(block[1]))):
        parent = f"{single or ''}transformer_blocks.{number}"
        block = f"{'single' if single else 'double'}_blocks.{number}.processor"
        for layer, split in (SINGLE if single else DOUBLE).items():
            pairs = [(f"{parent}.{name}.lora_A.weight", f"{parent}.{name}.lora_B.weight") for name in split]
            keys = set(chain.from_iterable(pairs))
            if not keys <= state.keys():
                continue
            left -= keys
            downs, ups = [state[a] for a, _ in pairs], [state[b] for _, b in pairs]
            shared = all(torch.equal(downs[0], down) for down in downs[1:])
            original[f"{block}.{layer}.down.weight"] = downs[0] if shared else torch.cat(downs)
            original[f"{block}.{layer}.up.weight"] = torch.cat(ups) if shared else torch.block_diag(*ups)
    if left:
        raise ValueError(f"{len(left)} layers have no place in UNO's naming ({min(left)})")
    rank = max((tensor.shape[0] for key, tensor in original.items() if ".down." in key), default=0)
    for key, tensor in original.items():
        more = (0, 0, 0, rank - tensor.shape[0]) if ".down." in key else (0, rank - tensor.shape[1])
        original[key] = nn.functional.pad(tensor, more)
    return original
