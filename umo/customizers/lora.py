"""LoRA files of any family and writer: halves paired and their scale laid in, before a family names the layers anew.

Known are the halves of diffusers and peft (`lora_A`, also with an adapter's name behind it), of kohya, musubi and
ComfyUI (`lora_down`), of UNO and XLabs (`down`), and the prefixes before a layer's name. The scale is alpha / rank.
Alpha is said by a tensor (`.alpha`), by diffusers' `lora_adapter_metadata`, by the `adapter_config.json` that peft
writes beside its file, or by kohya's `ss_network_alpha`; where nothing says it, alpha is the rank.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from peft.utils.other import get_pattern_key
from pydantic import BaseModel, PositiveInt, field_validator
from safetensors import SafetensorError, safe_open
from torch import Tensor

from umo.errors import BadInput
from umo.model_index import adapter_config

State = dict[str, Tensor]
ADAPTER = "lora_adapter_metadata"  # diffusers' name of an adapter's settings in a file's metadata
_PREFIX = re.compile(
    r"(?:(?:base_model\.model|model|module|diffusion_model|transformer|unet)\.|lora_unet_|lora_transformer_|lycoris_)*"
)
_HALF = re.compile(r"(.+?)\.(?:lora_(A|B|down|up)|(?:lora\.|lora_linear_layer\.)?(down|up))(?:\.[\w-]+)?\.weight")
_ALPHA = ".alpha"
PRECISION = 0.01  # of an alpha that is kept in 16 bits
_TEXT_ENCODER = r"^(?:base_model\.model\.)?(?:lora_te|text_encoder|clip_[lg]|t5)"
_OTHER_FORMS = {
    "DoRA": r"\.dora_scale|\.lora_magnitude_vector",
    "LoKr": r"\.lokr_",
    "LoHa": r"\.hada_",
    "OFT": r"\.b?oft_",
    "GLoRA": r"\.[ab][12]\.weight$",
    "a LoRA with a middle (lora_mid)": r"\.lora_mid\.",
    "a LoRA with biases": r"\.lora_B(?:\.[\w-]+)?\.bias$",
    "whole differences (diff)": r"\.(?:diff|diff_b|set_weight|w_norm|b_norm)$",
}


def layer(key: str) -> str:
    """The name of a tensor's layer as written, without prefixes."""
    match = _HALF.fullmatch(key)
    return _PREFIX.sub("", match[1] if match else key.removesuffix(_ALPHA), count=1)


class Pair(NamedTuple):
    """The LoRA of a layer, with alpha equal to its rank: it adds up @ down to the layer's weight.

    Attributes:
        key: of its down, as in the file.
        down: (rank, inputs).
        up: (outputs, rank).
    """

    key: str
    down: Tensor
    up: Tensor


def load(path: Path) -> tuple[State, dict[str, str]]:
    """The tensors of a file, of a dtype to compute with, and its metadata, peft's file beside it included.

    Raises BadInput where the file is missing or damaged, or its halves hold other than finite floating-point numbers.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata, state = file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise BadInput(f"{path}: LoRA missing; check the path") from error
    except OSError as error:
        raise BadInput(f"{path}: LoRA cannot be read ({error.strerror or error}); check the path") from error
    except SafetensorError as error:
        with path.open("rb") as raw:
            begun = raw.read(9)[8:] in (b"", b"{")  # JSON follows its length; a pickle or a web page is not damaged
        reason = "cut short or damaged; copy it again" if begun else "is no safetensors file; save it as one"
        raise BadInput(f"{path}: LoRA {reason}") from error
    if ADAPTER not in metadata and (config := adapter_config(path)):
        metadata[ADAPTER] = config.read_text(encoding="utf-8", errors="replace")
    for key, tensor in state.items():
        if not tensor.is_floating_point() and not key.endswith(_ALPHA):
            raise BadInput(f"{path}: {key} holds {tensor.dtype}, no floating-point numbers; save the LoRA unquantised")
        if tensor.is_floating_point() and tensor.itemsize == 1:
            state[key] = tensor.float()  # nothing computes in 8-bit floats
        if not state[key].isfinite().all():
            raise BadInput(f"{path}: {key} is not finite (NaN or infinity); use another LoRA, or an earlier checkpoint")
    return state, metadata


def pairs(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Pair]:
    """Layer's name as written, without prefixes -> its LoRA, the scale laid into its down.

    Raises ValueError for a tensor that is no half of a LoRA or lacks the other half, for halves that do not fit, and
    for an alpha that is no number above 0 or is another in another place. The message names the tensor.
    """
    for form, pattern in _OTHER_FORMS.items():
        if found := [key for key in sorted(state) if re.search(pattern, key)]:
            raise ValueError(f"{len(found)} tensors are {form}, which is not read ({found[0]})")
    if found := [key for key in sorted(state) if re.search(_TEXT_ENCODER, key)]:
        raise ValueError(f"{len(found)} tensors are for a text encoder, which takes no LoRA here ({found[0]})")
    halves: dict[str, dict[str, str]] = {}
    left = []
    for key in sorted(state):
        if match := _HALF.fullmatch(key):
            half = "down" if (match[2] or match[3]) in ("A", "down") else "up"
        elif key.endswith(_ALPHA):
            half = "alpha"
        else:
            left.append(key)
            continue
        keys = halves.setdefault(layer(key), {})
        if half in keys:
            raise ValueError(f"{keys[half]} and {key} are for the same layer")
        keys[half] = key
    if not halves:
        raise ValueError("holds no LoRA")
    if left:
        raise ValueError(f"{len(left)} tensors are no half of a LoRA ({left[0]})")
    said = list(_settings(metadata))
    return {name: _pair(name, keys, state, said) for name, keys in halves.items()}


def _pair(name: str, keys: Mapping[str, str], state: Mapping[str, Tensor], said: Sequence["_Settings"]) -> Pair:
    if lacking := [half for half in ("down (lora_A)", "up (lora_B)") if half.split()[0] not in keys]:
        raise ValueError(f"{next(iter(keys.values()))} has no {lacking[0]} beside it")
    down, up = state[keys["down"]], state[keys["up"]]
    if not (down.ndim == up.ndim == 2 and down.shape[0] == up.shape[1] > 0):
        raise ValueError(f"{keys['down']} {tuple(down.shape)} and its up {tuple(up.shape)} do not fit one another")
    rank = len(down)
    alphas = {one.of: alpha for one in said if (alpha := one.alpha_of(name, rank)) is not None}
    if "alpha" in keys:
        given = state[keys["alpha"]]
        if given.numel() != 1:
            raise ValueError(f"{keys['alpha']} holds {given.numel()} numbers instead of one")
        alphas[keys["alpha"]] = float(given)
    elif wrong := [one.of for one in said if one.rank_of(name) not in (None, rank)]:
        raise ValueError(f"{keys['down']} has rank {rank}, and {wrong[0]} says another")
    alpha = next(reversed(alphas.values()), rank)
    found = f"{keys['down']}: alpha is " + " and ".join(f"{alpha:g} in {of}" for of, alpha in alphas.items())
    if not 0 < alpha < math.inf:
        raise ValueError(f"{found}; it must be above 0")
    if not all(math.isclose(alpha, other, rel_tol=PRECISION) for other in alphas.values()):
        raise ValueError(f"{found}; only one can be right")
    return Pair(keys["down"], down if alpha == rank else down.float() * (alpha / rank), up)


class _Settings(BaseModel):
    """What metadata says of rank and alpha, in the fields of peft's LoraConfig; `of`: where it stands."""

    of: str
    r: PositiveInt | None = None
    lora_alpha: float | None = None
    rank_pattern: dict[str, PositiveInt] | None = None
    alpha_pattern: dict[str, float] | None = None
    use_rslora: bool | None = None
    use_dora: bool | None = None

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _compiles(cls, patterns: dict[str, float] | None) -> dict[str, float] | None:
        try:
            for pattern in patterns or ():
                re.compile(pattern)
        except re.error as error:
            raise ValueError(str(error)) from error
        return patterns

    def rank_of(self, layer: str) -> int | None:
        patterns = self.rank_pattern or {}
        return patterns.get(get_pattern_key(list(patterns), layer), self.r)

    def alpha_of(self, layer: str, rank: int) -> float | None:
        patterns = self.alpha_pattern or {}
        alpha = patterns.get(get_pattern_key(list(patterns), layer), self.lora_alpha)
        return alpha and alpha * (math.sqrt(rank) if self.use_rslora else 1)


def _settings(metadata: Mapping[str, str]) -> Iterator[_Settings]:
    if ADAPTER in metadata:
        try:
            given = json.loads(metadata[ADAPTER])
            # diffusers' pipelines write the model's name before every field, its models do not.
            adapter = _Settings(of=ADAPTER, **{key.removeprefix("transformer."): given[key] for key in given})
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{ADAPTER} in its metadata is no LoraConfig of peft's") from error
        if adapter.use_dora:
            raise ValueError(f"{ADAPTER} says that it is DoRA (use_dora), which is not read")
        yield adapter
    # kohya also writes None and 0, both of which are its word for the rank, and Dynamic where each layer has its own.
    dim, alpha = (metadata.get(f"ss_network_{name}", "") for name in ("dim", "alpha"))
    yield _Settings(
        of="ss_network_dim and ss_network_alpha",
        r=int(dim) if dim.isdecimal() and int(dim) else None,
        lora_alpha=float(alpha) or None if re.fullmatch(r"[-+.\d]+(e[-+]?\d+)?", alpha) else None,
    )


def settings(state: Mapping[str, Tensor], prefix: str) -> str:
    """`ADAPTER` of a LoRA in peft's naming whose alphas are its ranks; `prefix` goes before every field."""
    ranks = {key.removesuffix(".lora_A.weight"): len(down) for key, down in state.items() if ".lora_A." in key}
    rank = max(ranks.values())
    others = {f"^{layer}": own for layer, own in sorted(ranks.items()) if own != rank}
    fields = {"r": rank, "lora_alpha": rank, "rank_pattern": others, "alpha_pattern": others}
    return json.dumps({prefix + key: value for key, value in {**fields, "target_modules": sorted(ranks)}.items()})


def sort_metadata(path: Path) -> None:
    """Put the entries of a safetensors file's metadata in order: safetensors' own differs from process to process."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        file.seek(8)
        file.write(text.ljust(length))
