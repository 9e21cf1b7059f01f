"""ReReFL (arXiv 2509.06818, Algorithm 1): the diffusion loss, and the reward of one late step.

1. `Objective.backward`: the base's ordinary flow-matching loss on the target, conditioned on the references.
2. `late_latents`: from pure noise, steps without gradient down to the step that will have one.
3. `drawn`: that one step with gradient, the clean picture it points to, decoded.
4. the loss is `diffusion_weight * diffusion_loss - reward_weight * mean reward of the drawn pictures`.
"""

import math
from contextlib import nullcontext
from typing import ClassVar

import torch
from accelerate import Accelerator
from torch import Tensor

from umo import flow
from umo.customizers.base import Customizer, Size
from umo.customizers.condition import Condition
from umo.matching import NotFinite
from umo.rewards import MatchingReward
from umo.training import processes
from umo.training.draws import Draws
from umo.training.objectives.base import REWARD_PARTS, Objective, Row, parts_of
from umo.training.recipe import Recipe
from umo.training.samples import Batch
from umo.training.weights import Weights


class ReReFL(Objective):
    """`diffusion_weight * diffusion_loss - reward_weight * reward`, by whichever reward it is given."""

    through_reward: ClassVar[bool] = True

    def __init__(
        self,
        customizer: Customizer,
        reward: MatchingReward,
        recipe: Recipe,
        accelerator: Accelerator,
        weights: Weights,
    ) -> None:
        super().__init__(customizer, reward, recipe, accelerator, weights)
        self._kept_rollout = -1
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}  # by the first row of a part

    def backward(self, batch: Batch, draws: Draws, weight: float, part: int) -> Row:
        """Both losses, each sent backward on its own: the activations of one are held at a time."""
        row = super().backward(batch, draws, weight, part)
        guidance = self.customizer.settings.training_guidance.at(self.recipe.rollout_guidance)
        with self.accelerator.autocast():
            latents, sigma = self.late(batch, batch.condition.guided(guidance), draws, part)
            condition = batch.condition.guided(guidance.at(self.recipe.gradient_guidance))
            velocity = self.customizer.velocity(latents, sigma, condition)
            pictures = self.customizer.decode(flow.one_step_x0(latents, sigma, velocity))
            loss = self.kl(row, weight, velocity, latents, sigma, condition)
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

    def late(self, batch: Batch, condition: Condition, draws: Draws, part: int) -> tuple[Tensor, Tensor]:
        """Latents and sigma of the step with gradient; a rollout serves `updates_per_rollout` updates."""
        recipe, start = self.recipe, draws.start.to(batch.target)
        if recipe.rollout_start == "target":
            sigma = self.customizer.sigmas(recipe.rollout_steps, batch.size)[recipe.rollout_steps - draws.late]
            return flow.noised(batch.target, start, sigma.to(start)), sigma.to(start)
        if recipe.updates_per_rollout == 1:
            late = range(draws.late, draws.late + 1)
            latents, sigmas = self._roll_out(late, batch.size, condition, start)
            return latents[0], sigmas[0]
        late = range(recipe.gradient_first, recipe.gradient_last + 1)
        if draws.rollout != self._kept_rollout:
            self._kept_rollout, self._kept = draws.rollout, {}
        if part not in self._kept:
            self._kept[part] = self._roll_out(late, batch.size, condition, start)
        latents, sigmas = self._kept[part]
        return latents[late.index(draws.late)], sigmas[late.index(draws.late)]

    def _roll_out(self, late: range, size: Size, condition: Condition, start: Tensor) -> tuple[Tensor, Tensor]:
        with self.customizer.merged() if self.recipe.merge_rollout else nullcontext():
            return late_latents(self.customizer, self.recipe.rollout_steps, late, size, condition, start)


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
