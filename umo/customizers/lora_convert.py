"""A LoRA file from any naming that a family knows into another: what `umo lora convert` does."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from umo.customizers import CUSTOMIZERS, lora
from umo.customizers.lora import State
from umo.customizers.lora_file import Naming, Place, lora_path, write
from umo.errors import BadInput
from umo.licences import UNKNOWN, of_lora

Form = Literal["diffusers", "uno", "comfyui", "kohya"]


@dataclass(frozen=True)
class Converted:
    """What a conversion came to: the LoRA's family, its layers in the new naming, their ranks."""

    family: str
    layers: int
    ranks: tuple[int, ...]


def convert(source: Path, target: Path, form: Form, family: str | None = None) -> Converted:
    """Read a LoRA in any naming and write it in `form`, atomically, with alpha laid in.

    Its metadata says the base and the licence where the source says them.

    Args:
        source: a .safetensors file, or the folder of one.
        target: a .safetensors file.
        family: of the base; None finds it from the keys.

    Raises:
        BadInput: the source is not a whole, plain LoRA of the family, or of more than one and none is named; the family
            has no such form.
    """
    if target.suffix != ".safetensors":
        raise BadInput(f"{target}: name a .safetensors file to write")
    path = lora_path(source)
    given, metadata = lora.load(path)
    naming, state = _recognised(path, given, metadata, family)
    try:
        named = renamed(naming, state, form)
        kept = naming.to_layers(named)
    except ValueError as error:
        raise BadInput(f"{path}: cannot be written in the form '{form}' ({error}); choose another --to") from error
    if lacking := sorted(state.keys() - kept.keys()):
        raise BadInput(f"{path}: the form '{form}' has no place for {lacking[0]}; choose another --to")
    said = {"base": metadata.get("base"), "licence": of_lora(path)}
    known = {key: value for key, value in said.items() if value not in (None, UNKNOWN)}
    more = {lora.ADAPTER: lora.settings(state, naming.prefix)} if form == "diffusers" else {"form": form}
    target.parent.mkdir(parents=True, exist_ok=True)
    write(named, target, {**known, **more})
    pairs = lora.pairs(named, {})
    return Converted(naming.family, len(pairs), tuple(sorted({len(pair.down) for pair in pairs.values()})))


def renamed(naming: Naming, state: Mapping[str, Tensor], form: Form) -> State:
    """The transformer's naming, alpha = rank -> another's; the inverse of `Naming.to_layers`.

    UNO's loader takes one rank for all layers: those of a smaller one are padded with zeros.

    Raises ValueError where the family has no such form, or the form no such layer.
    """
    if form == "diffusers":
        return naming.written(state)
    if form == "uno" and not naming.uno:
        raise ValueError(f"{naming.family} has no naming of UNO's")
    pairs = _fused(naming, state, naming.uno if form == "uno" else naming.originals)
    if form == "comfyui":
        return _halves(pairs, "diffusion_model.{}.lora_A.weight", "diffusion_model.{}.lora_B.weight")
    if form == "kohya":
        flat = {f"lora_unet_{name.replace('.', '_')}": pair for name, pair in pairs.items()}
        alphas = {f"{name}.alpha": torch.tensor(float(len(down))) for name, (down, _) in flat.items()}
        return alphas | _halves(flat, "{}.lora_down.weight", "{}.lora_up.weight")
    rank, pad = max(len(down) for down, _ in pairs.values()), nn.functional.pad
    padded = {
        name: (pad(down, (0, 0, 0, rank - len(down))), pad(up, (0, rank - len(down))))
        for name, (down, up) in pairs.items()
    }
    return _halves(padded, "{}.down.weight", "{}.up.weight")


def _halves(pairs: Mapping[str, tuple[Tensor, Tensor]], *keys: str) -> State:
    return {key.format(name): half for name, pair in pairs.items() for key, half in zip(keys, pair, strict=True)}


def _recognised(
    path: Path, given: Mapping[str, Tensor], metadata: Mapping[str, str], family: str | None
) -> tuple[Naming, State]:
    namings = {naming.family: naming for adapter in CUSTOMIZERS.values() if (naming := adapter().naming)}
    if family is not None:
        asked = {name: naming for name, naming in namings.items() if name.lower() == family.lower()}
        if not asked:
            raise BadInput(f"--family {family}: no such family; choose one of {', '.join(namings)}")
        namings = asked
    found, reasons = {}, {}
    for name, naming in namings.items():
        try:
            found[name] = naming.to_layers(given, metadata)
        except ValueError as error:
            reasons[name] = str(error)
    if not found:
        reason = reasons[max(reasons, key=lambda name: _known(namings[name], given))]  # of the likeliest
        raise BadInput(f"{path}: {reason}; give a whole, plain LoRA for a transformer of {' or '.join(namings)}")
    if len(found) > 1:
        raise BadInput(f"{path}: its keys are those of {' and of '.join(found)}; say whose it is with --family")
    ((name, state),) = found.items()
    return namings[name], state


def _known(naming: Naming, given: Mapping[str, Tensor]) -> int:
    """How many tensors are of layers that the family has."""
    return sum(bool(naming.places(lora.layer(key))) for key in given)


def _fused(naming: Naming, state: Mapping[str, Tensor], originals: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer as published -> its down and up; the transformer's own layers where there are no others."""
    layers = {key.removesuffix(".lora_A.weight") for key in state if key.endswith(".lora_A.weight")}
    if not originals:
        return {layer: (state[f"{layer}.lora_A.weight"], state[f"{layer}.lora_B.weight"]) for layer in sorted(layers)}
    numbers = sorted({int(found[1]) for layer in layers if (found := re.search(r"\.(\d+)\.", layer))})
    names = dict.fromkeys(name.format(number) for name in originals for number in numbers or [0])
    pairs = {}
    for name in names:
        places = naming.places(name)
        if held := layers.intersection(place.layer for place in places):
            pairs[name] = _joined(places, state)
            layers -= held
    if layers:
        raise ValueError(f"{len(layers)} layers have no place in it ({min(layers)})")
    return pairs


def _joined(places: Sequence[Place], state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """One down and up of layers that were one; the outputs of those without a LoRA get zeros.

    A down that several share is there once. Different ones are stacked, each with its ups in columns of their own: the
    same function at the sum of their ranks.
    """
    held = {place: state[f"{place.layer}.lora_A.weight"] for place in places if f"{place.layer}.lora_A.weight" in state}
    downs: list[Tensor] = []
    for down in held.values():
        if not any(torch.equal(down, one) for one in downs):
            downs.append(down)
    first = next(iter(held))
    unit = len(state[f"{first.layer}.lora_B.weight"]) // first.share
    rows = []
    for place in places:
        blocks = [held[first].new_zeros(unit * place.share, len(down)) for down in downs]
        if place in held:
            own = state[f"{place.layer}.lora_B.weight"]
            column = next(k for k, down in enumerate(downs) if torch.equal(down, held[place]))
            blocks[column] = torch.cat(own.chunk(2)[::-1]) if place.swapped else own
        rows.append(torch.cat(blocks, dim=1))
    return torch.cat(downs), torch.cat(rows)
