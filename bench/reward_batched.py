"""The reward of a batch, its references embedded once beforehand, against the published form with the same networks.

The released code takes one picture and embeds its reference faces at every call. Both forms here go forward and
backward to the pixels of the same pictures, with the same reference photographs, and give the same rewards.
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
from umo.customizers.base import Settings, default_size
from umo.customizers.references import fill
from umo.errors import BadInput
from umo.images import read_image
from umo.rewards import MatchingReward
from umo.training.samples import Sample

NAME = "reward-batched"
BAR = 1.3
PEOPLE = (2, 3)
NOISE = 0.02  # deviation in [-1, 1]: the pictures are not quite the photographs, and their faces are still found


@dataclass(frozen=True)
class Drawn:
    """Pictures as a base would draw them.

    Attributes:
        pictures: (B, 3, H, W) in [-1, 1].
        photos: of each picture its people's reference photographs, (H, W, 3) uint8 each.
    """

    pictures: Tensor
    photos: list[list[np.ndarray]]


def run(setup: Setup, batch: int = 8, repeats: int = 10) -> Result:
    """Seconds one by one / seconds of the batch, both summed over two and three people.

    Args:
        batch: pictures.
        repeats: of each form, in turns after one turn that is not measured; their median counts.
    """
    settings = setup.load_base().settings
    seconds = {n: measure(setup.reward, near_targets(setup.train, settings, n, batch), repeats) for n in PEOPLE}
    batched, single = (sum(row[form] for row in seconds.values()) for form in ("batched", "one by one"))
    return Result(
        name=NAME,
        value=single / batched,
        unit="seconds one by one / seconds batched, forward and backward",
        against="the published form: a picture at a time, its reference photographs embedded again",
        bar=BAR,
        lower_is_better=False,
        details={
            "batch": batch,
            "repeats": repeats,
            "by_people": {
                str(n): {form: round(value, 4) for form, value in row.items()} | {"ratio": round(_ratio(row), 3)}
                for n, row in seconds.items()
            },
        },
    )


def _ratio(seconds: dict[str, float]) -> float:
    return seconds["one by one"] / seconds["batched"]


def near_targets(samples: Sequence[Sample], settings: Settings, people: int, count: int) -> Drawn:
    """Targets of so many people at the size they are drawn at, with a little noise.

    Raises:
        BadInput: there are fewer.
    """
    chosen = [sample for sample in samples if len(sample.references) == people][:count]
    if len(chosen) < count:
        raise BadInput(f"{len(chosen)} sets of {people} people, and {count} are needed: make more scenes")
    size = default_size(settings, people)
    targets = torch.stack([fill(read_image(sample.target), size) for sample in chosen])
    noise = torch.randn(targets.shape, generator=torch.Generator().manual_seed(people))
    photos = [[read_image(photo) for photo in sample.references] for sample in chosen]
    return Drawn((targets + NOISE * noise).clamp(-1, 1), photos)


def measure(reward: MatchingReward, drawn: Drawn, repeats: int) -> dict[str, float]:
    """Median seconds of each form."""
    anchors = [reward.embed_anchors("references", photos) for photos in drawn.photos]
    forms: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
        "batched": lambda: batched(reward, drawn.pictures, anchors),
        "one by one": lambda: one_by_one(reward, drawn.pictures, drawn.photos),
    }
    turns = []
    for _ in range(1 + repeats):
        watch = Stopwatch()
        for name, form in forms.items():
            with watch(name):
                form()
        turns.append(watch.seconds)
    return {name: median(turn[name] for turn in turns[1:]) for name in forms}


def batched(reward: MatchingReward, pictures: Tensor, anchors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rewards (B,) and the gradient (B, 3, H, W) of their sum, in one call."""
    pixels = pictures.clone().requires_grad_()
    rewards = reward(pixels, anchors).reward
    (gradient,) = torch.autograd.grad(rewards.sum(), pixels)
    return rewards.detach(), gradient


def one_by_one(
    reward: MatchingReward, pictures: Tensor, photos: Sequence[Sequence[np.ndarray]]
) -> tuple[Tensor, Tensor]:
    """The same, a picture at a time; its reference photographs are looked at and embedded for it alone."""
    parts = [
        batched(reward, picture[None], [reward.embed_anchors("references", theirs)])
        for picture, theirs in zip(pictures, photos, strict=True)
    ]
    rewards, gradients = zip(*parts, strict=True)
    return torch.cat(rewards), torch.cat(gradients)
