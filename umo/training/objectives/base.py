"""What all objectives have in common: diffusion loss, KL to the frozen base, a reward's ceiling, a kept rollout."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from umo import flow
from umo.customizers.base import Customizer
from umo.customizers.condition import Condition
from umo.matching import NONE, assign, doubled
from umo.rewards import MatchingReward, Reward
from umo.training.draws import Draws
from umo.training.progress import Row
from umo.training.recipe import Recipe
from umo.training.samples import Batch
from umo.training.weights import Weights

REWARD_PARTS = ("reward", "matched", "unmatched", "no_face", "faces", "absent", "doubled", "surplus", "placed")
Rollout = TypeVar("Rollout")


class Objective:
    """How losses move weights. Here `diffusion_weight * diffusion_loss`, which every objective has; others add to it.

    Attributes:
        rewarded: weights are chosen by the reward on validation people.
        grouped: pictures are compared within groups of `group_size`.
    """

    rewarded: ClassVar[bool] = True
    grouped: ClassVar[bool] = False

    def __init__(
        self,
        customizer: Customizer,
        reward: MatchingReward,
        recipe: Recipe,
        accelerator: Accelerator,
        weights: Weights,
    ) -> None:
        self.customizer, self.reward, self.recipe, self.accelerator = customizer, reward, recipe, accelerator
        self.weights = weights
        self._kept_rollout = -1
        self._kept: dict[int, Any] = {}  # by the first row of a part

    def kept(self, draws: Draws, part: int, roll_out: Callable[[], Rollout]) -> Rollout:
        """The rollout of some samples: made at its first update, then kept for `updates_per_rollout`."""
        if draws.rollout != self._kept_rollout:
            self._kept_rollout, self._kept = draws.rollout, {}
        if part not in self._kept:
            self._kept[part] = roll_out()
        return self._kept[part]

    def merged(self) -> AbstractContextManager[None]:
        """Of a rollout (`merge_rollout`)."""
        return self.customizer.merged() if self.recipe.merge_rollout else nullcontext()

    def backward(self, batch: Batch, draws: Draws, weight: float, part: int) -> Row:
        """Add the gradient of some samples of an update; returns their figures.

        Without a weight the diffusion loss is not computed.

        Args:
            weight: of these samples among all of the update.
            part: the first of their rows in the update's batch, the same for every update of a rollout.
        """
        row: Row = {}
        if not self.recipe.diffusion_weight:
            return row
        with self.accelerator.autocast():
            time, noise = draws.time.to(batch.target), draws.noise.to(batch.target)
            latents = flow.noised(batch.target, noise, time)
            velocity = self.customizer.velocity(latents, time, batch.condition)
            diffusion = (velocity - flow.velocity(batch.target, noise)).float().square().mean()
            loss = weight * self.recipe.diffusion_weight * diffusion
            if not self.rewarded:
                loss = loss + self.kl(row, weight, velocity, latents, time, batch.condition)
        self.accelerator.backward(loss)
        return row | {"diffusion_loss": float(diffusion.detach())}

    def kl(
        self,
        row: Row,
        weight: float,
        velocity: Tensor,
        latents: Tensor,
        sigma: Tensor,
        condition: Condition,
        share: float = 1.0,
    ) -> Tensor | float:
        """`weight * velocity_kl` times the mean squared distance of a velocity from the frozen base's, LoRA off.

        It is the KL of two Gaussian transitions with these means, but for a factor that depends on sigma alone. The
        distance is noted in `row`. 0.0 where `velocity_kl` is 0.

        Args:
            weight: of the samples, as in `backward`.
            velocity: (B, C, h, w), with gradient, at the three arguments after it.
            share: of this velocity among the samples' own; their shares add up to 1.
        """
        if not self.recipe.velocity_kl:
            return 0.0
        with torch.no_grad(), self.customizer.without_lora():
            base = self.customizer.velocity(latents, sigma, condition)
        distance = (velocity - base).float().square().mean()
        row["velocity_kl"] = row.get("velocity_kl", 0.0) + share * float(distance.detach())
        return weight * share * self.recipe.velocity_kl * distance

    def capped(self, reward: Tensor) -> Tensor:
        """Rewards, at most `reward_ceiling`: above it they have no gradient."""
        return reward if self.recipe.reward_ceiling is None else reward.clamp(max=self.recipe.reward_ceiling)


def diffusion_loss(customizer: Customizer, batch: Batch, time: Tensor, noise: Tensor) -> Tensor:
    """L_diff of the paper, a scalar, at the sigmas `time` (B,) in (0, 1) and with `noise` (B, C, h, w)."""
    return flow.loss(
        lambda x, sigma: customizer.velocity(x, sigma, batch.condition), batch.target, noise, time.to(batch.target)
    )


def parts_of(reward: Reward) -> Row:
    """A reward's figures, means over its pictures.

    `matched` is the cosine over the matching, a reference without a face counting 0; `unmatched` that of all other
    pairs, 0 where there are none; `absent`, `doubled` and `surplus` the share of pictures with such a person, `placed`
    of those in which somebody absent has a gradient.
    """
    matched, unmatched, wrong = [], [], []
    for cosines in reward.cosines:
        numbers = cosines.double().cpu().numpy()
        people, faces = numbers.shape
        assignment = assign(numbers)
        pairs = np.zeros(numbers.shape, bool)
        (references,) = np.nonzero(assignment != NONE)
        pairs[references, assignment[references]] = True
        matched.append(numbers[pairs].sum() / people)
        unmatched.append(numbers[~pairs].mean() if (~pairs).any() else 0.0)
        wrong.append((faces < people, doubled(numbers, reward.same_person_cosine) > 0, faces > people))
    values = (reward.reward.detach().mean(), np.mean(matched), np.mean(unmatched), reward.no_face.float().mean())
    placed = np.count_nonzero(reward.placed) / len(reward.cosines)
    counts = (reward.n_faces.float().mean(), *np.mean(wrong, axis=0), placed)
    return dict(zip(REWARD_PARTS, map(float, (*values, *counts)), strict=True))
