"""What a run measures: how the present weights draw people that are not trained on."""

import math
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor

from umo import flow
from umo.customizers.base import Customizer, Drawing
from umo.errors import WorkFailed
from umo.rewards import MatchingReward
from umo.training.draws import VALIDATION, draw_randomness, generator
from umo.training.objectives.base import REWARD_PARTS, Row, diffusion_loss, parts_of
from umo.training.recipe import Recipe
from umo.training.samples import Batch, Samples

VALIDATION_SEED = 5  # of every run, so that runs can be compared


@torch.no_grad()
def measure(
    customizer: Customizer,
    samples: Samples,
    reward: MatchingReward,
    recipe: Recipe,
    accelerator: Accelerator,
    how: Drawing | None = None,
) -> Row:
    """Reward and diffusion loss over samples, each drawn and noised from its own fixed numbers.

    `how` gives steps and guidance of the drawing, None the base's own; the size is the samples'. A picture that is not
    finite raises WorkFailed.

    Returns:
        `validation/diffusion_loss`, and `validation/NAME` for every name of `REWARD_PARTS`: means over the samples,
        `validation_samples` of them at most, shared among the processes.
    """
    count = min(recipe.validation_samples, len(samples))
    chosen = torch.randperm(len(samples), generator=generator(recipe.seed, VALIDATION))[:count]
    parts = [
        part
        for rows in samples.by_size.values()
        for part in in_parts([row for row in chosen.tolist() if row in rows], recipe.micro_batch)
    ]
    sums: Row = {}
    turns = math.ceil(len(parts) / accelerator.num_processes)
    for turn in range(turns):  # the same for all: FSDP's processes call the network in step
        place = turn * accelerator.num_processes + accelerator.process_index
        part = parts[place % len(parts)]
        batch = samples.batch(part)
        with accelerator.autocast():
            loss, pictures = _draw(customizer, batch, part, recipe, how or Drawing())
        if not torch.isfinite(pictures).all():
            names = ", ".join(batch.names)
            raise WorkFailed(f"validation: a picture of {names} is not finite; lower the learning rate")
        row = {"diffusion_loss": float(loss)} | parts_of(reward(pictures, batch.anchors))
        for key, value in row.items():
            sums[key] = sums.get(key, 0.0) + value * len(part) * (place < len(parts))
    keys = ["diffusion_loss", *REWARD_PARTS]
    totals = accelerator.reduce(torch.tensor([sums.get(key, 0.0) for key in keys], device=accelerator.device), "sum")
    return {f"validation/{key}": total / count for key, total in zip(keys, totals.tolist(), strict=True)}


def _draw(
    customizer: Customizer, batch: Batch, part: Sequence[int], recipe: Recipe, how: Drawing
) -> tuple[Tensor, Tensor]:
    """The diffusion loss, and the pictures (B, 3, H, W) in [-1, 1] that the base's own sampler draws."""
    settings, shape = customizer.settings, batch.target.shape[1:]
    draws = draw_randomness(recipe.model_copy(update={"seed": VALIDATION_SEED}), shape, 0, part)
    time, noise, start = (numbers.to(batch.target) for numbers in (draws.time, draws.noise, draws.start))
    loss = diffusion_loss(customizer, batch, time, noise)
    condition = batch.condition.guided(settings.guidance.at(how.guidance))
    sigmas = customizer.sigmas(how.steps or settings.steps, batch.size).to(batch.target)
    with customizer.merged() if recipe.merge_rollout else nullcontext():
        latents = flow.rollout(lambda x, sigma: customizer.velocity(x, sigma, condition), start, sigmas)
    return loss, customizer.decode(latents).float().clamp(-1, 1)


def in_parts(rows: Sequence[int], size: int) -> list[list[int]]:
    """Rows in groups of at most `size`, in order."""
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]
