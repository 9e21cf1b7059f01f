"""Group-relative policy optimisation of a flow (Flow-GRPO, arXiv 2505.05470; MixGRPO, arXiv 2507.21802).

1. For each sample, denoise from one noise by Euler steps (ODE) down to a run of `sde_steps` steps somewhere in the
   window `gradient_first` to `gradient_last`. There the group parts: each of its pictures takes these steps with noise
   of its own (SDE, the same marginals), then Euler steps to the end.
2. A picture's advantage is its reward, normalised within the group.
3. The loss is the clipped surrogate of the ratio of the transitions' probabilities, present by sampling policy.

Where it differs from the papers: a group shares its first noise, so that its pictures differ by the trained steps alone
(as Flow-GRPO-Fast); the window does not move during the run (MixGRPO's does); the KL is the plain squared distance of
the velocities; a diffusion loss on the target may stand beside it (`diffusion_weight`). As in Flow-GRPO's code, a
log-probability is the mean over the latents' numbers instead of the sum, so `clip_range` is small.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from umo import flow
from umo.training.draws import Draws, draw_sde_noise, draw_sde_start
from umo.training.objectives.base import Row
from umo.training.objectives.group import Grouped
from umo.training.samples import Batch


@dataclass
class Transition:
    """An SDE step that some of a group take from the same latents.

    Attributes:
        latents: (B, C, h, w) before it.
        sigma, to: scalars, before and after it.
        drawn: (K', B, C, h, w) after it, of K' members of the group.
        advantages: (K', B).
        old: (K', B) log-probabilities by the sampling policy; None before the first update.
    """

    latents: Tensor
    sigma: Tensor
    to: Tensor
    drawn: Tensor
    advantages: Tensor
    old: Tensor | None = None


Paths = tuple[Row, list[Transition]]


class GRPO(Grouped):
    """`diffusion_weight * diffusion_loss + reward_weight * clipped surrogate`."""

    def backward(self, batch: Batch, draws: Draws, weight: float, part: int) -> Row:
        """See `Objective.backward`."""
        row = super().backward(batch, draws, weight, part)
        guidance = self.customizer.settings.training_guidance.at(self.recipe.rollout_guidance)
        # The policy is that of the SDE steps, in the rollout as in the loss.
        condition = batch.condition.guided(guidance.at(self.recipe.gradient_guidance))
        figures, path = self.kept(draws, part, lambda: self._draw(batch, draws))
        row |= figures | {"clipped": 0.0}
        for one in path:
            share = len(one.drawn) / (self.recipe.group_size * self.recipe.sde_steps)
            with self.accelerator.autocast():
                velocity = self.customizer.velocity(one.latents, one.sigma, condition)
                kl = self.kl(row, weight, velocity, one.latents, one.sigma, condition, share)
            mean, std = sde_step(one.latents, velocity.float(), one.sigma, one.to, self.recipe.sde_noise)
            logs = log_probability(one.drawn, mean, std)
            one.old = logs.detach() if one.old is None else one.old
            ratio = (logs - one.old).exp()
            loss = -clipped_surrogate(ratio, one.advantages, self.recipe.clip_range).mean()
            row["clipped"] += share * float(((ratio - 1).abs() > self.recipe.clip_range).float().mean())
            self.accelerator.backward(weight * share * self.recipe.reward_weight * loss + kl)
        return row

    @torch.no_grad()
    def _draw(self, batch: Batch, draws: Draws) -> Paths:
        recipe, velocity_of = self.recipe, self.customizer.velocity
        guidance = self.customizer.settings.training_guidance.at(recipe.rollout_guidance)
        ode, sde = (batch.condition.guided(one) for one in (guidance, guidance.at(recipe.gradient_guidance)))
        sigmas = self.customizer.sigmas(recipe.rollout_steps, batch.size).to(batch.target)
        first = draw_sde_start(recipe, draws.rollout)
        after = first + recipe.sde_steps

        def velocity(x: Tensor, sigma: Tensor) -> Tensor:
            return velocity_of(x, sigma, ode)

        steps, clean = [], []
        with self.merged(), self.accelerator.autocast():
            parting = flow.rollout(velocity, draws.start.to(batch.target), sigmas, stop=first)
            shared = velocity_of(parting, sigmas[first], sde)
            for k in range(recipe.group_size):
                path = [parting]
                for step in range(first, after):
                    v = shared if step == first else velocity_of(path[-1], sigmas[step], sde)
                    mean, std = sde_step(path[-1], v.float(), sigmas[step], sigmas[step + 1], recipe.sde_noise)
                    noise = draw_sde_noise(recipe, mean.shape[1:], draws, k, step)
                    path.append(mean + std * noise.to(mean))
                steps.append(path)
                clean.append(flow.rollout(velocity, path[-1], sigmas, start=after))
        figures, advantages = self.judged(torch.stack(clean), batch.anchors)
        drawn = torch.stack([path[1] for path in steps])
        transitions = [Transition(parting, sigmas[first], sigmas[first + 1], drawn, advantages)]
        transitions += [
            Transition(path[s], sigmas[first + s], sigmas[first + s + 1], path[s + 1][None], advantages[k : k + 1])
            for k, path in enumerate(steps)
            for s in range(1, recipe.sde_steps)
        ]
        return figures, transitions


def sde_step(latents: Tensor, velocity: Tensor, sigma: Tensor, to: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Mean (B, ...) and standard deviation, a scalar, of a step of the SDE with the flow's marginals.

    `dx = [v + g^2 / (2 sigma) (x + (1 - sigma) v)] dsigma + g dw`, `g = noise sqrt(sigma / (1 - sigma))`; at sigma = 1,
    where g has no bound, `to` stands for sigma in its denominator, as in Flow-GRPO's code.

    Args:
        latents, velocity: (B, ...) at `sigma`, a scalar.
        to: the next sigma, below it.
        noise: a of Flow-GRPO; 0 is the Euler step.
    """
    step = to - sigma
    squared = noise**2 * sigma / (1 - torch.where(sigma < 1, sigma, to))
    mean = latents + (velocity + squared / (2 * sigma) * (latents + (1 - sigma) * velocity)) * step
    return mean, (squared * -step).sqrt()


def log_probability(drawn: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(K, B) means over the numbers of `drawn` (K, B, ...) of their log-probabilities in N(mean (B, ...), std)."""
    logs = -((drawn - mean) ** 2) / (2 * std**2) - std.log() - math.log(2 * math.pi) / 2
    return logs.flatten(2).mean(dim=2)


def clipped_surrogate(ratio: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """PPO's: `min(ratio A, clip(ratio, 1 - clip_range, 1 + clip_range) A)`, elementwise."""
    return torch.minimum(ratio * advantages, ratio.clamp(1 - clip_range, 1 + clip_range) * advantages)
