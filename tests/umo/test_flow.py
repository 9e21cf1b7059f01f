"""Every function on a flow whose answer is known: a straight line from one noise to one picture."""

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from umo import flow


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 4, 5, 6, generator=generator), torch.randn(3, 4, 5, 6, generator=generator)


def schedule(steps: int, **config: object) -> torch.Tensor:
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    plain = torch.linspace(1, 1 / steps, steps).tolist()
    scheduler.set_timesteps(sigmas=plain, mu=flow.linear_mu(1024) if config.get("use_dynamic_shifting") else None)
    return scheduler.sigmas


def test_shift_is_the_schedulers() -> None:
    plain = torch.cat([torch.linspace(1, 1 / 25, 25), torch.zeros(1)])
    assert torch.allclose(flow.shift(plain, 2.0), schedule(25, shift=2.0))
    dynamic = flow.shift(plain, math.exp(flow.linear_mu(1024)))
    assert torch.allclose(dynamic, schedule(25, use_dynamic_shifting=True), atol=1e-6)
    assert flow.linear_mu(1024) == pytest.approx(calculate_shift(1024))


def test_noised_is_the_schedulers(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    x0, noise = pair
    scheduler = FlowMatchEulerDiscreteScheduler(shift=2.0)
    steps = scheduler.timesteps[[10, 500, 990]]
    expected = scheduler.scale_noise(x0, steps, noise)
    assert torch.allclose(flow.noised(x0, noise, steps / 1000), expected, atol=1e-6)


@pytest.mark.parametrize("config", [{"shift": 3.0}, {"use_dynamic_shifting": True}])
def test_one_step_x0_is_exact_at_every_shifted_sigma(pair: tuple[torch.Tensor, torch.Tensor], config: dict) -> None:
    x0, noise = pair
    for sigma in schedule(25, **config)[:-1]:
        x = flow.noised(x0, noise, sigma)
        assert torch.allclose(flow.one_step_x0(x, sigma, flow.velocity(x0, noise)), x0, atol=1e-5)


def test_one_step_x0_takes_a_sigma_a_sample(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    x0, noise = pair
    sigma = torch.tensor([0.1, 0.5, 0.9])
    x = flow.noised(x0, noise, sigma)
    assert torch.allclose(flow.one_step_x0(x, sigma, noise - x0), x0, atol=1e-5)


def test_pinned_latents_have_the_values_of_one_and_the_gradient_of_the_other() -> None:
    latents, at = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([5.0, 6.0], requires_grad=True)
    found = flow.pinned(latents, at)
    assert torch.equal(found, at)
    (found * torch.tensor([3.0, 4.0])).sum().backward()
    assert latents.grad is not None and latents.grad.tolist() == [3, 4] and at.grad is None


def test_rollout_follows_the_line_and_stops_where_told(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    x0, noise = pair
    sigmas = schedule(12, shift=2.0)
    assert torch.allclose(flow.rollout(lambda x, s: noise - x0, noise, sigmas), x0, atol=1e-5)
    middle = flow.rollout(lambda x, s: noise - x0, noise, sigmas, stop=7)
    assert torch.allclose(middle, flow.noised(x0, noise, sigmas[7]), atol=1e-5)
    rest = flow.rollout(lambda x, s: noise - x0, middle, sigmas, start=7)
    assert torch.allclose(rest, x0, atol=1e-5)
    with pytest.raises(ValueError, match="schedule of 12"):
        flow.rollout(lambda x, s: x, noise, sigmas, stop=13)


def test_rollout_is_the_schedulers_step(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    _, noise = pair
    scheduler = FlowMatchEulerDiscreteScheduler(shift=2.0)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / 6, 6).tolist())
    x = noise
    for time in scheduler.timesteps:
        x = scheduler.step(torch.sin(x) * time / 1000, time, x).prev_sample
    ours = flow.rollout(lambda x, s: torch.sin(x) * s, noise, scheduler.sigmas)
    assert torch.allclose(ours, x, atol=1e-6)


def test_loss_is_zero_for_the_truth_and_counts_the_weight(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    x0, noise = pair
    sigma = torch.tensor([0.2, 0.5, 0.8])
    assert flow.loss(lambda x, s: noise - x0, x0, noise, sigma) == 0
    assert flow.loss(lambda x, s: noise - x0 + 2, x0, noise, sigma) == pytest.approx(4)
    weight = torch.tensor([2.0, 0.0]).repeat(3)
    off = torch.tensor([1.0, 5.0]).repeat(3)
    assert flow.loss(lambda x, s: noise - x0 + off, x0, noise, sigma, weight) == pytest.approx(1)


def test_times_are_inside_and_the_shift_moves_them_to_the_noise() -> None:
    times = [flow.logit_normal(4000, torch.Generator().manual_seed(1), by=by) for by in (1.0, 2.0)]
    assert all(float(t.min()) > 0 and float(t.max()) < 1 for t in times)
    assert float(times[0].mean()) == pytest.approx(0.5, abs=0.02)
    assert float(times[1].mean()) > 0.6
    same = flow.logit_normal(4000, torch.Generator().manual_seed(1))
    assert torch.equal(same, times[0])
