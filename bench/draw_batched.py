"""Cases drawn in batches, as `umo.generate` draws them, against one case after the other.

Both draw the same cases from the same noise with the same base, and the pictures are the same but for rounding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from torch import Tensor

from bench.result import Result
from bench.setup import Setup
from bench.timing import Stopwatch
from umo.customizers import Customizer, draw
from umo.errors import BadInput
from umo.generate import BATCH
from umo.images import read_image
from umo.training.samples import Sample

NAME = "draw-batched"
BAR = 2.0
PEOPLE = (1, 2, 3)


@dataclass(frozen=True)
class Asked:
    """Cases of one shape.

    Attributes:
        prompts: of each.
        photos: of each its people's, (H, W, 3) uint8 each.
    """

    prompts: list[str]
    photos: list[list[np.ndarray]]


def run(setup: Setup, cases: int = 16, repeats: int = 3) -> Result:
    """Seconds one by one / seconds in batches, both summed over one, two and three people.

    Args:
        cases: of each number of people.
        repeats: of each form, in turns after one turn that is not measured; their median counts.
    """
    customizer = setup.load_base()
    forms: dict[str, Callable[[Customizer, Asked], Tensor]] = {"batched": batched, "one by one": one_by_one}
    asked = [asked_for(setup.train, people, cases) for people in PEOPLE]
    turns = []
    for _ in range(1 + repeats):
        watch = Stopwatch(customizer.device)
        for name, form in forms.items():
            with watch(name):
                for same in asked:
                    form(customizer, same)
        turns.append(watch.seconds)
    seconds = {name: median(turn[name] for turn in turns[1:]) for name in forms}
    return Result(
        name=NAME,
        value=seconds["one by one"] / seconds["batched"],
        unit="seconds one by one / seconds in batches",
        against="a case at a time: the same base, cases, noise and threads",
        bar=BAR,
        lower_is_better=False,
        details={
            "cases": cases * len(PEOPLE),
            "batch": BATCH,
            "repeats": repeats,
            "ratios": [round(turn["one by one"] / turn["batched"], 3) for turn in turns[1:]],
            "seconds": {name: round(value, 2) for name, value in seconds.items()},
        },
    )


def asked_for(samples: Sequence[Sample], people: int, count: int) -> Asked:
    """The prompts and photographs of so many sets of so many people.

    Raises:
        BadInput: there are fewer.
    """
    chosen = [sample for sample in samples if len(sample.references) == people][:count]
    if len(chosen) < count:
        raise BadInput(f"{len(chosen)} sets of {people} people, and {count} are needed: make more scenes")
    photos = [[read_image(photo) for photo in sample.references] for sample in chosen]
    return Asked([sample.prompt for sample in chosen], photos)


def batched(customizer: Customizer, asked: Asked) -> Tensor:
    """(B, 3, H, W): BATCH at a time."""

    def drawn(start: int) -> Tensor:
        rows = range(len(asked.prompts))[start : start + BATCH]
        return draw(customizer, [asked.prompts[k] for k in rows], [asked.photos[k] for k in rows], rows)

    return torch.cat([drawn(start) for start in range(0, len(asked.prompts), BATCH)])


def one_by_one(customizer: Customizer, asked: Asked) -> Tensor:
    """The same, a case after the other."""
    every = enumerate(zip(asked.prompts, asked.photos, strict=True))
    return torch.cat([draw(customizer, [prompt], [photos], [k]) for k, (prompt, photos) in every])
