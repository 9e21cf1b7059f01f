"""The cheapest way to train on a card, of all that a recipe can switch on."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from umo.errors import BadInput
from umo.planning.bases import Base
from umo.planning.memory import GIB, Memory, Switches, Work, estimate

# From the cheapest; the last named are tried first. A lower rank changes what can be learnt, weights in fewer bits cost
# exactness and time, an optimizer in 8 bits needs a package, checkpointing takes a third more time and nothing else.
CHOICES: dict[str, tuple[Any, ...]] = {
    "rank": (512, 256, 128, 64, 32, 16),
    "weights": ("full", "fp8", "int8", "nf4"),
    "optimizer": ("adamw", "adamw8bit"),
    "checkpointing": (False, True),
}


@dataclass(frozen=True)
class Plan:
    """A training on a card.

    Attributes:
        asked, asked_memory: without any switch but those that were given.
        chosen, memory: the cheapest that fits; where none does, the one that needs the least.
        card: bytes.
    """

    base: Base
    work: Work
    asked: Switches
    asked_memory: Memory
    chosen: Switches
    memory: Memory
    card: int

    @property
    def fits(self) -> bool:
        return self.memory.needed <= self.card

    @property
    def settings(self) -> dict[str, Any]:
        """The recipe's values."""
        chosen = self.chosen
        own = {"rank": chosen.rank, "weights": chosen.weights, "optimizer": chosen.optimizer, "precision": "bf16"}
        return own | {"micro_batch": self.work.batch, "checkpoint_gradients": chosen.checkpointing}


def plan(base: Base, work: Work, card: float, given: Mapping[str, Any]) -> Plan:
    """
    Args:
        card: its memory in GiB.
        given: fields of `Switches` that are not to be chosen.

    Raises BadInput: no such card, a rank that is none, or a size that the base's tokens do not fill.
    """
    if not 0 < card < math.inf:
        raise BadInput(f"--gpu-memory {card:g}: give the card's memory in GiB, such as 24")
    for name, value in (("--rank", given.get("rank", 1)), ("--batch", work.batch), ("--reference-size", work.side)):
        if value < 1:
            raise BadInput(f"{name} {value}: give a number above 0")
    multiple = base.build(dict.fromkeys(base.depth, 1)).multiple  # type: ignore[attr-defined]
    if any(side % multiple or side < multiple for side in (*work.size, work.side)):
        height, width = work.size
        sizes = f"a picture of {height}x{width} (height x width), references of {work.side}"
        raise BadInput(f"{sizes}: {base.name} takes sides that are multiples of {multiple}")
    size = int(card * GIB)
    ways = list(_ways(given))
    asked = estimate(base, work, ways[0])
    found: list[tuple[Switches, Memory]] = []
    for switches in ways:
        found.append((switches, estimate(base, work, switches)))
        if found[-1][1].needed <= size:
            return Plan(base, work, ways[0], asked, *found[-1], size)
    return Plan(base, work, ways[0], asked, *min(found, key=lambda one: one[1].needed), size)


def _ways(given: Mapping[str, Any]) -> Iterator[Switches]:
    """In the order of `CHOICES`, with what is given held."""
    choices = {name: (given[name],) if name in given else values for name, values in CHOICES.items()}
    for values in product(*choices.values()):
        way = Switches(**dict(zip(choices, values, strict=True)))
        # fp8 alone saves nothing: without checkpointing every layer's 16 bits are kept for the backward pass.
        if way.weights != "fp8" or way.checkpointing or {"weights", "checkpointing"} <= given.keys():
            yield way
