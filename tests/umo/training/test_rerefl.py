"""Algorithm 1 on a flow whose answer is known, and what is drawn at random for it."""

import math
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from tests.umo.customizers.conftest import small_flux
from tests.umo.training.conftest import SMALL, build, distance, small_base, stir
from umo import flow
from umo.customizers.base import Size
from umo.customizers.condition import Condition
from umo.customizers.flux_uno import FluxUno
from umo.training.draws import Draws, draw_randomness
from umo.training.objectives.rerefl import Late, ReReFL, drawn, late_latents
from umo.training.recipe import Method, Recipe
from umo.training.samples import Batch
from umo.training.trainer import Trainer

SHAPE = (2, 3, 5)


@dataclass
class Line:
    """A customizer that knows the one way from a noise to a picture, a straight line; its pictures are its latents."""

    base: FluxUno
    x0: Tensor
    noise: Tensor

    def velocity(self, latents: Tensor, sigma: Tensor, condition: None) -> Tensor:
        return self.noise - self.x0

    def sigmas(self, steps: int, size: Size) -> Tensor:
        return self.base.sigmas(steps, size)

    def decode(self, latents: Tensor) -> Tensor:
        return latents


def shifted(plain: Tensor, base: FluxUno, size: Size) -> Tensor:
    """The schedulers' formulas: FLUX.1-dev shifts by a line through 256 and 4096 tokens, the tiny base by a number."""
    if base.name == "tiny-uno":
        by = torch.tensor(2.0)
    else:
        tokens = size[0] * size[1] / 16**2
        by = torch.tensor(0.5 + (tokens - 256) / (4096 - 256) * (1.15 - 0.5)).exp()
    return by * plain / (by * plain + 1 - plain)


@pytest.mark.parametrize("steps", [4, 12, 25])
@pytest.mark.parametrize(
    ("make", "size"), [(small_base, (64, 128)), (small_flux, (256, 256)), (small_flux, (1024, 768))]
)
def test_the_clean_picture_of_a_straight_flow_is_exact_at_every_step(make, size: Size, steps: int) -> None:
    x0, noise = torch.randn(2, 3, *SHAPE, generator=torch.Generator().manual_seed(0))
    line = Line(make(), x0, noise)
    late = range(1, steps + 1)
    latents, sigmas = late_latents(line, steps, late, size, None, noise)  # type: ignore[arg-type]
    plain = torch.tensor([before / steps for before in late])
    assert torch.allclose(sigmas, shifted(plain, line.base, size), atol=1e-6)
    for x, sigma, unshifted in zip(latents, sigmas, plain, strict=True):
        assert torch.allclose(x, (1 - sigma) * x0 + sigma * noise, atol=1e-5)
        assert torch.allclose(drawn(line, x, sigma, None), x0, atol=1e-5)  # type: ignore[arg-type]
        if unshifted < 1 and abs(unshifted - sigma) > 0.01:
            wrong = drawn(line, x, unshifted, None)  # type: ignore[arg-type]
            assert not torch.allclose(wrong, x0, atol=1e-3), "the plain sigma does as well"
    assert (sigmas[:-1] - plain[:-1]).abs().max() > 0.04, "this schedule is not shifted"


CHEAPER = {
    "two steps": {"gradient_steps": 2},
    "two steps from noise": {"gradient_steps": 2, "gradient_first": 12, "gradient_last": 12},
    "the rollout's picture": {"reward_picture": "rollout", "updates_per_rollout": 3},
    "both": {"reward_picture": "rollout", "gradient_steps": 2},
}


@pytest.mark.parametrize("form", CHEAPER)
def test_cheaper_forms_find_the_picture_of_a_straight_flow(form: str) -> None:
    given = recipe(**CHEAPER[form])
    x0 = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    for step in range(6):
        draws = draw_randomness(given, SHAPE, step, [0, 1])
        line = Line(small_base(), x0, draws.start)
        objective = ReReFL(line, None, given, None, None)  # type: ignore[arg-type]
        batch = Batch(("a", "b"), (64, 128), None, x0, [], [])  # type: ignore[arg-type]
        late = objective.late(batch, None, draws, 0)  # type: ignore[arg-type]
        clean = objective.clean(late, partial(line.velocity, condition=None), draws, batch.size)
        assert torch.allclose(clean, x0, atol=1e-4)


def weights_gradient(trainer: Trainer, clean: Tensor, wanted: Tensor) -> Tensor:
    """Of all weights in one row, where `wanted` is the reward's by the clean latents."""
    found = torch.autograd.grad((clean * wanted).sum(), list(trainer.weights), allow_unused=True)
    return torch.cat([one.flatten() for one in found if one is not None])


def started(trainer: Trainer) -> tuple[Batch, Draws, Late, flow.Velocity]:
    """Two samples, what is drawn for their first update, where its step with gradient starts, the trained velocity."""
    customizer, batch = trainer.customizer, trainer.train.batch([0, 1])
    draws = draw_randomness(trainer.recipe, batch.target.shape[1:], 0, [0, 1])

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        return customizer.velocity(x, sigma, batch.condition)

    return batch, draws, trainer.objective.late(batch, batch.condition, draws, 0), velocity


def test_two_steps_with_gradient_are_autograds(tmp_path: Path) -> None:
    trainer = build(tmp_path, gradient_steps=2, rollout_steps=6, gradient_first=5, gradient_last=5)
    stir(trainer)
    batch, draws, late, velocity = started(trainer)
    found = trainer.objective.clean(late, velocity, draws, batch.size)
    _, first, *_, second, _, end = trainer.customizer.sigmas(6, batch.size)  # five and two steps from the end
    between = late.latents + (second - first) * velocity(late.latents, first)
    expected = between + (end - second) * velocity(between, second)
    assert torch.allclose(found, expected, atol=1e-6)
    gradients = [weights_gradient(trainer, one, draws.noise) for one in (found, expected)]
    assert distance(*gradients) < 1e-5 and gradients[1].norm() > 0


def test_the_kl_is_of_both_steps(tmp_path: Path) -> None:
    two = {"gradient_steps": 2, "rollout_steps": 2, "gradient_first": 2, "gradient_last": 2}
    trainer = build(tmp_path, velocity_kl=0.5, **two)
    stir(trainer)
    customizer, batch = trainer.customizer, trainer.train.batch([0, 1])
    draws = draw_randomness(trainer.recipe, batch.target.shape[1:], 0, [0, 1])
    found = trainer.objective.backward(batch, draws, weight=1.0, part=0)["velocity_kl"]
    x, sigmas, distances = draws.start, customizer.sigmas(2, batch.size), []
    with torch.no_grad():
        for k in range(2):
            velocity = customizer.velocity(x, sigmas[k], batch.condition)
            with customizer.without_lora():
                distances.append((velocity - customizer.velocity(x, sigmas[k], batch.condition)).square().mean())
            x = x + (sigmas[k + 1] - sigmas[k]) * velocity
    assert found == pytest.approx(float(sum(distances)) / 2, rel=1e-4) and min(distances) > 0


def test_the_reward_sees_the_rollouts_end_and_moves_the_late_step(tmp_path: Path) -> None:
    trainer = build(tmp_path, reward_picture="rollout", updates_per_rollout=3)
    stir(trainer)
    batch, draws, late, velocity = started(trainer)
    found = trainer.objective.clean(late, velocity, draws, batch.size)
    with torch.no_grad():
        sigmas = trainer.customizer.sigmas(4, batch.size)
        whole = flow.rollout(velocity, draws.start, sigmas)
    assert torch.allclose(found, whole, atol=1e-5)
    predicted = late.latents - late.sigma * velocity(late.latents, late.sigma)
    assert not torch.allclose(found, predicted, atol=1e-3)
    gradients = [weights_gradient(trainer, one, draws.noise) for one in (found, predicted)]
    assert distance(*gradients) < 1e-5 and gradients[1].norm() > 0


def test_late_latents_are_those_of_one_rollout_each(tmp_path: Path) -> None:
    trainer = build(tmp_path)
    stir(trainer)
    customizer, batch = trainer.customizer, trainer.train.batch([0, 1])
    start = torch.randn(batch.target.shape, generator=torch.Generator().manual_seed(1))
    sigmas = customizer.sigmas(5, batch.size)
    latents, found = late_latents(customizer, 5, range(2, 5), batch.size, batch.condition, start)
    assert latents.shape == (3, *start.shape) and not latents.requires_grad
    for rank, before in enumerate((2, 3, 4)):
        x = start
        with torch.no_grad():
            for k in range(5 - before):
                x = x + (sigmas[k + 1] - sigmas[k]) * customizer.velocity(x, sigmas[k], batch.condition)
        assert torch.allclose(latents[rank], x, atol=1e-5)
        assert found[rank] == sigmas[5 - before]


def recipe(**changes: object) -> Recipe:
    return Recipe.model_validate(SMALL | {"rollout_steps": 12, "gradient_first": 2, "gradient_last": 6} | changes)


def test_what_a_sample_draws_does_not_depend_on_the_others() -> None:
    whole, some = (draw_randomness(recipe(), SHAPE, 7, rows) for rows in ([0, 1, 2, 3], [3, 1]))
    for name in ("time", "noise", "start"):
        assert torch.equal(getattr(whole, name)[[3, 1]], getattr(some, name))
    assert whole.late == some.late


def test_samples_updates_and_seeds_draw_numbers_of_their_own() -> None:
    draws = [
        draw_randomness(recipe(seed=seed), SHAPE, step, rows=range(3))
        for seed, step in ((0, 0), (0, 1), (1, 0), (1, 1))
    ]
    numbers = torch.cat([torch.cat([draw.noise, draw.start]).flatten() for draw in draws])
    assert len(numbers.unique()) == len(numbers) == 4 * 2 * 3 * 2 * 3 * 5
    assert len(torch.cat([draw.time for draw in draws]).unique()) == 4 * 3


def test_updates_of_a_rollout_share_its_noise_and_take_different_late_steps() -> None:
    three = recipe(updates_per_rollout=3)
    for rollout in range(20):
        draws = [draw_randomness(three, SHAPE, 3 * rollout + turn, [0, 1]) for turn in range(3)]
        assert all(torch.equal(draw.start, draws[0].start) for draw in draws)
        assert len({draw.late for draw in draws}) == 3
        assert len(torch.stack([draw.noise for draw in draws]).unique()) == 3 * 2 * 2 * 3 * 5
    following = draw_randomness(three, SHAPE, 3, [0, 1])
    assert not torch.equal(draw_randomness(three, SHAPE, 2, [0, 1]).start, following.start)


@pytest.mark.parametrize("updates", [1, 3])
def test_the_step_with_gradient_is_even_over_its_range(updates: int) -> None:
    given = recipe(updates_per_rollout=updates)
    counts = Counter(draw_randomness(given, SHAPE, step, [0]).late for step in range(1000))
    assert set(counts) == {2, 3, 4, 5, 6}
    assert all(150 < count < 250 for count in counts.values())  # 200 each, 4 standard deviations


def test_times_of_the_diffusion_loss_are_logit_normal() -> None:
    times = draw_randomness(recipe(time_mean=0.5, time_std=2.0), (1, 1, 1), 0, range(4000)).time.double()
    assert ((times > 0) & (times < 1)).all()
    normal = torch.logit(times)
    assert float(normal.mean()) == pytest.approx(0.5, abs=0.12)
    assert float(normal.std()) == pytest.approx(2.0, abs=0.1)
    low, middle = ((normal - 0.5 < edge).double().mean() for edge in (-2.0, 0.0))
    assert (float(low), float(middle)) == pytest.approx((0.159, 0.5), abs=0.03)


def test_times_of_unos_training_are_its_schedules() -> None:
    """One of the 1,000 points of its schedule, each as often: 17 % above 0.9, where a logit-normal has 1.4 %."""
    mu = 0.5 + (64 * 64 // 4 - 256) * (1.15 - 0.5) / (4096 - 256)
    times = draw_randomness(recipe(time="uniform", time_mu=mu), (1, 1, 1), 0, range(4000)).time.double()
    points = torch.tensor([math.exp(mu) / (math.exp(mu) + 1 / t - 1) if t else 0.0 for t in torch.linspace(1, 0, 1000)])
    gaps = (times[:, None] - points.double()).abs().min(dim=1)
    assert gaps.values.max() < 1e-6 and len(gaps.indices.unique()) > 950
    assert float((times > 0.9).double().mean()) == pytest.approx(0.17, abs=0.02)
    places = gaps.indices.double() / 999
    assert (float(places.mean()), float(places.var())) == pytest.approx((1 / 2, 1 / 12), abs=0.015)


def test_a_dropped_prompt_moves_no_other_number() -> None:
    plain, dropping = recipe(), recipe(text_dropout=0.3)
    for step in range(3):
        one, other = (draw_randomness(given, SHAPE, step, range(8)) for given in (plain, dropping))
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("time", "noise", "start"))
        assert (one.late, one.unprompted) == (other.late, ())


def test_prompts_are_dropped_as_often_as_told_and_by_their_row() -> None:
    dropping = recipe(text_dropout=0.3, updates_per_rollout=2)
    whole = [draw_randomness(dropping, (1, 1, 1), step, range(50)).unprompted for step in range(40)]
    assert sum(map(len, whole[::2])) == pytest.approx(0.3 * 1000, abs=60)  # 4 standard deviations
    assert whole[::2] == whole[1::2], "updates of a rollout"
    assert len(set(whole)) == 20, "and no others"
    some = draw_randomness(dropping, (1, 1, 1), 0, [9, 3, 20]).unprompted
    assert [[9, 3, 20][k] for k in some] == [row for row in (9, 3, 20) if row in whole[0]]


# What the trainer hands to the step with gradient.


class Watched:
    """What every velocity of an update was asked for: with gradient or without, the condition."""

    def __init__(self, trainer: Trainer) -> None:
        self.calls: list[tuple[bool, Condition]] = []
        real = trainer.customizer.velocity

        def velocity(latents: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
            self.calls.append((torch.is_grad_enabled(), condition))
            return real(latents, sigma, condition)

        trainer.customizer.velocity = velocity  # type: ignore[method-assign]


@pytest.mark.parametrize("method", ["sft", "mimr"])
def test_both_losses_and_the_rollout_draw_without_a_dropped_prompt(method: Method, tmp_path: Path) -> None:
    trainer = build(tmp_path, method, text_dropout=0.5)
    watched = Watched(trainer)
    step = next(k for k in range(99) if draw_randomness(trainer.recipe, SHAPE, k, range(4)).unprompted == (1, 2))
    rows = trainer._choose(step)
    trainer.progress.step = step
    trainer.update()
    with torch.no_grad():
        empty = trainer.customizer.condition([""], [[]]).stack("text")[0]
    own = trainer.train.batch(rows).condition.stack("text")
    assert len(watched.calls) >= (1 if method == "sft" else 3)
    for _, condition in watched.calls:
        for row, text in enumerate(condition.stack("text")):
            assert torch.allclose(text, empty if row in (1, 2) else own[row], atol=1e-6)
    assert (own - empty).abs().max() > 0.1


@pytest.mark.parametrize(("gradient", "expected"), [(None, 3.0), (1.0, 1.0)])
def test_the_step_with_gradient_may_have_a_guidance_of_its_own(
    gradient: float | None, expected: float, tmp_path: Path
) -> None:
    trainer = build(tmp_path, rollout_guidance=3.0, gradient_guidance=gradient)
    watched = Watched(trainer)
    trainer.update()
    scales = [(with_gradient, condition.guidance[0].text) for with_gradient, condition in watched.calls]
    assert scales[0] == (True, 1.0), "the diffusion loss has the base's training guidance"
    assert set(scales[1:-1]) <= {(False, 3.0)} and scales[-1] == (True, expected)


def test_the_recipe_of_flux_uno_is_unos(tmp_path: Path) -> None:
    """By its train.py (bytedance/UNO @d305981): AdamW's numbers, warm-up, clipping, times at 512x512 pixels."""
    params = yaml.safe_load((Path(__file__).parents[3] / "params.yaml").read_text())
    given = Recipe.model_validate(params["bases"]["flux-uno"]["train"])
    assert given.time_mu == pytest.approx(flow.linear_mu((512 // 8) ** 2 // 4))
    keys = ("weight_decay", "warmup", "max_gradient", "ema", "schedule", "learning_rate", "text_dropout", "time")
    trainer = build(tmp_path, "sft", **{key: getattr(given, key) for key in keys}, steps=3)
    (group,) = trainer.optimizer.param_groups
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.9, 0.999), 1e-8, 0.01)
    assert trainer.weights.ema is None and given.max_gradient == 1
    rates = [trainer.update()["learning_rate"] for _ in range(3)]
    assert rates == pytest.approx([0, 5e-8, 1e-7])


def test_a_start_at_the_target_is_the_target_noised_at_the_schedulers_sigma(tmp_path: Path) -> None:
    trainer = build(tmp_path, rollout_start="target", rollout_steps=12, gradient_last=5)
    batch = trainer.train.batch([0, 1])
    draws = draw_randomness(trainer.recipe, batch.target.shape[1:], 3, [0, 1])
    late = trainer.objective.late(batch, batch.condition, draws, 0)
    plain = torch.tensor(draws.late / 12)
    assert float(late.sigma) == pytest.approx(float(2 * plain / (1 + plain)))
    assert torch.allclose(late.latents, flow.noised(batch.target, draws.start, 2 * plain / (1 + plain)), atol=1e-6)
    assert not torch.allclose(late.latents, flow.noised(batch.target, draws.start, plain), atol=1e-2)


def test_latents_of_a_kept_rollout_are_those_of_a_fresh_one(tmp_path: Path) -> None:
    """While the weights stand still; and both parts of a batch keep their own."""
    kept, fresh = (build(tmp_path, updates_per_rollout=updates) for updates in (3, 1))
    stir(kept)
    stir(fresh)
    batches = [kept.train.batch([0, 1]), kept.train.batch([2, 3])]
    for step in range(6):
        kept.progress.step = fresh.progress.step = step
        for part, batch in zip((0, 2), batches, strict=True):
            draws = draw_randomness(kept.recipe, batch.target.shape[1:], step, [part, part + 1])
            ours = kept.objective.late(batch, batch.condition, draws, part)
            theirs = fresh.objective.late(batch, batch.condition, draws, part)
            assert ours.sigma == theirs.sigma
            assert torch.allclose(ours.latents, theirs.latents, atol=1e-6)


def test_a_rollout_is_made_once_and_used_as_often_as_told(tmp_path: Path) -> None:
    trainer = build(tmp_path, updates_per_rollout=3, rollout_steps=4)
    calls = []
    real = trainer.customizer.velocity

    def counted(*arguments):
        calls.append(torch.is_grad_enabled())
        return real(*arguments)

    trainer.customizer.velocity = counted  # type: ignore[method-assign]
    for _ in range(6):
        trainer.update()
    assert calls.count(False) == 2 * 3, "steps without gradient: down to before the last, for each of two rollouts"
    assert calls.count(True) == 6 * 2, "the diffusion loss and the step with gradient of each update"
