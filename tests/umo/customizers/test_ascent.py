"""Updates of every family raise a reward: that its pictures are of one colour."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.umo.customizers.conftest import FAMILIES, PROMPTS, people
from umo import flow
from umo.customizers import load
from umo.customizers.base import seeded_noise
from umo.training.objectives.rerefl import drawn, late_latents

STEPS, UPDATES = 3, 3


@pytest.mark.parametrize("family", FAMILIES)
def test_updates_raise_the_reward_of_what_is_drawn(family: str, folders: dict[str, Path]) -> None:
    base, size = load(folders[family]), FAMILIES[family].size
    colour = torch.tensor([0.6, -0.4, 0.2]).reshape(1, 3, 1, 1)

    def reward(pictures: Tensor) -> Tensor:
        return -(pictures - colour).square().mean()

    base.add_lora(2)
    condition = base.condition(PROMPTS[:2], people()[:2])
    noise = seeded_noise(base, [1, 2], size)

    @torch.no_grad()
    def rewarded() -> float:
        sigmas = base.sigmas(STEPS, size)
        latents = flow.rollout(lambda x, sigma: base.velocity(x, sigma, condition), noise, sigmas)
        return float(reward(base.decode(latents)))

    weights = [weight for weight in base.transformer.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, 2e-2)
    before = rewarded()
    for update in range(UPDATES):
        late = 1 + update % 2
        latents, sigmas = late_latents(base, STEPS, range(late, late + 1), size, condition, noise)
        optimizer.zero_grad()
        (-reward(drawn(base, latents[0], sigmas[0], condition))).backward()
        optimizer.step()
    assert rewarded() > before
