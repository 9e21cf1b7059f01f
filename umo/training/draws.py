"""What is drawn at random in training: a function of a key alone, whatever came before and however a batch is split."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from umo import flow
from umo.training.recipe import Recipe

BATCH, LATE, DIFFUSION, START, VALIDATION, TEXT, GROUP, FORWARD, SDE_START, SDE = range(
    10
)  # what a generator's numbers are for: a part of its key


@dataclass(frozen=True)
class Draws:
    """The random numbers of a batch, each sample's from its own generator, so that no split of a batch changes them.

    Attributes:
        time: (B,) in [0, 1], of the diffusion loss.
        noise: (B, C, h, w), of the diffusion loss.
        start: (B, C, h, w), of the rollout.
        late: which step has the gradient, counted from the end; 1 is the last. One for the whole batch.
        rollout: number of the rollout that the update belongs to.
        step, rows: what it was drawn for, as `draw_randomness` takes them.
        unprompted: which of the B samples lose their prompt; the same in all updates of a rollout.
    """

    time: Tensor
    noise: Tensor
    start: Tensor
    late: int
    rollout: int = 0
    step: int = 0
    rows: tuple[int, ...] = ()
    unprompted: tuple[int, ...] = ()


def draw_randomness(recipe: Recipe, shape: Sequence[int], step: int, rows: Sequence[int]) -> Draws:
    """What update `step` draws for the samples at `rows` of its batch; a function of its arguments alone.

    `shape` is C, h, w of the latents. Updates of one rollout share its noise and take different late steps.
    """
    rollout, turn = divmod(step, recipe.updates_per_rollout)
    steps = recipe.gradient_last - recipe.gradient_first + 1
    late = torch.randperm(steps, generator=generator(recipe.seed, LATE, rollout))
    own = [generator(recipe.seed, DIFFUSION, step, row) for row in rows]
    starts = [torch.randn(*shape, generator=generator(recipe.seed, START, rollout, row)) for row in rows]
    return Draws(
        time=torch.cat([_time(recipe, one) for one in own]),
        noise=torch.stack([torch.randn(*shape, generator=one) for one in own]),
        start=torch.stack(starts),
        late=recipe.gradient_first + int(late[turn % steps]),
        rollout=rollout,
        step=step,
        rows=tuple(rows),
        unprompted=tuple(
            k
            for k, row in enumerate(rows)
            if recipe.text_dropout and _share(recipe.seed, TEXT, rollout, row) < recipe.text_dropout
        ),
    )


def draw_starts(recipe: Recipe, shape: Sequence[int], draws: Draws, member: int) -> Tensor:
    """(B, C, h, w) noise that a member of each sample's group starts from."""
    return _normal(shape, draws, recipe.seed, GROUP, draws.rollout, member)


def draw_forward(recipe: Recipe, shape: Sequence[int], draws: Draws, member: int) -> tuple[Tensor, Tensor]:
    """(B,) times and (B, C, h, w) noise with which a member's clean latents are noised in an update."""
    own = [generator(recipe.seed, FORWARD, draws.step, member, row) for row in draws.rows]
    times = torch.cat([_time(recipe, one) for one in own])
    return times, torch.stack([torch.randn(*shape, generator=one) for one in own])


def draw_sde_start(recipe: Recipe, rollout: int) -> int:
    """The first of a rollout's `sde_steps` steps with noise, counted from the rollout's beginning."""
    places = recipe.gradient_last - recipe.gradient_first + 2 - recipe.sde_steps
    place = int(torch.randint(places, (), generator=generator(recipe.seed, SDE_START, rollout)))
    return recipe.rollout_steps - recipe.gradient_last + place


def draw_sde_noise(recipe: Recipe, shape: Sequence[int], draws: Draws, member: int, step: int) -> Tensor:
    """(B, C, h, w) of a step of a rollout for a member of each sample's group."""
    return _normal(shape, draws, recipe.seed, SDE, draws.rollout, member, step)


def _normal(shape: Sequence[int], draws: Draws, *key: int) -> Tensor:
    return torch.stack([torch.randn(*shape, generator=generator(*key, row)) for row in draws.rows])


def _time(recipe: Recipe, own: torch.Generator) -> Tensor:
    """(1,)"""
    if recipe.time == "uniform":
        return flow.uniform(1, own, by=math.exp(recipe.time_mu))
    return flow.logit_normal(1, own, recipe.time_mean, recipe.time_std)


def _share(*key: int) -> float:
    """Uniform in [0, 1)."""
    return float(torch.rand((), generator=generator(*key)))


def generator(*key: int) -> torch.Generator:
    """A random generator of its own for every key of numbers >= 0."""
    state = np.random.SeedSequence(key).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)
