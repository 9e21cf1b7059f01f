"""ReReFL (arXiv 2509.06818, Algorithm 1): the two losses of an update. What is drawn at random comes in as `Draws`.

1. `diffusion_loss`: the base's ordinary flow-matching loss on the target, conditioned on the references.
2. `late_latents`: from pure noise, steps without gradient down to the step that will have one.
3. `drawn`: that one step with gradient, the clean picture it points to, decoded.
4. the loss is `diffusion_weight * diffusion_loss - reward_weight * mean reward of the drawn pictures`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from umo import flow
from umo.customizers.base import Customizer, Size
from umo.training.recipe import Recipe

BATCH, LATE, DIFFUSION, START, VALIDATION = range(5)  # what a generator's numbers are for: a part of its key


@dataclass(frozen=True)
class Batch:
    """Encoded samples of one size.

    Attributes:
        names: of the samples, B.
        size: height and width of their pictures.
        condition: of the family, with the training guidance.
        target: (B, C, h, w) latents.
        anchors: (M_i, d) a sample.
    """

    names: tuple[str, ...]
    size: Size
    condition: Any
    target: Tensor
    anchors: list[Tensor]


@dataclass(frozen=True)
class Draws:
    """The random numbers of a batch, each sample's from its own generator, so that no split of a batch changes them.

    Attributes:
        time: (B,) in (0, 1), of the diffusion loss.
        noise: (B, C, h, w), of the diffusion loss.
        start: (B, C, h, w), of the rollout.
        late: which step has the gradient, counted from the end; 1 is the last. One for the whole batch.
    """

    time: Tensor
    noise: Tensor
    start: Tensor
    late: int


def draw_randomness(recipe: Recipe, shape: Sequence[int], step: int, rows: Sequence[int]) -> Draws:
    """What update `step` draws for the samples at `rows` of its batch; a function of its arguments alone.

    Updates of one rollout share its noise and take different late steps.

    Args:
        shape: C, h, w of the latents.
    """
    rollout, turn = divmod(step, recipe.updates_per_rollout)
    steps = recipe.gradient_last - recipe.gradient_first + 1
    late = torch.randperm(steps, generator=generator(recipe.seed, LATE, rollout))
    own = [generator(recipe.seed, DIFFUSION, step, row) for row in rows]
    starts = [torch.randn(*shape, generator=generator(recipe.seed, START, rollout, row)) for row in rows]
    return Draws(
        time=torch.cat([flow.logit_normal(1, one, recipe.time_mean, recipe.time_std) for one in own]),
        noise=torch.stack([torch.randn(*shape, generator=one) for one in own]),
        start=torch.stack(starts),
        late=recipe.gradient_first + int(late[turn]),
    )


def generator(*key: int) -> torch.Generator:
    """A random generator of its own for every key of numbers >= 0."""
    state = np.random.SeedSequence(key).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)


def diffusion_loss(customizer: Customizer, batch: Batch, time: Tensor, noise: Tensor) -> Tensor:
    """L_diff of the paper, a scalar.

    Args:
        time: (B,) sigmas in (0, 1).
        noise: (B, C, h, w).
    """
    return flow.loss(
        lambda x, sigma: customizer.velocity(x, sigma, batch.condition), batch.target, noise, time.to(batch.target)
    )


@torch.no_grad()
def late_latents(
    customizer: Customizer, steps: int, late: range, size: Size, condition: Any, start: Tensor
) -> tuple[Tensor, Tensor]:
    """Roll out from noise without gradient, down to steps that may have one.

    Args:
        steps: T, of the whole rollout.
        late: the steps to stop before, counted from the end (1 is the last), such as `range(Ts, Te + 1)`.
        condition: of B samples, with the guidance of the rollout.
        start: (B, C, h, w) noise.

    Returns:
        (K, B, C, h, w) latents and (K,) shifted sigmas before each of the K steps, in the order of `late`.
    """
    sigmas = customizer.sigmas(steps, size).to(start.device)

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        return customizer.velocity(x, sigma, condition)

    latents, at = [start], 0
    for before in reversed(late):
        latents.append(flow.rollout(velocity, latents[-1], sigmas, start=at, stop=steps - before))
        at = steps - before
    return torch.stack(latents[:0:-1]), torch.stack([sigmas[steps - before] for before in late])


def drawn(customizer: Customizer, latents: Tensor, sigma: Tensor, condition: Any) -> Tensor:
    """The step with gradient: (B, 3, H, W) pictures, about in [-1, 1], that the latents at sigma point to.

    Args:
        latents: (B, C, h, w) at sigma.
        sigma: a scalar, shifted as `Customizer.sigmas` gives it.
    """
    clean = flow.one_step_x0(latents, sigma, customizer.velocity(latents, sigma, condition))
    return customizer.decode(clean)
