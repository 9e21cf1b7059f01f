"""A base as its configuration files describe it: its networks without numbers, of any depth."""

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
import transformers
from torch import nn
from transformers import AutoConfig

from umo.customizers import CUSTOMIZERS
from umo.customizers.base import Customizer, Size
from umo.customizers.condition import REFERENCE, Condition
from umo.errors import BadInput
from umo.guidance import CONDITIONAL
from umo.model_index import AGAIN, read_index
from umo.planning.published import PUBLISHED
from umo.texts import read_json

TEXT_TOKENS = 512  # of a prompt; FLUX pads every prompt to as many, and no family's are longer in practice
# Keys of a transformer's configuration, and what it names the blocks that they count.
DEPTHS = {"num_layers": ("transformer_blocks", "layers"), "num_single_layers": ("single_transformer_blocks",)}


@dataclass(frozen=True, eq=False)
class Base:
    """Configurations as a diffusers folder has them: its index, and `config.json` of its parts by name.

    `settings` is the folder's `customizer.json`.
    """

    name: str
    index: dict[str, Any]
    configs: dict[str, dict[str, Any]]
    settings: dict[str, Any]

    @cached_property
    def depth(self) -> dict[str, int]:
        """Blocks of each kind, by their key in the transformer's configuration."""
        config = self._network("transformer").config
        return {key: config[key] for key in DEPTHS if key in config}

    def blocks(self, transformer: nn.Module, kind: str) -> nn.ModuleList:
        """The blocks that a key of `depth` counts."""
        return next(getattr(transformer, name) for name in DEPTHS[kind] if hasattr(transformer, name))

    @property
    def size(self) -> Size:
        """Height and width that the family draws if nothing else is asked for."""
        sizes = self.settings.get("sizes")
        if sizes:
            return tuple(sizes[0])
        return (512, 512) if self.index["_class_name"] == "FluxPipeline" else (1024, 1024)

    def reference_side(self, references: int) -> int:
        """Of a reference in pixels, at most: UNO scales its references down, other families to a megapixel."""
        own = self.settings.get("reference_side" if references == 1 else "references_side")
        if own or self.index["_class_name"] != "FluxPipeline":
            return own or 1024
        return 512 if references == 1 else 320

    def build(self, depth: Mapping[str, int], device: str = "meta") -> Customizer:
        """The family's adapter on networks of so many blocks, and without text encoders; frozen, in bfloat16.

        On the meta device they have no numbers, on another random ones. It has no scheduler, and of settings only what
        decides about memory.

        Raises BadInput where a configuration is not of its class.
        """
        parts = {
            "name": self.name,
            "transformer": self._network("transformer", device, **depth),
            "vae": self._network("vae", device),
            "pipeline_class": self.index["_class_name"],
            "settings": SimpleNamespace(as_uno=self._as_uno),
        }
        if self._as_uno:
            parts["vae"].float()
        for network in (parts["transformer"], parts["vae"]):
            network.requires_grad_(False).eval()
        adapter = self._adapter
        required = [field.name for field in dataclasses.fields(adapter) if field.default is dataclasses.MISSING]
        return adapter(**{name: parts.get(name) for name in required if name[0] != "_"})

    def condition(self, built: Customizer, references: int, side: int, batch: int) -> Condition:
        """What a prompt and references of a side in pixels are to the network, on the meta device."""
        config: Any = built.transformer.config
        width = config.get("joint_attention_dim") or config["text_feat_dim"]
        grid = torch.empty(built.latents_shape((side, side)), device="meta")
        sample = {"text": torch.empty(TEXT_TOKENS, width, device="meta")}
        if pooled := config.get("pooled_projection_dim"):
            sample["pooled"] = torch.empty(pooled, device="meta")
        sample |= {f"{REFERENCE}{k}": grid for k in range(references)}
        return Condition((sample,) * batch, (CONDITIONAL,) * batch)

    @cached_property
    def encoders(self) -> int:
        """Parameters of the text encoders."""
        total = 0
        for part, (library, name) in self._parts():
            if library != "transformers" or part not in self.configs or not hasattr(transformers, name):
                continue
            kind = getattr(transformers, name)
            if not issubclass(kind, torch.nn.Module):
                continue
            try:
                with torch.device("meta"):
                    network = kind(AutoConfig.for_model(**self.configs[part]))
            except Exception as error:  # transformers' configurations raise of everything
                raise self._unfit(part, kind, error) from error
            total += sum(weight.numel() for weight in network.parameters())
        return total

    def _parts(self) -> list[tuple[str, list[str]]]:
        return [(part, kind) for part, kind in self.index.items() if isinstance(kind, list) and kind[0] and kind[1]]

    @property
    def _as_uno(self) -> bool:
        """See `FluxSettings`."""
        flux = self.index["_class_name"] == "FluxPipeline" and self.index["vae"][1] == "AutoencoderKL"
        return self.settings.get("as_uno", flux)

    @property
    def _adapter(self) -> Any:
        return CUSTOMIZERS[self.index["_class_name"]]()

    def _network(self, part: str, device: str = "meta", **changed: Any) -> Any:
        name = self.index[part][1]
        kind = getattr(diffusers, name, None) or getattr(sys.modules[self._adapter.__module__], name, None)
        if kind is None:
            raise BadInput(f"{self.name}: {part} is a {name}, which no library here has; give another base")
        try:
            with torch.device(device), _default_dtype(torch.bfloat16):
                return kind.from_config({**self.configs[part], **changed})
        except Exception as error:  # as above
            raise self._unfit(part, kind, error) from error

    def _unfit(self, part: str, kind: Any, error: Exception) -> BadInput:
        reason = " ".join(str(error).split())[:160]
        return BadInput(f"{self.name}: {part}/config.json does not make a {kind.__name__} ({reason}); {AGAIN}")


def find(name: str) -> Base:
    """A diffusers folder, of which configurations alone are read, or one of `PUBLISHED`.

    Raises BadInput: neither, a configuration is missing or not readable, or the family has no adapter.
    """
    folder = Path(name)
    if folder.is_dir():
        index = read_index(folder)
        family = index["_class_name"]
        parts = [part for part, kind in index.items() if isinstance(kind, list) and (folder / part).is_dir()]
        paths = {part: folder / part / "config.json" for part in parts}
        configs = {part: read_json(path) for part, path in paths.items() if path.exists()}
        if missing := [part for part in ("transformer", "vae") if part not in configs or part not in index]:
            raise BadInput(f"{folder}: {missing[0]}/config.json is missing; {AGAIN}")
        own = folder / "customizer.json"
        base = Base(folder.resolve().name, index, configs, read_json(own) if own.exists() else {})
    elif name in PUBLISHED:
        configs = dict(PUBLISHED[name])
        index = configs.pop("index")
        base = Base(name, index, configs, {})
        family = index["_class_name"]
    else:
        raise BadInput(f"--base {name}: no such folder, and no base of that name: give one or {', '.join(PUBLISHED)}")
    if family not in CUSTOMIZERS:
        raise BadInput(f"{name}: a {family}, and umo trains {', '.join(CUSTOMIZERS)}: give a base of those")
    return base


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
