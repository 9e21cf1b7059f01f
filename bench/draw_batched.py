"""Cases drawn as the stage `generate` draws them, in batches that processes share, against one case after the other.

Both draw the same cases from the same noise with the same base on the same cores, and the pictures are the same but for
rounding. On a GPU there is one process.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from statistics import median

import numpy as np
import torch
from torch import Tensor

from bench.result import Result
from bench.setup import Setup
from bench.timing import Stopwatch
from pipelines.core.bases import chosen
from pipelines.core.executors import limit_threads
from umo import customizers
from umo.customizers import Customizer, draw
from umo.drawing.batches import BATCH
from umo.errors import BadInput
from umo.images import read_image
from umo.training.samples import Sample

NAME = "draw-batched"
BAR = 2.0
PEOPLE = (1, 2, 3)
Form = Callable[[Iterable["Asked"]], Iterable[Tensor]]


@dataclass(frozen=True)
class Asked:
    """Cases of one shape.

    Attributes:
        prompts: of each.
        photos: of each its people's, (H, W, 3) uint8 each.
        seeds: of each.
    """

    prompts: list[str]
    photos: list[list[np.ndarray]]
    seeds: list[int]


def run(setup: Setup, cases: int = 16, repeats: int = 3) -> Result:
    """Seconds one by one / seconds in batches, both summed over one, two and three people.

    Args:
        cases: of each number of people.
        repeats: of each form, in turns after one turn that is not measured; their median counts.
    """
    customizer = setup.load_base()
    every = [asked_for(setup.train, people, cases) for people in PEOPLE]
    batches = [batch for asked in every for batch in in_batches(asked)]
    with ExitStack() as stack:
        together: Form = partial(map, partial(drawn, customizer))
        if customizer.device.type == "cpu":
            spawn, workers = multiprocessing.get_context("spawn"), len(os.sched_getaffinity(0))
            pool = ProcessPoolExecutor(workers, spawn, initializer=limit_threads, initargs=(1,))
            together = partial(stack.enter_context(pool).map, _drawn_by_worker)
        singly: Form = partial(map, partial(one_by_one, customizer))
        forms = {"batched": (together, batches), "one by one": (singly, every)}
        turns = []
        for _ in range(1 + repeats):
            watch = Stopwatch(customizer.device)
            for name, (form, parts) in forms.items():
                with watch(name):
                    list(form(parts))
            turns.append(watch.seconds)
    seconds = {name: median(turn[name] for turn in turns[1:]) for name in forms}
    return Result(
        name=NAME,
        value=seconds["one by one"] / seconds["batched"],
        unit="seconds one by one / seconds in batches",
        against="a case at a time: the same base, cases, noise and cores",
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
    return Asked([sample.prompt for sample in chosen], photos, list(range(count)))


def in_batches(asked: Asked) -> list[Asked]:
    """BATCH at a time."""
    parts = (slice(start, start + BATCH) for start in range(0, len(asked.prompts), BATCH))
    return [Asked(asked.prompts[part], asked.photos[part], asked.seeds[part]) for part in parts]


def drawn(customizer: Customizer, asked: Asked) -> Tensor:
    """(B, 3, H, W), all at once."""
    return draw(customizer, asked.prompts, asked.photos, asked.seeds)


@cache
def _base() -> Customizer:
    base = chosen()
    return customizers.load(base.folder, base.lora, dtype=base.dtype)


def _drawn_by_worker(asked: Asked) -> Tensor:
    return drawn(_base(), asked)


def one_by_one(customizer: Customizer, asked: Asked) -> Tensor:
    """The same, a case after the other."""
    every = zip(asked.prompts, asked.photos, asked.seeds, strict=True)
    return torch.cat([draw(customizer, [prompt], [photos], [seed]) for prompt, photos, seed in every])
