"""LoRA files for FLUX.1, in the naming of diffusers or of the original blocks, whoever wrote them (`lora.pairs`).

The original blocks hold query, key and value in one layer, and a single block's MLP beside them; the LoRA of such a
layer has one `down`, and an `up` that is cut as diffusers' layers are. The published UNO and UMO checkpoints name it
after processors (`double_blocks.N.processor.qkv_lora1.{down,up}.weight` for the picture's stream, `lora2` for the
text's, `single_blocks.N.processor.{qkv_lora,proj_lora}...`), everybody else after the layer (`img_attn.qkv`); kohya
writes all of it with underscores. UNO's qkv LoRA on a single block leaves the part of `linear1` that feeds the MLP
alone; its proj LoRA is on all of `linear2`.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor, nn

from umo.customizers import lora
from umo.customizers.lora import State
from umo.errors import BadInput
from umo.files import replacing

PREFIX = "transformer."
FILE = "pytorch_lora_weights.safetensors"
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


def to_diffusers(given: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> State:
    """Any naming -> diffusers' without a prefix (`transformer_blocks.0.attn.to_q.lora_A.weight`, ...), alpha = rank.

    Raises ValueError as `lora.pairs` does, and for a layer that FLUX.1 does not have or that is given twice.
    """
    state: State = {}
    source: dict[str, str] = {}
    left = []
    for name, (key, down, up) in lora.pairs(given, metadata or {}).items():
        if not (layers := _layers(name.replace(".", "_"))):
            left.append(key)
            continue
        shares = [_MLP if layer.endswith("proj_mlp") and len(layers) > 1 else 1 for layer in layers]
        unit, rest = divmod(len(up), sum(shares))
        if rest:
            raise ValueError(f"{key}: its up has {len(up)} rows, which are not cut into {len(layers)} layers")
        if layers == ["norm_out.linear"] and name.startswith("final_layer"):
            up = torch.cat(up.chunk(2)[::-1])  # the original has the shift first, diffusers the scale
        for layer, part in zip(layers, up.split([unit * share for share in shares]), strict=True):
            if layer in source:
                raise ValueError(f"{source[layer]} and {key} are for the same layer ({layer})")
            source[layer] = key
            state[f"{layer}.lora_A.weight"], state[f"{layer}.lora_B.weight"] = down, part
    if left:
        raise ValueError(f"{len(left)} keys are not of FLUX.1's naming ({left[0]})")
    return state


def _layers(name: str) -> list[str]:
    """The layers in diffusers of a name with underscores for dots; none where FLUX.1 has no such layer."""
    if not (block := _BLOCK.fullmatch(name)):
        return list(_ENDS.get(name, ()))
    single, number, layer = block[1] == "single" or block[4], block[2] or block[5], block[3] or block[6]
    parent = f"{'single_' if single else ''}transformer_blocks.{int(number)}"
    return [f"{parent}.{part}" for part in (_SINGLE if single else _DOUBLE).get(layer, ())]


def to_original(state: Mapping[str, Tensor]) -> State:
    """diffusers' naming -> original; the inverse of `to_diffusers`.

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


def read(path: Path) -> State:
    """A LoRA in any naming, from a file or the folder of one -> diffusers' naming without a prefix, alpha = rank.

    Raises BadInput where it is missing, damaged, not finite, not a plain LoRA or not whole; names what.
    """
    return _read(_file(path))[0]


def _read(path: Path) -> tuple[State, dict[str, str]]:
    given, metadata = lora.load(path)
    try:
        return to_diffusers(given, metadata), metadata
    except ValueError as error:
        raise BadInput(f"{path}: {error}; give a whole, plain LoRA for FLUX.1's transformer") from error


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        raise BadInput(f"{path}: {len(files)} .safetensors files instead of one; name the LoRA's file")
    return files[0]


def attach(transformer: nn.Module, path: Path, base: str) -> None:
    """Put a LoRA on a FluxTransformer2DModel, active and frozen; BadInput where it was made for another base."""
    state, metadata = _read(_file(path))
    other = metadata.get("base", base)  # other tools' files say nothing
    if other != base:
        raise BadInput(f"LoRA {path}: made for base '{other}', and this is '{base}': load it on that base")
    layers = dict(transformer.named_modules())
    for key, tensor in state.items():
        name, half = key.removesuffix(".weight").rsplit(".", 1)
        layer = layers.get(name)
        if not isinstance(layer, nn.Linear):
            raise BadInput(f"LoRA {path}: made for another base than {base}, which has no layer {name}")
        side, found = layer.in_features if half == "lora_A" else layer.out_features, tensor.shape[half == "lora_A"]
        if found != side:
            raise BadInput(f"LoRA {path}: made for another base than {base}: {name} is {side} wide there, {found} here")
    transformer.load_lora_adapter(state, prefix=None, adapter_name="default")  # type: ignore[operator]
    transformer.requires_grad_(False)


def add(transformer: nn.Module, targets: Sequence[str], rank: int, base: str) -> None:
    """See `umo.customizers.base.Customizer.add_lora`; `base` is the base's name, for the message."""
    found = getattr(transformer, "peft_config", {}).get("default")
    if found is None:
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets), init_lora_weights="gaussian")
        transformer.add_adapter(config, adapter_name="default")  # type: ignore[operator]
    elif found.r != rank:
        raise BadInput(f"{base} has a LoRA of rank {found.r}, and the recipe says {rank}: change the recipe")
    for name, weight in transformer.named_parameters():
        is_lora = ".lora_" in name
        weight.requires_grad_(is_lora)
        if is_lora:
            weight.data = weight.data.float()


def save(state: Mapping[str, Tensor], folder: Path, base: str) -> Path:
    """Write a LoRA as diffusers' `load_lora_weights` reads it, atomically; returns the file.

    `state` is in diffusers' naming without a prefix (peft's `get_peft_model_state_dict`); its alpha is the rank, which
    the file's metadata says as diffusers writes it, beside the base's name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    named = {PREFIX + key: tensor.detach().cpu().contiguous().clone() for key, tensor in state.items()}
    with replacing(path) as temporary:
        save_file(named, temporary, metadata={"base": base, lora.ADAPTER: lora.settings(state, PREFIX)})
        lora.sort_metadata(temporary)
    return path
