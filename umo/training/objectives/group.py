"""Pictures drawn in groups and compared by their rewards, which need no gradient."""

import math
from typing import ClassVar

import torch
from torch import Tensor

from umo.matching import NotFinite
from umo.training.objectives.base import REWARD_PARTS, Objective, Row, parts_of

SMALL = 1e-4  # beside a group's standard deviation, as in Flow-GRPO's code


class Grouped(Objective):
    """An objective that draws `group_size` whole pictures for each sample of a batch.

    A sample's group is drawn and compared in one process; `micro_batch` samples go through the network at once, one
    picture of each. A rollout serves `updates_per_rollout` updates.
    """

    grouped: ClassVar[bool] = True

    @torch.no_grad()
    def judged(self, latents: Tensor, anchors: list[Tensor]) -> tuple[Row, Tensor]:
        """Figures and rewards of clean latents (K, B, C, h, w), a group of K for each of B samples.

        Returns:
            means over all pictures, with `reward_std`, the mean standard deviation in a group; and (K, B) advantages.
            All are NaN where a picture or a reward is not finite.
        """
        rows, rewards = [], []
        for member in latents:
            with self.accelerator.autocast():
                pictures = self.customizer.decode(member).float()
            try:
                if not torch.isfinite(pictures).all():
                    raise NotFinite
                reward = self.reward(pictures.clamp(-1, 1), anchors)
                rows.append(parts_of(reward))
                rewards.append(self.capped(reward.reward.float()))
            except NotFinite:
                rows.append(dict.fromkeys(REWARD_PARTS, math.nan))
                rewards.append(torch.full((len(pictures),), math.nan, device=latents.device))
        figures = {key: sum(row[key] for row in rows) / len(rows) for key in REWARD_PARTS}
        stacked = torch.stack(rewards).to(latents.device)
        figures["reward_std"] = float(stacked.std(dim=0, correction=0).mean())
        return figures, group_advantages(stacked, self.recipe.advantage_clip)


def group_advantages(rewards: Tensor, clip: float) -> Tensor:
    """(K, B) rewards -> how many standard deviations each is above the mean of its group, in [-clip, clip].

    A group is a column. Where all of it earn the same the advantages are 0: nothing is to be learned from it.
    """
    spread = rewards.std(dim=0, correction=0) + SMALL
    return ((rewards - rewards.mean(dim=0)) / spread).clamp(-clip, clip)
