"""The run: what an update does to the weights, averages, validation, the result, and what is skipped."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor

from tests.conftest import BandJudge
from tests.umo.customizers.conftest import small_flux
from tests.umo.training.conftest import SMALL, build, distance, gradient, small_base, stir
from umo import flow
from umo.customizers.base import Drawing
from umo.customizers.flux_lora import NAMING
from umo.customizers.flux_uno import FluxUno
from umo.customizers.lora_convert import renamed
from umo.errors import BadInput, WorkFailed
from umo.guidance import Guidance
from umo.matching import assign
from umo.rewards import Reward
from umo.training import checkpoints, validation
from umo.training.draws import draw_randomness
from umo.training.objectives.base import diffusion_loss, parts_of
from umo.training.recipe import Recipe
from umo.training.trainer import Trainer
from umo.training.validation import VALIDATION_SEED

ROWS = [0, 1, 2, 3]  # one, two, one and two people


def copies(weights: list[Tensor]) -> list[Tensor]:
    return [weight.detach().clone() for weight in weights]


def measured(trainer: Trainer, how: Drawing | None = None) -> dict[str, float]:
    return validation.measure(
        trainer.customizer, trainer.validation, trainer.reward, trainer.recipe, trainer.accelerator, how
    )


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


# One update.


def test_sft_learns_its_pictures_by_heart(tmp_path: Path) -> None:
    trainer = build(tmp_path, "sft", train=[("ann", "bob"), ("cas",)], rank=8, batch=2, micro_batch=2)
    draws = draw_randomness(trainer.recipe, (4, 16, 32), 10**6, range(2))

    def loss() -> float:
        with torch.no_grad():
            return float(diffusion_loss(trainer.customizer, trainer.train.batch([0, 1]), draws.time, draws.noise))

    before = loss()
    for _ in range(40):
        trainer.update()
    assert loss() < 0.8 * before


@pytest.mark.parametrize("method", ["sir", "mimr"])
@pytest.mark.parametrize(
    "form",
    [
        {},
        {"rollout_start": "target"},
        {"gradient_steps": 2, "gradient_first": 3},
        {"reward_picture": "rollout"},
    ],
    ids=str,
)
def test_an_update_raises_the_reward_of_its_own_draws(tmp_path: Path, method, form) -> None:
    trainer = build(tmp_path, method, diffusion_weight=0.0, learning_rate=1e-3, **form)
    stir(trainer)

    def reward() -> float:
        trainer.progress.step = 0
        return trainer._backward(ROWS)["reward"]

    trainer._choose = lambda step: ROWS  # type: ignore[method-assign]
    before = reward()
    trainer.progress.step = 0
    assert trainer.update()["reward"] == before
    assert reward() > before


def test_the_gradient_is_that_of_the_two_losses(tmp_path: Path) -> None:
    """lambda * L_diff - weight * R, written out here for each sample by itself."""
    trainer = build(tmp_path, diffusion_weight=0.5, reward_weight=3.0, gradient_last=1)
    stir(trainer)
    found = gradient(trainer, ROWS)
    customizer, losses = trainer.customizer, []
    for place, row in enumerate(ROWS):
        batch = trainer.train.batch([row])
        draws = draw_randomness(trainer.recipe, batch.target.shape[1:], 0, [place])
        x = (1 - draws.time) * batch.target + draws.time * draws.noise
        error = customizer.velocity(x, draws.time, batch.condition) - (draws.noise - batch.target)
        sigmas = customizer.sigmas(4, batch.size)
        x = draws.start
        with torch.no_grad():
            for k in range(3):
                x = x + (sigmas[k + 1] - sigmas[k]) * customizer.velocity(x, sigmas[k], batch.condition)
        clean = x - sigmas[3] * customizer.velocity(x, sigmas[3], batch.condition)
        reward = trainer.reward(customizer.decode(clean), batch.anchors).reward
        losses.append(0.5 * error.square().mean() - 3.0 * reward.sum())
    trainer.optimizer.zero_grad()
    (sum(losses) / 4).backward()
    expected = torch.cat([weight.grad.flatten() for weight in trainer.weights if weight.grad is not None])
    assert distance(found, expected) < 1e-5


def test_pictures_without_a_face_are_learned_from_as_sft_does(tmp_path: Path) -> None:
    """Neither skipped nor an error: no reward, no gradient of it."""
    trainer, plain = build(tmp_path, micro_batch=2), build(tmp_path, "sft")
    stir(trainer)
    stir(plain)
    trainer.customizer.decode = lambda latents: (latents.mean() * 0 - 1).expand(len(latents), 3, 64, 128)
    assert distance(gradient(trainer, ROWS), gradient(plain, ROWS)) < 1e-5
    row = trainer.update()
    assert (row["reward"], row["no_face"], row["faces"], trainer.progress.skipped) == (0, 1, 0, 0)


def test_a_picture_without_a_face_takes_no_reward_from_the_others(tmp_path: Path) -> None:
    trainer = build(tmp_path, diffusion_weight=0.0)
    stir(trainer)
    gradient(trainer, ROWS)  # embeds the references, whose faces are found
    real = trainer.reward.faces.detect
    trainer.reward.faces.detect = lambda images: [[], *real(images)[1:]]  # type: ignore[method-assign]
    assert gradient(trainer, ROWS).norm() > 0
    assert 0 < trainer.update()["no_face"] < 1


def test_weights_decay_as_adamws_do(tmp_path: Path) -> None:
    plain, decayed = (build(tmp_path, "sft", weight_decay=decay, learning_rate=1e-2) for decay in (0.0, 0.5))
    for trainer in (plain, decayed):
        stir(trainer)
    before = copies(plain.weights)
    plain.update(), decayed.update()
    for old, kept, shrunk in zip(before, plain.weights, decayed.weights, strict=True):
        assert torch.allclose(kept - shrunk, 1e-2 * 0.5 * old, atol=1e-6)


@pytest.mark.parametrize("method", ["sft", "mimr"])
def test_micro_batches_and_recomputed_activations_give_the_same_gradient(tmp_path: Path, method) -> None:
    gradients = {}
    for name, changes in {
        "whole": {},
        "halves": {"micro_batch": 2},
        "ones": {"micro_batch": 1},
        "recomputed": {"checkpoint_gradients": True},
        "kept rollout": {"micro_batch": 2, "updates_per_rollout": 3},
    }.items():
        trainer = build(tmp_path, method, **changes)
        stir(trainer)
        gradients[name] = gradient(trainer, ROWS)
        if name == "recomputed":
            assert trainer.customizer.transformer.gradient_checkpointing
    for name, found in gradients.items():
        assert distance(found, gradients["whole"]) < 1e-5, name
    assert gradients["whole"].abs().min() > 0


def test_fp8_weights_are_a_recipes_value_and_train(tmp_path: Path) -> None:
    trainer = build(tmp_path, "sft", weights="fp8", steps=2)
    weights = dict(trainer.customizer.transformer.named_parameters())
    before = {name: weight.detach().float().clone() for name, weight in weights.items()}
    assert any(weight.dtype == torch.float8_e4m3fn for weight in weights.values())
    trainer.run()
    after = dict(trainer.customizer.transformer.named_parameters())
    changed = {name for name, weight in after.items() if not torch.equal(weight.float(), before[name])}
    assert changed and all(".lora_" in name for name in changed)


def test_bf16_keeps_the_lora_in_float32_and_about_the_gradient(tmp_path: Path) -> None:
    base = small_base().to(dtype=torch.bfloat16)
    (tmp_path / "half").mkdir()
    half = build(tmp_path / "half", customizer=base, precision="bf16")
    autocast, real = set(), base.velocity
    base.velocity = lambda *given: autocast.add(torch.is_autocast_enabled("cpu")) or real(*given)  # type: ignore
    stir(half)
    assert {weight.dtype for weight in half.weights} == {torch.float32}
    assert {w.dtype for w in base.transformer.parameters() if not w.requires_grad} == {torch.bfloat16}
    found = gradient(half, ROWS)
    assert autocast == {True}
    before = copies(half.weights)
    assert "skipped" not in half.update()
    assert not same(half.weights, before)
    assert {weight.dtype for weight in half.weights} == {torch.float32}
    assert {state["exp_avg"].dtype for state in half.optimizer.state.values()} == {torch.float32}
    AcceleratorState._reset_state(reset_partial_state=True)
    whole = build(tmp_path)
    stir(whole)
    assert distance(found, gradient(whole, ROWS)) < 0.1


@pytest.mark.parametrize(("given", "rolled"), [(None, 1.0), (2.5, 2.5)])
def test_guidance_of_the_losses_of_the_rollout_and_of_drawing(tmp_path: Path, given, rolled: float) -> None:
    base = small_base()
    base.settings = base.settings.model_copy(update={"guidance": Guidance(text=4)})
    trainer = build(tmp_path, customizer=base, rollout_guidance=given, gradient_last=1)
    seen: list[float] = []
    real = base.velocity

    def velocity(latents: Tensor, sigma: Tensor, condition) -> Tensor:
        seen.extend({one.text for one in condition.guidance})
        return real(latents, sigma, condition)

    base.velocity = velocity  # type: ignore[method-assign]
    trainer.update()
    assert seen == [1.0, *[rolled] * 4], "the diffusion loss, then four steps"
    seen.clear()
    measured(trainer)
    assert seen == [1.0, *[4.0] * 4] * (len(seen) // 5)
    seen.clear()
    measured(trainer, Drawing(steps=2, guidance=3.0))
    assert seen == [1.0, 3.0, 3.0] * (len(seen) // 3)


def test_only_the_lora_changes(tmp_path: Path) -> None:
    trainer = build(tmp_path)
    others = [weight for weight in trainer.customizer.transformer.parameters() if not weight.requires_grad]
    others += [*trainer.customizer.vae.parameters(), *trainer.customizer.text_encoder.parameters()]
    before, lora = copies(others), copies(trainer.weights)
    trainer.update()
    assert same(others, before) and all(weight.grad is None for weight in others)
    assert not any(torch.equal(now, then) for now, then in zip(trainer.weights[1::2], lora[1::2], strict=True))


def test_the_gradient_is_clipped_and_told_unclipped(tmp_path: Path) -> None:
    free, held = (build(tmp_path, "sft", max_gradient=limit) for limit in (1e9, 0.01))
    norm = free.update()["gradient_norm"]
    assert norm > 0.02 and held.update()["gradient_norm"] == norm
    grads = [torch.cat([weight.grad.flatten() for weight in trainer.weights]) for trainer in (free, held)]
    assert grads[1].norm() == pytest.approx(0.01, rel=1e-3)
    assert torch.allclose(grads[1] / 0.01, grads[0] / norm, rtol=1e-3, atol=1e-5)


def test_learning_rate_warms_up_and_falls_as_a_cosine(tmp_path: Path) -> None:
    trainer = build(tmp_path, "sft", steps=10, warmup=4, schedule="cosine", learning_rate=0.1)
    before, rates = copies(trainer.weights), []
    rates.append(trainer.update()["learning_rate"])
    assert same(trainer.weights, before), "the first update is at the rate 0, and says so"
    rates += [trainer.update()["learning_rate"] for _ in range(9)]
    expected = [0, 0.025, 0.05, 0.075, *(0.05 * (1 + math.cos(math.pi * k / 6)) for k in range(6))]
    assert rates == pytest.approx(expected)


def test_batches_are_of_one_size_and_sizes_come_as_often_as_their_samples(tmp_path: Path) -> None:
    trainer = build(tmp_path, batch=3, micro_batch=3)
    wide = {4, 5}
    counts = dict.fromkeys(range(6), 0)
    for step in range(600):
        rows = trainer._choose(step)
        assert len(rows) == 3
        assert set(rows) <= wide or not set(rows) & wide
        if not set(rows) & wide:
            assert len(set(rows)) == 3, "nobody twice where there are enough"
        else:
            assert set(rows) == wide, "few go round"
        for row in rows:
            counts[row] += 1
    assert all(count == pytest.approx(300, abs=60) for count in counts.values())


def test_updates_of_a_rollout_have_one_batch(tmp_path: Path) -> None:
    trainer = build(tmp_path, updates_per_rollout=3)
    batches = [tuple(trainer._choose(step)) for step in range(60)]
    assert all(len(set(batches[k : k + 3])) == 1 for k in range(0, 60, 3))
    assert len(set(batches)) > 10


@pytest.mark.parametrize(("m", "n"), [(2, 3), (3, 2), (2, 0)])
def test_figures_of_a_reward(m: int, n: int) -> None:
    cosines = np.random.default_rng(m).uniform(-1, 1, (m, n))
    reward = Reward(torch.tensor([0.3]), [torch.tensor(cosines)], torch.tensor([n]), torch.tensor([n == 0]), [[]])
    pairs = {(k, j) for k, j in enumerate(assign(cosines)) if j >= 0}
    rest = [cosines[k, j] for k in range(m) for j in range(n) if (k, j) not in pairs]
    figures = parts_of(reward)
    assert figures["matched"] == pytest.approx(sum(cosines[pair] for pair in pairs) / m)
    assert figures["unmatched"] == pytest.approx(float(np.mean(rest)) if rest else 0)
    assert (figures["no_face"], figures["faces"]) == (n == 0, n)


# Averages, validation, the result.


DECAY = 0.2  # low enough to be reached by the average of a few updates


def averaged(weights: list[list[Tensor]]) -> list[list[Tensor]]:
    """The recursion over the weights after each update; young averages forget faster: at most (1 + k) / (10 + k)."""
    found = [weights[0]]
    for k, now in enumerate(weights[1:]):
        keep = 0.0 if k == 0 else min(DECAY, (1 + k) / (10 + k))
        found.append([keep * old + (1 - keep) * new for old, new in zip(found[-1], now, strict=True)])
    return found


class Recorded:
    """A run that writes down its weights: after every update, and those that every validation sees."""

    def __init__(self, folder: Path, method, rewards: list[float] | None = None, **recipe: object) -> None:
        self.trained: list[list[Tensor]] = []
        self.validated: list[tuple[int, list[Tensor]]] = []
        self.trainer = build(folder, method, self._log, ema=DECAY, checkpoint_every=100, **recipe)
        self.trained.append(copies(self.trainer.weights))

        def measure(*arguments) -> dict[str, float]:
            self.validated.append((self.trainer.progress.step, copies(self.trainer.weights)))
            scripted = {} if rewards is None else {"validation/reward": rewards[len(self.validated) - 1]}
            return validation.measure(*arguments) | scripted

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("umo.training.trainer.measure", measure)
            self.progress = self.trainer.run()

    def _log(self, step: int, row: dict[str, float]) -> None:
        if "diffusion_loss" in row:
            self.trained.append(copies(self.trainer.weights))

    def averages(self) -> list[list[Tensor]]:
        return averaged(self.trained)


def near(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.allclose(one, other, atol=1e-6) for one, other in zip(found, expected, strict=True))


def test_averaged_weights_are_validated_and_are_the_result_of_sft(tmp_path: Path) -> None:
    run = Recorded(tmp_path, "sft", steps=6, validate_every=2)
    averages = run.averages()
    assert [step for step, _ in run.validated] == [0, 2, 4, 6]
    assert all(near(weights, averages[step]) for step, weights in run.validated)
    assert not near(run.validated[2][1], run.trained[4]), "those weights are not averaged"
    assert near(run.trainer.weights, averages[6])
    assert not run.progress.chosen and not run.progress.stopped
    (tmp_path / "plain").mkdir()
    plain = build(tmp_path / "plain", "sft", ema=DECAY, steps=6, checkpoint_every=100)
    plain.run()
    assert near(plain.weights, averages[6]), "the weights that are trained were not those before the validation"


def test_the_best_validated_weights_are_the_result_and_patience_ends_a_run(tmp_path: Path) -> None:
    run = Recorded(tmp_path, "mimr", [0.1, 0.2, 0.5, 0.4, 0.5], steps=30, validate_every=3, patience=2)
    progress = run.progress
    assert (progress.step, progress.stopped, progress.best, progress.best_step) == (12, True, 0.5, 6)
    assert progress.chosen
    assert near(run.trainer.weights, run.averages()[6])
    again = build(tmp_path, "mimr", ema=DECAY, checkpoint_every=100, steps=30, validate_every=3, patience=2)
    assert again.run().step == 12, "a run that stopped stays stopped"
    assert same(again.weights, run.trainer.weights)


def test_patience_counts_from_the_last_better_validation(tmp_path: Path) -> None:
    run = Recorded(tmp_path, "sir", [0.1, 0.0, 0.2, 0.1, 0.3], steps=4, validate_every=1, patience=2)
    assert (run.progress.step, run.progress.stopped, run.progress.best_step) == (4, False, 4)


def test_without_an_average_the_last_weights_are_the_result(tmp_path: Path) -> None:
    seen: list[list[Tensor]] = []
    trainer = build(tmp_path, "mimr", lambda step, row: seen.append(copies(trainer.weights)), steps=3)
    trainer.run()
    assert same(trainer.weights, seen[-1])


@torch.no_grad()
def validated_alone(trainer: Trainer, row: int) -> tuple[float, float]:
    """Reward and diffusion loss of one sample: what the base draws from the noise that is the same in every run."""
    customizer, batch = trainer.customizer, trainer.validation.batch([row])
    recipe = Recipe.model_validate(SMALL | {"seed": VALIDATION_SEED})
    draws = draw_randomness(recipe, batch.target.shape[1:], 0, [row])

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        return customizer.velocity(x, sigma, batch.condition)

    sigmas = customizer.sigmas(customizer.settings.steps, batch.size)
    pictures = customizer.decode(flow.rollout(velocity, draws.start, sigmas)).clamp(-1, 1)
    loss = flow.loss(velocity, batch.target, draws.noise, draws.time)
    return float(trainer.reward(pictures, batch.anchors).reward), float(loss)


@pytest.mark.parametrize("change", [{"micro_batch": 1}, {"seed": 3}], ids=["one by one", "another seed"])
def test_validation_measures_the_pictures_that_the_base_draws(tmp_path: Path, change: dict) -> None:
    trainer = build(tmp_path, **change)
    stir(trainer)
    alone = [validated_alone(trainer, row) for row in range(3)]
    found = measured(trainer)
    assert found["validation/reward"] == pytest.approx(np.mean([reward for reward, _ in alone]), abs=1e-5)
    assert found["validation/diffusion_loss"] == pytest.approx(np.mean([loss for _, loss in alone]), abs=1e-5)
    assert found.keys() >= {"validation/matched", "validation/unmatched", "validation/no_face", "validation/faces"}


def test_at_most_so_many_samples_are_validated(tmp_path: Path) -> None:
    trainer = build(tmp_path, validate_every=1, validation_samples=2)
    judge: BandJudge = trainer.reward.faces
    measured(trainer)  # anchors are embedded
    before = judge.calls.pictures
    measured(trainer)
    assert judge.calls.pictures - before == 2


# What is not finite.


def broken(trainer: Trainer, how: str) -> Callable[[], None]:
    """Break something of the next updates; returns what mends it."""
    customizer, faces, weight = trainer.customizer, trainer.reward.faces, trainer.weights[3]
    if how == "picture":
        customizer.decode = lambda latents: torch.full((len(latents), 3, 64, 128), math.nan)
        return lambda: delattr(customizer, "decode")
    if how == "embedding":
        real = faces.embed
        faces.embed = lambda images, found: real(images, found) * math.nan
        return lambda: delattr(faces, "embed")
    if how == "reward":
        call = trainer.reward
        trainer.objective.reward = lambda *given, **also: replace(
            found := call(*given, **also), reward=found.reward * math.inf
        )
        return lambda: setattr(trainer.objective, "reward", call)
    value = math.nan if how == "gradient" else math.inf
    return weight.register_hook(lambda grad: grad * value).remove


@pytest.mark.parametrize("method", ["sir", "mimr"])
@pytest.mark.parametrize("how", ["picture", "embedding", "reward", "gradient", "infinite gradient"])
def test_an_update_without_a_finite_gradient_changes_nothing(tmp_path: Path, how: str, method) -> None:
    trainer = build(tmp_path, method, ema=0.9, warmup=2)
    trainer._choose = lambda step: ROWS  # type: ignore[method-assign]
    trainer.update()

    def state() -> list[Tensor]:
        moments = [value for state in trainer.optimizer.state.values() for value in state.values()]
        return copies(
            [*trainer.weights, *moments, *trainer.weights.ema.shadow_params, torch.tensor(trainer.schedule.last_epoch)]
        )

    before = state()
    mend = broken(trainer, how)
    assert trainer.update() == {"skipped": 1}
    assert same(state(), before)
    assert trainer.update() == {"skipped": 2}
    assert (trainer.progress.step, trainer.progress.bad) == (3, 2)
    mend()
    assert "skipped" not in trainer.update()
    assert (trainer.progress.skipped, trainer.progress.bad) == (2, 0)
    assert not same(state(), before) and all(torch.isfinite(value).all() for value in state())


def test_three_in_a_row_end_the_run_and_leave_its_last_checkpoint(tmp_path: Path) -> None:
    trainer = build(tmp_path, steps=20, checkpoint_every=3)
    real = trainer.update

    def breaks_later() -> dict[str, float]:
        if trainer.progress.step in (1, 2, 4):
            mend = broken(trainer, "picture")
            row = real()
            mend()
            return row
        if trainer.progress.step == 6:
            broken(trainer, "picture")
        return real()

    trainer.update = breaks_later  # type: ignore[method-assign]
    with pytest.raises(WorkFailed) as failed:
        trainer.run()
    names = ", ".join(trainer.train.samples[row].name for row in trainer._choose(8))
    message = str(failed.value)
    assert "number 9 " in message and names in message and str(tmp_path / "checkpoints") in message
    assert "\n" not in message
    (kept,) = checkpoints.find(tmp_path / "checkpoints")[-1:]
    assert kept.name.startswith("checkpoint-00000006-") and str(kept) in message
    state = checkpoints.newest(tmp_path / "checkpoints")
    assert state is not None and state["progress"]["step"] == 6 and state["progress"]["skipped"] == 3
    assert all(torch.isfinite(weight).all() for weight in state["weights"])


def test_a_run_that_fails_at_once_says_that_there_is_no_checkpoint(tmp_path: Path) -> None:
    trainer = build(tmp_path)
    broken(trainer, "picture")
    with pytest.raises(WorkFailed, match="no checkpoint"):
        trainer.run()


# What cannot be trained.


def test_runs_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="batch 4 does not divide into 1 processes and micro-batches of 3"):
        build(tmp_path, micro_batch=3)
    with pytest.raises(BadInput, match=r"2 people are trained on and validated on \(first eve\)"):
        build(tmp_path, train=[("fay",), ("ann", "eve")])
    trainer = build(tmp_path)
    with pytest.raises(BadInput, match="no validation samples"):
        given = trainer.recipe.model_copy(update={"validate_every": 1})
        Trainer(small_base(), trainer.train, None, trainer.reward, given, "sft", tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"gradient_first": 4}, "gradient_first <= gradient_last"),
        ({"gradient_last": 5}, "gradient_last <= rollout_steps"),
        ({"updates_per_rollout": 4, "checkpoint_every": 4}, "updates_per_rollout must not exceed"),
        ({"updates_per_rollout": 2, "checkpoint_every": 5}, "multiple of updates_per_rollout"),
        ({"reward_picture": "rollout", "rollout_start": "target"}, "reward_picture: rollout needs"),
        ({"patience": 1}, "patience needs validate_every"),
        ({"learning_rat": 1}, "learning_rat"),
    ],
)
def test_recipes_that_cannot_be(change: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Recipe.model_validate(SMALL | change)


def test_a_down_of_query_key_and_value_is_trained_averaged_and_kept_as_one(tmp_path: Path) -> None:
    def flux() -> FluxUno:
        base = small_flux()
        base.settings = base.settings.model_copy(update={"as_uno": True})
        return base

    first = build(tmp_path, "sft", customizer=flux(), steps=2, ema=0.5)
    assert len(first.weights) == 2 * len(first.customizer.lora_targets) - 2 * 6
    first.run()
    resumed = build(tmp_path, "sft", customizer=flux(), steps=2, ema=0.5)
    resumed.run()
    files = [trainer.customizer.save_lora(tmp_path / str(k)) for k, trainer in enumerate((first, resumed))]
    assert files[0].read_bytes() == files[1].read_bytes()
    state = renamed(NAMING, NAMING.read(files[0]), "uno")
    assert {len(tensor) for key, tensor in state.items() if ".down." in key} == {SMALL["rank"]}
    assert all(tensor.any() for tensor in state.values())
