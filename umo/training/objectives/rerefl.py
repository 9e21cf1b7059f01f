"""ReReFL (arXiv 2509.06818, Algorithm 1): the diffusion loss, and the reward of one late step.

1. `Objective.backward`: the base's ordinary flow-matching loss on the target, conditioned on the references.
2. `late_latents`: from pure noise, steps without gradient down to the step that will have one.
3. `ReReFL.clean`: that one step with gradient, the clean picture it points to; decoded.
4. the loss is `diffusion_weight * diffusion_loss - reward_weight * mean reward of the drawn pictures`.

Cheaper forms, by the recipe: fewer rollout steps, several updates a rollout, no rollout (`rollout_start`), two steps
with gradient, the rollout's own picture for the reward.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from umo import flow
from umo.customizers.base import Customizer, Size
from umo.customizers.condition import Condition
from umo.matching import NotFinite
from umo.training import processes
from umo.training.draws import Draws
from umo.training.objectives.base import REWARD_PARTS, Objective, Row, parts_of
from umo.training.samples import Batch


@dataclass(frozen=True)
class Late:
    """Where the step with gradient starts.

    Attributes:
        latents: (B, C, h, w) at `sigma`.
        sigma: a scalar, shifted.
        end: (B, C, h, w), the clean latents that the rollout ends with, where the reward is to see them.
    """

    latents: Tensor
    sigma: Tensor
    end: Tensor | None = None


class ReReFL(Objective):
    """`diffusion_weight * diffusion_loss - reward_weight * reward`, by whichever reward it is given."""

    def backward(self, batch: Batch, draws: Draws, weight: float, part: int) -> Row:
        """Both losses, each sent backward on its own: the activations of one are held at a time."""
        row = super().backward(batch, draws, weight, part)
        guidance = self.customizer.settings.training_guidance.at(self.recipe.rollout_guidance)
        with self.accelerator.autocast():
            late = self.late(batch, batch.condition.guided(guidance), draws, part)
            condition = batch.condition.guided(guidance.at(self.recipe.gradient_guidance))
            steps: list[tuple[Tensor, Tensor, Tensor]] = []

            def velocity(latents: Tensor, sigma: Tensor) -> Tensor:
                predicted = self.customizer.velocity(latents, sigma, condition)
                steps.append((predicted, latents, sigma))
                return predicted

            pictures = self.customizer.decode(self.clean(late, velocity, draws, batch.size))
            loss = sum(self.kl(row, weight, *step, condition, share=1 / len(steps)) for step in steps)
        figures, reward = self._rewarded(pictures, batch)
        if reward is not None:
            loss = loss - weight * self.recipe.reward_weight * reward
        elif processes.sharded():  # its processes go through the network in step, backward too
            loss = loss + 0 * pictures.sum()
        if isinstance(loss, Tensor):
            self.accelerator.backward(loss)
        return row | figures

    def _rewarded(self, pictures: Tensor, batch: Batch) -> tuple[Row, Tensor | None]:
        """What is logged, and the mean reward, None where it has no gradient."""
        unknown = dict.fromkeys(REWARD_PARTS, math.nan)
        if not torch.isfinite(pictures).all():
            return unknown, None
        try:
            reward = self.reward(pictures.float(), batch.anchors, places=batch.places)
            return parts_of(reward), self.capped(reward.reward).mean() if reward.reward.requires_grad else None
        except NotFinite:  # embeddings of a picture out of all bounds
            return unknown, None

    def late(self, batch: Batch, condition: Condition, draws: Draws, part: int) -> Late:
        """Where the step with gradient starts; a rollout serves `updates_per_rollout` updates."""
        recipe, start = self.recipe, draws.start.to(batch.target)
        if recipe.rollout_start == "target":
            sigma = self.customizer.sigmas(recipe.rollout_steps, batch.size)[recipe.rollout_steps - draws.late]
            return Late(flow.noised(batch.target, start, sigma.to(start)), sigma.to(start))
        if recipe.updates_per_rollout == 1:
            return self._roll_out(range(draws.late, draws.late + 1), batch.size, condition, start)[draws.late]
        late = range(recipe.gradient_first, recipe.gradient_last + 1)
        return self.kept(draws, part, lambda: self._roll_out(late, batch.size, condition, start))[draws.late]

    def _roll_out(self, late: range, size: Size, condition: Condition, start: Tensor) -> dict[int, Late]:
        recipe = self.recipe
        stops = range(late.stop) if recipe.reward_picture == "rollout" else late
        with self.merged():
            latents, sigmas = late_latents(self.customizer, recipe.rollout_steps, stops, size, condition, start)
        end = latents[0] if stops.start == 0 else None
        return {step: Late(latents[stops.index(step)], sigmas[stops.index(step)], end) for step in late}

    def clean(self, late: Late, velocity: flow.Velocity, draws: Draws, size: Size) -> Tensor:
        """(B, C, h, w) clean latents that the reward is to see, with the gradient of the step or steps."""
        recipe, latents = self.recipe, late.latents
        sigmas = self.customizer.sigmas(recipe.rollout_steps, size).to(latents).flip(0)  # by the steps from the end
        middle = draws.late // 2 if recipe.gradient_steps == 2 else 0
        stops = sorted({draws.late, middle, 0}, reverse=True)
        clean = flow.rollout(velocity, latents, sigmas[stops])
        return clean if late.end is None else flow.pinned(clean, late.end)


@torch.no_grad()
def late_latents(
    customizer: Customizer, steps: int, late: range, size: Size, condition: Condition, start: Tensor
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


def drawn(customizer: Customizer, latents: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
    """The step with gradient: (B, 3, H, W) pictures, about in [-1, 1], that latents (B, C, h, w) at sigma point to.

    Sigma is a scalar, shifted as `Customizer.sigmas` gives it.
    """
    clean = flow.one_step_x0(latents, sigma, customizer.velocity(latents, sigma, condition))
    return customizer.decode(clean)
