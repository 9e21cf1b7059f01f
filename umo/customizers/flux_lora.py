"""LoRA files for FLUX in two namings: diffusers' and the original one of the published UNO and UMO checkpoints.

The original blocks hold query, key and value in one layer, so its LoRA has one `down` and a threefold `up`
(`double_blocks.N.processor.qkv_lora1.{down,up}.weight` for the picture's stream, `lora2` for the text's,
`single_blocks.N.processor.{qkv_lora,proj_lora}...`). The scale is 1: alpha equals the rank. A single block's qkv LoRA
leaves the part of `linear1` that feeds the MLP alone; its proj LoRA is on all of `linear2`.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from umo.errors import BadInput
from umo.files import replacing

State = dict[str, Tensor]
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
_ORIGINAL = re.compile(r"(?:module\.|diffusion_model\.)?(double|single)_blocks\.(\d+)\.processor\.(\w+)\.down\.weight")


def modules(doubles: int, singles: int) -> list[str]:
    """The diffusers layers a UNO LoRA is on, for so many double and single blocks."""
    double, single = (list(chain.from_iterable(layers.values())) for layers in (DOUBLE, SINGLE))
    return [f"transformer_blocks.{i}.{layer}" for i in range(doubles) for layer in double] + [
        f"single_transformer_blocks.{i}.{layer}" for i in range(singles) for layer in single
    ]


def to_diffusers(original: Mapping[str, Tensor]) -> State:
    """Original naming -> diffusers' (`transformer_blocks.0.attn.to_q.lora_A.weight`, ...).

    Raises ValueError for a key that is not of the original naming, or lacks its other half.
    """
    state: State = {}
    used: set[str] = set()
    for key, down in original.items():
        if not (found := _ORIGINAL.fullmatch(key)):
            continue
        kind, number, layer = found.groups()
        split = (DOUBLE if kind == "double" else SINGLE).get(layer)
        up = original.get(key.replace(".down.", ".up."))
        if split is None or up is None or up.shape[0] % len(split):
            continue
        used |= {key, key.replace(".down.", ".up.")}
        parent = f"{'' if kind == 'double' else 'single_'}transformer_blocks.{number}"
        for name, part in zip(split, up.chunk(len(split)), strict=True):
            state[f"{parent}.{name}.lora_A.weight"] = down
            state[f"{parent}.{name}.lora_B.weight"] = part
    if left := sorted(set(original) - used):
        raise ValueError(f"{len(left)} keys are not of UNO's naming ({left[0]})")
    return state


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
    """A LoRA in either naming, from a file or the folder of one -> diffusers' naming without a prefix.

    Raises BadInput where it is missing, damaged, or of neither naming.
    """
    path = _file(path)
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        reason = "cut short or damaged; copy it again" if path.exists() else "missing; check the path"
        raise BadInput(f"{path}: LoRA {reason}") from error
    try:
        if any(".processor." in key for key in state):
            return to_diffusers(state)
    except ValueError as error:
        raise BadInput(f"{path}: {error}; give a LoRA for FLUX in UNO's or diffusers' naming") from error
    state = {key.removeprefix(PREFIX): tensor for key, tensor in state.items()}
    if not state or not all(re.search(r"\.lora_[AB]\.weight$", key) for key in state):
        raise BadInput(f"{path}: holds no LoRA in UNO's or diffusers' naming")
    return state


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        raise BadInput(f"{path}: {len(files)} .safetensors files instead of one; name the LoRA's file")
    return files[0]


def attach(transformer: nn.Module, path: Path, base: str) -> None:
    """Put a LoRA on a FluxTransformer2DModel, active and frozen; BadInput where it was made for another base."""
    state = read(path)
    with safe_open(_file(path), "pt") as file:
        other = (file.metadata() or {}).get("base", base)  # other tools' files say nothing
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
    """Write a LoRA as diffusers' `load_lora_weights` reads it, atomically, and the base's name; returns the file.

    `state` is in diffusers' naming without a prefix (peft's `get_peft_model_state_dict`); its alpha is the rank.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    named = {PREFIX + key: tensor.detach().cpu().contiguous().clone() for key, tensor in state.items()}
    # One entry alone: safetensors writes several in an order that differs from process to process.
    with replacing(path) as temporary:
        save_file(named, temporary, metadata={"base": base})
    return path
