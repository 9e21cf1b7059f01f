"""Flow matching on a straight path: pure maths, no model and no files.

The convention of FLUX and of diffusers' FlowMatchEulerDiscreteScheduler: sigma runs from 1 (noise) to 0 (picture),
`x_sigma = (1 - sigma) x0 + sigma noise`, and the velocity is `noise - x0`, the derivative of x in sigma.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]


def shift(sigmas: Tensor, by: float) -> Tensor:
    """Move sigmas towards the noise, `by * s / (1 + (by - 1) * s)`; 0 and 1 stay where they are.

    A scheduler's static shift is `by`; its dynamic shift mu (exponential) is `by = exp(mu)`.
    """
    return by * sigmas / (1 + (by - 1) * sigmas)


def linear_mu(tokens: int, base: float = 0.5, top: float = 1.15, few: int = 256, many: int = 4096) -> float:
    """FLUX's dynamic shift for a picture of `tokens` tokens: `base` at `few`, `top` at `many`, a line through both."""
    return base + (tokens - few) * (top - base) / (many - few)


def noised(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """x_sigma. x0, noise: (B, ...); sigma: (B,) or a scalar in [0, 1]."""
    sigma = _beside(sigma, x0)
    return (1 - sigma) * x0 + sigma * noise


def velocity(x0: Tensor, noise: Tensor) -> Tensor:
    """What a model learns to predict, the same at every sigma of the path."""
    return noise - x0


def one_step_x0(x: Tensor, sigma: Tensor, velocity: Tensor) -> Tensor:
    """The clean latents (B, ...) that a velocity at x points to; sigma, (B,) or a scalar, is the *shifted* one of x."""
    return x - _beside(sigma, x) * velocity


def pinned(latents: Tensor, at: Tensor) -> Tensor:
    """The values of `at` with the gradient of `latents`, both (B, ...) (straight through)."""
    return at.detach() + (latents - latents.detach())


def rollout(velocity: Velocity, latents: Tensor, sigmas: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
    """Euler steps along a schedule.

    Args:
        velocity: function of latents (B, ...) and sigma (a scalar tensor).
        latents: (B, ...) at `sigmas[start]`; pure noise where start is 0.
        sigmas: (steps + 1,) falling, the last 0, as a customizer's `sigmas` gives them.
        start: the first step to take.
        stop: the step not taken any more: the latents come back at `sigmas[stop]`. None goes to the end.

    Returns:
        (B, ...) latents at `sigmas[stop]`; the clean ones without `stop`. The gradient follows the caller's grad mode.
    """
    steps = len(sigmas) - 1
    stop = steps if stop is None else stop
    if not 0 <= start <= stop <= steps:
        raise ValueError(f"steps {start} to {stop} of a schedule of {steps}")
    for step in range(start, stop):
        latents = latents + (sigmas[step + 1] - sigmas[step]) * velocity(latents, sigmas[step])
    return latents


def logit_normal(
    count: int, generator: torch.Generator | None = None, mean: float = 0.0, std: float = 1.0, by: float = 1.0
) -> Tensor:
    """Training times (count,) in (0, 1): the sigmoid of a normal variable, then shifted `by` (Esser et al. 2024)."""
    return shift(torch.sigmoid(mean + std * torch.randn(count, generator=generator)), by)


def uniform(count: int, generator: torch.Generator | None = None, by: float = 1.0, points: int = 1000) -> Tensor:
    """Training times (count,) in [0, 1], each equally often one of as many even points, then shifted `by` (UNO)."""
    return shift(torch.linspace(1, 0, points), by)[torch.randint(points, (count,), generator=generator)]


def loss(velocity: Velocity, x0: Tensor, noise: Tensor, sigma: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared error of the predicted velocity, a scalar: the ordinary training loss, `L_diff` of the paper.

    Args:
        velocity: function of latents (B, ...) and sigma (B,).
        x0, noise: (B, ...).
        sigma: (B,) in [0, 1].
        weight: broadcastable to x0, its mean about 1; where the loss matters more. None weighs all alike.
    """
    error = (velocity(noised(x0, noise, sigma), sigma) - (noise - x0)).float().square()
    return (error if weight is None else error * weight).mean()


def _beside(sigma: Tensor, x: Tensor) -> Tensor:
    """Sigma with as many axes as x."""
    sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
    return sigma.reshape(-1, *[1] * (x.ndim - 1)) if sigma.ndim else sigma
