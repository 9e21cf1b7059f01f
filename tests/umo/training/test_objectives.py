"""NFT and GRPO against their formulas; what holds for every objective: KL, ceiling, cost, what is refused."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from tests.umo.training.conftest import SMALL, build, distance, gradient, small_base, stir
from umo.errors import BadInput, WorkFailed
from umo.rewards import Reward
from umo.training import checkpoints
from umo.training.objectives.group import group_advantages
from umo.training.objectives.grpo import clipped_surrogate, log_probability, sde_step
from umo.training.objectives.nft import nft_loss
from umo.training.recipe import Recipe
from umo.training.trainer import Trainer

FEW = {"batch": 2, "micro_batch": 2, "group_size": 2, "rollout_steps": 2, "gradient_first": 2, "gradient_last": 2}
LONG = {"rollout_steps": 3, "gradient_last": 3}
GROUPED = ("nft", "grpo")
ALL = [("sft", "rerefl"), ("mimr", "rerefl"), ("mimr", "nft"), ("mimr", "grpo")]


def few(folder: Path, objective: str = "nft", method: str = "mimr", **recipe: object) -> Trainer:
    return build(folder, method, objective=objective, **(FEW | recipe))  # type: ignore[arg-type]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Brightness:
    """A reward that is a number and has no gradient."""

    differentiable = False

    def __call__(self, pictures: Tensor, anchors: list[Tensor]) -> Reward:
        count = len(pictures)
        return Reward(
            reward=pictures.detach().mean(dim=(1, 2, 3)),
            cosines=[torch.zeros(1, 0)] * count,
            n_faces=torch.zeros(count),
            no_face=torch.zeros(count, dtype=torch.bool),
            faces=[[]] * count,
        )


# Formulas.


def test_advantages_are_deviations_within_a_group() -> None:
    rewards = numbers(5, 3)
    rewards[:, 2] = 0.25
    found = group_advantages(rewards, 1.2)
    for k in range(2):
        group = rewards[:, k].numpy()
        expected = np.clip((group - group.mean()) / group.std(), -1.2, 1.2)
        assert found[:, k].numpy() == pytest.approx(expected, abs=1e-3)
        assert found.abs()[:, k].max() == pytest.approx(1.2)
    assert torch.equal(found[:, 2], torch.zeros(5)), "nothing is to be learned where all earn the same"


def test_nft_loss_is_that_of_both_implicit_policies() -> None:
    velocity, old, target = (numbers(3, 2, 4, 5, seed=seed) for seed in range(3))
    optimality, beta = torch.tensor([0.0, 0.3, 1.0]), 0.7
    found = nft_loss(velocity, old, target, optimality, beta)
    for i, r in enumerate(optimality.tolist()):
        errors = [0.0, 0.0]
        for new, before, v in zip(*(x[i].flatten().tolist() for x in (velocity, old, target)), strict=True):
            errors[0] += (before + beta * (new - before) - v) ** 2 / 40
            errors[1] += (before - beta * (new - before) - v) ** 2 / 40
        assert float(found[i]) == pytest.approx(r * errors[0] + (1 - r) * errors[1], rel=1e-5)


def test_nft_pulls_towards_what_was_drawn_well_and_away_from_the_rest() -> None:
    """At the sampling policy the gradient is that of flow matching times beta (2 r - 1)."""
    at, target = numbers(3, 6), numbers(3, 6, seed=1)
    velocity = at.clone().requires_grad_()
    nft_loss(velocity, at, target, torch.tensor([0.0, 0.5, 0.9]), 0.5).sum().backward()
    expected = torch.tensor([-1.0, 0.0, 0.8])[:, None] * 0.5 * 2 * (at - target) / 6
    assert torch.allclose(velocity.grad, expected, atol=1e-6)


@pytest.mark.parametrize("noise", [0.0, 0.7])
def test_sde_steps_keep_the_marginals_of_the_flow(noise: float) -> None:
    """Data is N(2, 0.5): the velocity is known, and so is what arrives. All steps, the first at sigma 1 included."""
    mean, std, steps = 2.0, 0.5, 100
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20000, generator=generator)
    sigmas = torch.linspace(1, 0, steps + 1)
    for sigma, to in itertools.pairwise(sigmas):
        spread = (1 - sigma) ** 2 * std**2 + sigma**2
        off = (x - (1 - sigma) * mean) / spread
        velocity = sigma * off - (mean + (1 - sigma) * std**2 * off)
        centre, deviation = sde_step(x, velocity, sigma, to, noise)
        if not noise:
            assert deviation == 0 and torch.allclose(centre, x + (to - sigma) * velocity, atol=1e-6)
        x = centre + deviation * torch.randn(20000, generator=generator)
    assert float(x.mean()) == pytest.approx(mean, abs=0.03)
    assert float(x.std()) == pytest.approx(std, abs=0.03)


def test_the_log_probability_is_that_of_the_normal_distribution() -> None:
    drawn, mean, std = numbers(4, 2, 3, 5), numbers(2, 3, 5, seed=1), torch.tensor(0.3)
    expected = Normal(mean, std).log_prob(drawn).mean(dim=(2, 3))
    assert torch.allclose(log_probability(drawn, mean, std), expected, atol=1e-5)


def test_the_clipped_surrogate_is_ppos() -> None:
    ratios, advantages = [0.5, 0.95, 1.0, 1.05, 2.0], [-2.0, 0.0, 1.5]
    for ratio in ratios:
        for advantage in advantages:
            bounded = min(max(ratio, 0.9), 1.1)
            expected = min(ratio * advantage, bounded * advantage)
            found = clipped_surrogate(torch.tensor(ratio), torch.tensor(advantage), 0.1)
            assert float(found) == pytest.approx(expected)


# Updates.


@pytest.mark.parametrize("sde_steps", [1, 2])
def test_the_first_gradient_of_grpo_is_that_of_the_policy(tmp_path: Path, sde_steps: int) -> None:
    """Advantage times the gradient of the log-probability, written out for each picture of a group."""
    trainer = few(tmp_path, "grpo", sde_steps=sde_steps, group_size=3, diffusion_weight=0.0, **LONG)
    stir(trainer)
    found = gradient(trainer, [0, 1])
    batch, customizer = trainer.train.batch([0, 1]), trainer.customizer
    _, path = trainer.objective._kept[0]
    assert len(path) == 1 + 3 * (sde_steps - 1)
    losses = []
    for one in path:
        v = customizer.velocity(one.latents, one.sigma, batch.condition)
        squared = 0.7**2 * one.sigma / (1 - (one.sigma if one.sigma < 1 else one.to))
        drift = v + squared / 2 / one.sigma * (one.latents + (1 - one.sigma) * v)
        policy = Normal(one.latents + (one.to - one.sigma) * drift, (squared * (one.sigma - one.to)).sqrt())
        for drawn, advantages in zip(one.drawn, one.advantages, strict=True):
            losses += [-advantages[i] * policy.log_prob(drawn)[i].mean() for i in range(2)]
    trainer.optimizer.zero_grad()
    (sum(losses) / (2 * 3 * sde_steps)).backward()
    expected = torch.cat([weight.grad.flatten() for weight in trainer.weights if weight.grad is not None])
    assert distance(found, expected) < 1e-3
    assert len({float(a) for a in path[0].advantages.flatten()}) > 3


@pytest.mark.parametrize("objective", GROUPED)
def test_it_raises_a_reward_without_a_gradient(tmp_path: Path, objective: str) -> None:
    """Of the same draws again and again."""
    trainer = few(tmp_path, objective, batch=1, micro_batch=1, group_size=4, diffusion_weight=0.0)
    stir(trainer)
    trainer.objective.reward = Brightness()
    trainer._choose = lambda step: [0]  # type: ignore[method-assign]
    rewards = []
    for _ in range(4):
        trainer.progress.step, trainer.objective._kept_rollout = 0, -1
        rewards.append(trainer.update()["reward"])
    assert rewards == sorted(set(rewards)) and rewards[-1] > rewards[0] + 1e-3


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_later_updates_of_a_rollout_know_its_sampling_policy(tmp_path: Path, ema: float) -> None:
    """NFT's old velocity is that of the weights that drew, whatever the weights have become."""
    trainer = few(tmp_path, ema=ema, updates_per_rollout=2)
    stir(trainer)
    trainer.update()
    batch = trainer.train.batch([0, 1])
    clean, time = batch.target, torch.tensor([0.3, 0.6])
    before = trainer.objective._old_velocity(clean, time, batch)
    trainer.update()
    assert torch.equal(trainer.objective._old_velocity(clean, time, batch), before)
    with torch.no_grad():
        assert not torch.allclose(trainer.customizer.velocity(clean, time, batch.condition), before, atol=1e-3)


@pytest.mark.parametrize(("method", "objective"), ALL)
def test_the_kl_to_the_base_begins_at_0_and_grows(tmp_path: Path, method: str, objective: str) -> None:
    trainer = few(tmp_path, objective, method, velocity_kl=0.5)
    first, second = trainer.update(), trainer.update()
    assert first["velocity_kl"] == 0 < second["velocity_kl"] < 1


def test_the_kl_is_the_distance_from_the_base_without_its_lora(tmp_path: Path) -> None:
    trainer = few(tmp_path, velocity_kl=0.5)
    stir(trainer)
    batch = trainer.train.batch([0, 1])
    given = batch.target, torch.tensor(0.4), batch.condition
    velocity = trainer.customizer.velocity(*given)
    row: dict[str, float] = {}
    found = trainer.objective.kl(row, 0.25, velocity, *given, share=0.5)
    with torch.no_grad():
        expected = (velocity - small_base().velocity(*given)).square().mean()
    assert row["velocity_kl"] == pytest.approx(float(expected) / 2, rel=1e-4)
    assert float(found.detach()) == pytest.approx(0.25 * 0.5 * 0.5 * float(expected), rel=1e-4)
    assert all(weight.requires_grad for weight in trainer.weights)
    found.backward()
    assert any(weight.grad is not None and weight.grad.any() for weight in trainer.weights)


def test_a_reward_above_its_ceiling_pulls_no_further(tmp_path: Path) -> None:
    free, capped = (few(tmp_path, "rerefl", reward_ceiling=ceiling, diffusion_weight=0.0) for ceiling in (5.0, -5.0))
    for trainer in (free, capped):
        stir(trainer)
    assert gradient(free, [0, 1]).norm() > 0 == gradient(capped, [0, 1]).norm()
    grouped = few(tmp_path, "grpo", reward_ceiling=-5.0, diffusion_weight=0.0)
    stir(grouped)
    assert gradient(grouped, [0, 1]).norm() == 0


@pytest.mark.parametrize(("method", "objective"), ALL)
def test_evaluations_are_the_samples_that_went_through_the_transformer(
    tmp_path: Path, method: str, objective: str
) -> None:
    logged: list[dict[str, float]] = []
    trainer = build(
        tmp_path,
        method,  # type: ignore[arg-type]
        lambda step, row: logged.append(row),
        objective=objective,
        **(FEW | {"micro_batch": 1, "steps": 2, "validate_every": 2, "validation_samples": 1}),
    )
    calls, real, update = [], trainer.customizer.velocity, trainer.update

    def velocity(latents: Tensor, *others: object) -> Tensor:
        calls.append(len(latents))
        return real(latents, *others)  # type: ignore[arg-type]

    def counted() -> dict[str, float]:
        calls.append(-1)
        row = update()
        calls.append(-2)
        return row

    trainer.customizer.velocity, trainer.update = velocity, counted  # type: ignore[method-assign]
    progress = trainer.run()
    expected, inside = [0], False
    for call in calls:
        inside = call == -1 or (inside and call > 0)
        if call == -1:
            expected.append(expected[-1])
        elif inside:
            expected[-1] += call
    assert [row["evaluations"] for row in logged if "evaluations" in row] == expected[1:]
    assert progress.evaluations == expected[-1] > 0
    assert 0 == trainer.seconds[0] < trainer.seconds[1] < trainer.seconds[2]


@pytest.mark.parametrize(("method", "objective"), [*ALL[2:], ALL[0]])
def test_three_updates_without_a_finite_number_end_the_run(tmp_path: Path, method: str, objective: str) -> None:
    trainer = few(tmp_path, objective, method, steps=9, checkpoint_every=1, velocity_kl=0.1)
    real = trainer.update

    def breaks() -> dict[str, float]:
        if trainer.progress.step == 1:
            trainer.weights[1].register_hook(lambda grad: grad * math.nan)
        return real()

    trainer.update = breaks  # type: ignore[method-assign]
    with pytest.raises(WorkFailed, match="3 updates in a row without a finite reward and gradient, the last number 4"):
        trainer.run()
    state = checkpoints.newest(tmp_path / "checkpoints")
    assert state is not None and all(torch.isfinite(weight).all() for weight in state["weights"])
    assert trainer.progress.skipped == 3


# What is refused before the first update.


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"objective": "nft", "group_size": 1}, "nft compares the pictures of a group: group_size must be at least 2"),
        ({"objective": "grpo", "group_size": 1, "gradient_first": 2}, "grpo compares .* group_size must be at least 2"),
        ({"objective": "grpo"}, "grpo needs gradient_first of at least 2"),
        ({"objective": "grpo", "gradient_first": 2, "sde_steps": 3}, "sde_steps must not exceed the number of steps"),
        ({"objective": "nft", "rollout_start": "target"}, "rollout_start must be noise"),
        ({"objective": "ppo"}, "'rerefl', 'nft' or 'grpo'"),
    ],
)
def test_recipes_that_cannot_be(change: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Recipe.model_validate(SMALL | change)


def test_a_reward_without_a_gradient_is_refused_by_rerefl_alone(tmp_path: Path) -> None:
    trainer = few(tmp_path)
    given = trainer.train, None, Brightness()
    with pytest.raises(BadInput, match="rerefl needs a reward with a gradient: set objective to nft or grpo"):
        Trainer(small_base(), *given, Recipe.model_validate(SMALL), "mimr", tmp_path)  # type: ignore[arg-type]
    Trainer(small_base(), *given, trainer.recipe, "mimr", tmp_path)  # type: ignore[arg-type]


def test_a_kl_without_a_base_is_refused(tmp_path: Path) -> None:
    base = small_base()
    base.add_lora(int(SMALL["rank"]))
    with pytest.raises(BadInput, match=r"velocity_kl has no base to compare with: .* set velocity_kl to 0"):
        few(tmp_path, customizer=base, velocity_kl=0.1)
