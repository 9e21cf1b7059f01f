"""The layers of FLUX's double and single blocks, as the original code, kohya and diffusers name them.

The original holds in one layer what diffusers splits; a LoRA of such a layer has one `down`, and an `up` that is cut.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

from umo.customizers.lora_file import Place

Layers = Mapping[str, tuple[str, ...]]
_BLOCK = re.compile(r"(double|single)_blocks_(\d+)_(\w+)|(single_)?transformer_blocks_(\d+)_(\w+)")
_MLP = 4  # a single block's MLP is so many times as wide as its query


@dataclass(frozen=True)
class Blocks:
    """Original layer -> the diffusers layers that it is split into.

    Attributes:
        double, single: within a block.
        ends: before and after all blocks.
    """

    double: Layers
    single: Layers
    ends: Layers

    def places(self, name: str) -> list[Place]:
        """See `Naming.places`; by the name with underscores for dots, as kohya writes it, original or diffusers'."""
        flat = name.replace(".", "_")
        if not (block := _BLOCK.fullmatch(flat)):
            # The original has the shift first, diffusers the scale.
            swapped = flat.startswith("final_layer_adaLN")
            return [Place(layer, swapped=swapped) for layer in _flat(self.ends).get(flat, ())]
        single, number, layer = block[1] == "single" or block[4], block[2] or block[5], block[3] or block[6]
        parent = f"{'single_' if single else ''}transformer_blocks.{int(number)}"
        parts = _flat(self.single if single else self.double).get(layer, ())
        return [Place(f"{parent}.{part}", _MLP if part == "proj_mlp" and len(parts) > 1 else 1) for part in parts]

    def numbered(self) -> tuple[str, ...]:
        """All original layers, with `{}` for a block's number."""
        return (
            *(f"double_blocks.{{}}.{name}" for name in self.double),
            *(f"single_blocks.{{}}.{name}" for name in self.single),
            *self.ends,
        )

    def modules(self, doubles: int, singles: int) -> list[str]:
        """The diffusers layers of so many double and single blocks."""
        double, single = (list(chain.from_iterable(layers.values())) for layers in (self.double, self.single))
        return [f"transformer_blocks.{i}.{layer}" for i in range(doubles) for layer in double] + [
            f"single_transformer_blocks.{i}.{layer}" for i in range(singles) for layer in single
        ]


def _flat(layers: Layers) -> Layers:
    """With underscores for dots, and with the names in diffusers beside the original ones."""
    own = {name: (name,) for name in chain.from_iterable(layers.values())}
    return {name.replace(".", "_"): parts for name, parts in {**layers, **own}.items()}
