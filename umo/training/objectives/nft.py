"""Negative-aware fine-tuning (DiffusionNFT, arXiv 2509.16117): what was drawn well pulls, what was drawn badly pushes.

1. The sampling policy draws a group of pictures for each sample, by any solver: only the clean latents are kept.
2. Their rewards, compared within the group, become optimality probabilities r in [0, 1].
3. The latents are noised anew, and the loss is the flow-matching loss of an implicit positive policy, weighted by r,
   and of an implicit negative one, weighted by 1 - r. No likelihood and no gradient of the reward is needed.

Where it differs from the paper: the squared error is that of the velocity, without the paper's adaptive weight; the
sampling policy is the average of the recipe's `ema`, taken at each rollout, instead of an average with a schedule of
its own; rewards are normalised by their group's standard deviation; each picture has one time an update; a diffusion
loss on the target may stand beside it (`diffusion_weight`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from umo import flow
from umo.training.draws import Draws, draw_forward, draw_starts
from umo.training.objectives.base import Row
from umo.training.objectives.group import Grouped
from umo.training.samples import Batch

Drawn = tuple[Row, Tensor, Tensor]  # figures, (K, B, C, h, w) clean latents, (K, B) optimality


class NFT(Grouped):
    """`diffusion_weight * diffusion_loss + reward_weight * nft_loss`."""

    _old: Sequence[Tensor] | None = None  # weights of the sampling policy; None: the present ones

    def backward(self, batch: Batch, draws: Draws, weight: float, part: int) -> Row:
        """See `Objective.backward`."""
        row = super().backward(batch, draws, weight, part)
        if draws.rollout != self._kept_rollout:
            same = not self.recipe.ema and self.recipe.updates_per_rollout == 1
            self._old = None if same else self.weights.copies()
        figures, latents, optimality = self.kept(draws, part, lambda: self._draw(batch, draws))
        row |= figures
        share = 1 / len(latents)
        for k, clean in enumerate(latents):
            time, noise = (x.to(clean) for x in draw_forward(self.recipe, clean.shape[1:], draws, k))
            noisy = flow.noised(clean, noise, time)
            old = self._old_velocity(noisy, time, batch)
            with self.accelerator.autocast():
                velocity = self.customizer.velocity(noisy, time, batch.condition)
                kl = self.kl(row, weight, velocity, noisy, time, batch.condition, share)
            old = velocity.detach() if old is None else old
            losses = nft_loss(velocity, old, flow.velocity(clean, noise), optimality[k], self.recipe.beta)
            loss = losses.mean()
            row["nft_loss"] = row.get("nft_loss", 0.0) + share * float(loss.detach())
            self.accelerator.backward(weight * share * self.recipe.reward_weight * loss + kl)
        return row

    @torch.no_grad()
    def _draw(self, batch: Batch, draws: Draws) -> Drawn:
        guidance = self.customizer.settings.training_guidance.at(self.recipe.rollout_guidance)
        condition = batch.condition.guided(guidance)
        sigmas = self.customizer.sigmas(self.recipe.rollout_steps, batch.size).to(batch.target)
        drawn = []
        with self.weights.replaced(self._old), self.merged(), self.accelerator.autocast():
            for k in range(self.recipe.group_size):
                start = draw_starts(self.recipe, batch.target.shape[1:], draws, k).to(batch.target)
                drawn.append(flow.rollout(lambda x, s: self.customizer.velocity(x, s, condition), start, sigmas))
        latents = torch.stack(drawn)
        figures, advantages = self.judged(latents, batch.anchors)
        return figures, latents, (1 + advantages / self.recipe.advantage_clip) / 2

    @torch.no_grad()
    def _old_velocity(self, noisy: Tensor, time: Tensor, batch: Batch) -> Tensor | None:
        """Of the sampling policy; None where it is the present one."""
        if self._old is None:
            return None
        with self.weights.replaced(self._old), self.accelerator.autocast():
            return self.customizer.velocity(noisy, time, batch.condition)


def nft_loss(velocity: Tensor, old: Tensor, target: Tensor, optimality: Tensor, beta: float) -> Tensor:
    """`r |v+ - v|^2 + (1 - r) |v- - v|^2`, (B,) means over a sample's numbers.

    The implicit policies are `v+ = (1 - beta) v_old + beta v_theta` and `v- = (1 + beta) v_old - beta v_theta`.

    Args:
        velocity: v_theta, (B, ...), with gradient.
        old: v_old, that of the sampling policy.
        target: v, the noise minus the drawn latents.
        optimality: r, (B,) in [0, 1].
    """
    positive, negative = (1 - beta) * old + beta * velocity, (1 + beta) * old - beta * velocity
    errors = [(implicit - target).float().square().flatten(1).mean(dim=1) for implicit in (positive, negative)]
    return optimality * errors[0] + (1 - optimality) * errors[1]
