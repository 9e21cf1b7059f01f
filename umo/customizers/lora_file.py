"""LoRA files of any family: read into the names of a transformer's layers, put on it, trained, written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor, nn

from umo.customizers import lora
from umo.customizers.lora import State
from umo.errors import BadInput
from umo.files import replacing

FILE = "pytorch_lora_weights.safetensors"


class Place(NamedTuple):
    """A layer of the transformer, and what it takes of a layer in a file.

    Attributes:
        layer: its full name.
        share: of the file's layer's outputs, in proportion to the shares of the places beside it.
        swapped: the two halves of its outputs stand the other way round in the file.
    """

    layer: str
    share: int = 1
    swapped: bool = False


@dataclass(frozen=True)
class Naming:
    """How LoRA files name the layers of a family.

    Attributes:
        family: for messages.
        places: the layers that a layer in a file is, from its name without prefixes (`lora.pairs`); none where the
            family has no such layer.
        prefix, suffix: written before a layer's name, and between `lora_A` and `.weight`.
        originals: the layers as the model was published, which ComfyUI and kohya name, with `{}` for a block's number;
            none where diffusers kept them.
        uno: the same in UNO's naming.
    """

    family: str
    places: Callable[[str], Sequence[Place]]
    prefix: str = "transformer."
    suffix: str = ""
    originals: tuple[str, ...] = ()
    uno: tuple[str, ...] = ()

    def to_layers(self, given: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> State:
        """Any naming -> the transformer's (`transformer_blocks.0.attn.to_q.lora_A.weight`, ...), alpha = rank.

        Raises ValueError as `lora.pairs` does, and for a layer that the family does not have or that is given twice.
        """
        state: State = {}
        source: dict[str, str] = {}
        left = []
        for name, (key, down, up) in lora.pairs(given, metadata or {}).items():
            if not (places := self.places(name)):
                left.append(key)
                continue
            shares = [place.share for place in places]
            unit, rest = divmod(len(up), sum(shares))
            if rest:
                raise ValueError(f"{key}: its up has {len(up)} rows, which are not cut into {len(places)} layers")
            for place, part in zip(places, up.split([unit * share for share in shares]), strict=True):
                layer = place.layer
                if layer in source:
                    raise ValueError(f"{source[layer]} and {key} are for the same layer ({layer})")
                source[layer] = key
                state[f"{layer}.lora_A.weight"] = down
                state[f"{layer}.lora_B.weight"] = torch.cat(part.chunk(2)[::-1]) if place.swapped else part
        if left:
            raise ValueError(f"{len(left)} keys are not of {self.family}'s naming ({left[0]})")
        return state

    def read(self, path: Path) -> State:
        """A file or the folder of one -> the transformer's naming, alpha = rank.

        Raises BadInput where it is missing, damaged, not finite, not a plain LoRA or not whole; names what.
        """
        return self._read(lora_path(path))[0]

    def _read(self, path: Path) -> tuple[State, dict[str, str]]:
        given, metadata = lora.load(path)
        try:
            return self.to_layers(given, metadata), metadata
        except ValueError as error:
            raise BadInput(f"{path}: {error}; give a whole, plain LoRA for {self.family}'s transformer") from error

    def fitting(self, transformer: nn.Module, path: Path, base: str, rank: int | None = None) -> State:
        """What `read` gives, for a transformer whose weights need not be there (the meta device).

        Raises BadInput as `read` does, where it was made for another base, and where it has another rank than is given.
        """
        state, metadata = self._read(lora_path(path))
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
                other = f"{name} is {side} wide there, {found} here"
                raise BadInput(f"LoRA {path}: made for another base than {base}: {other}")
            if half == "lora_A" and rank not in (None, len(tensor)):
                raise _other_rank(base, len(tensor), rank)
        return state

    def attach(self, transformer: nn.Module, path: Path, base: str) -> None:
        """Put a LoRA on a transformer, active and frozen; BadInput as `fitting` raises it."""
        state = self.fitting(transformer, path, base)
        transformer.load_lora_adapter(state, prefix=None, adapter_name="default")  # type: ignore[operator]
        transformer.requires_grad_(False)

    def save(self, state: Mapping[str, Tensor], folder: Path, base: str) -> Path:
        """Write a LoRA as the family's own loader reads it, atomically; returns the file.

        `state` is in the transformer's naming (peft's `get_peft_model_state_dict`); its alpha is the rank, which
        the file's metadata says as diffusers writes it, beside the base's name.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / FILE
        write(self.written(state), path, {"base": base, lora.ADAPTER: lora.settings(state, self.prefix)})
        return path

    def written(self, state: Mapping[str, Tensor]) -> State:
        """The transformer's naming -> that of the family's own loader."""
        return {f"{self.prefix}{key.removesuffix('.weight')}{self.suffix}.weight": state[key] for key in state}


def write(state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write tensors and metadata, which is not empty, atomically; the same ones make the same bytes."""
    own = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in state.items()}
    with replacing(path) as temporary:
        save_file(own, temporary, metadata=dict(metadata))
        lora.sort_metadata(temporary)


def lora_path(path: Path) -> Path:
    """The file that is given, or the only one of a folder."""
    if not path.is_dir():
        return path
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        raise BadInput(f"{path}: {len(files)} .safetensors files instead of one; name the LoRA's file")
    return files[0]


def _other_rank(base: str, found: int, asked: int | None) -> BadInput:
    return BadInput(f"{base} has a LoRA of rank {found}, and the recipe says {asked}: change the recipe")


def add(transformer: nn.Module, targets: Sequence[str], rank: int, base: str) -> None:
    """See `umo.customizers.base.Customizer.add_lora`; `base` is the base's name, for the message."""
    found = getattr(transformer, "peft_config", {}).get("default")
    if found is None:
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets), init_lora_weights="gaussian")
        transformer.add_adapter(config, adapter_name="default")  # type: ignore[operator]
    elif found.r != rank:
        raise _other_rank(base, found.r, rank)
    for name, weight in transformer.named_parameters():
        is_lora = ".lora_" in name
        weight.requires_grad_(is_lora)
        if is_lora:
            weight.data = weight.data.float()
