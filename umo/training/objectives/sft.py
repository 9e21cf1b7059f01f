"""Supervised fine-tuning: the base's ordinary flow-matching loss alone. The control of all that have a reward."""

from typing import ClassVar

from accelerate import Accelerator
from torch import Tensor

from umo import flow
from umo.customizers.base import Customizer
from umo.rewards import MatchingReward
from umo.training.draws import Draws
from umo.training.recipe import Recipe
from umo.training.samples import Batch

Row = dict[str, float]


class Sft:
    """`diffusion_weight * diffusion_loss`."""

    rewarded: ClassVar[bool] = False  # whether weights are chosen by the reward on validation people

    def __init__(
        self, customizer: Customizer, reward: MatchingReward, recipe: Recipe, accelerator: Accelerator
    ) -> None:
        self.customizer, self.reward, self.recipe, self.accelerator = customizer, reward, recipe, accelerator

    def backward(self, batch: Batch, draws: Draws, weight: float, part: int) -> Row:
        """Add the gradient of some samples of an update; returns their figures.

        Args:
            weight: of these samples among all of the update.
            part: the first of their rows in the update's batch, the same for every update of a rollout.
        """
        with self.accelerator.autocast():
            time, noise = draws.time.to(batch.target), draws.noise.to(batch.target)
            diffusion = diffusion_loss(self.customizer, batch, time, noise)
        self.accelerator.backward(weight * self.recipe.diffusion_weight * diffusion)
        return {"diffusion_loss": float(diffusion.detach())}


def diffusion_loss(customizer: Customizer, batch: Batch, time: Tensor, noise: Tensor) -> Tensor:
    """L_diff of the paper, a scalar, at the sigmas `time` (B,) in (0, 1) and with `noise` (B, C, h, w)."""
    return flow.loss(
        lambda x, sigma: customizer.velocity(x, sigma, batch.condition), batch.target, noise, time.to(batch.target)
    )
