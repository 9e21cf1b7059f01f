"""The whole way with the networks of the embedded world: base, detector, embedder, real photographs."""

import math
from pathlib import Path

import pytest
import torch

from tests.umo.training.conftest import build_real, gradient
from umo.faces.opencv_zoo import OpenCVZoo
from umo.rewards import Reward
from umo.training.draws import draw_randomness
from umo.training.objectives.rerefl import drawn
from umo.training.samples import Sample
from umo.training.trainer import Trainer
from umo.training.validation import measure


class Watched:
    """A trainer's reward that keeps the pictures it saw, with their gradient."""

    def __init__(self, trainer: Trainer, gradient: bool = True) -> None:
        self.real, self.seen, self.gradient = trainer.reward, [], gradient
        trainer.reward = trainer.objective.reward = self  # type: ignore[assignment]

    def __call__(self, pictures: torch.Tensor, anchors: list[torch.Tensor], **also: object) -> Reward:
        if self.gradient:
            pictures.retain_grad()
        reward = self.real(pictures, anchors, **also)
        self.seen.append((pictures, reward))
        return reward


@pytest.mark.parametrize("n", [1, 2, 3])
def test_every_drawn_face_has_a_gradient_and_of_the_weights_only_the_loras(
    photographs: list[Sample], tmp_path: Path, n: int
) -> None:
    trainer = build_real(tmp_path, [photographs[n - 1]], diffusion_weight=0.0, gradient_last=1, batch=2)
    watched = Watched(trainer)
    gradient(trainer, [0, 0])
    ((pictures, reward),) = watched.seen
    assert [len(faces) for faces in reward.faces] == [n, n]
    assert pictures.grad is not None
    for picture, faces in zip(pictures.grad, reward.faces, strict=True):
        for face in faces:
            x, y = face.landmarks[2].round().astype(int)
            assert picture[:, y - 2 : y + 3, x - 2 : x + 3].abs().sum(0).min() > 0, "the nose"
    base = trainer.customizer
    frozen = [weight for name, weight in base.transformer.named_parameters() if ".lora_" not in name]
    frozen += [*base.vae.parameters(), *base.text_encoder.parameters(), *base.text_encoder_2.parameters()]
    networks = [part.torch for part in (watched.real.faces._detector, watched.real.faces._embedder)]
    assert networks
    frozen += [weight for network in networks for weight in (*network.parameters(), *network.buffers())]
    assert not any(weight.requires_grad or weight.grad is not None for weight in frozen)
    last = [weight.grad for name, weight in base.transformer.named_parameters() if ".lora_B." in name]
    assert all(grad is not None and grad.abs().max() > 0 for grad in last)


@pytest.mark.parametrize("method", ["sir", "mimr"])
def test_a_small_step_along_the_gradient_raises_the_reward_as_it_promises(
    photographs: list[Sample], tmp_path: Path, method
) -> None:
    """With the latents of the rollout held, as Algorithm 1 holds them: the slope is that of finite differences."""
    trainer = build_real(tmp_path, photographs[:2], method, diffusion_weight=0.0, gradient_last=2)
    batch = trainer.train.batch([0, 1])
    draws = draw_randomness(trainer.recipe, batch.target.shape[1:], 0, [0, 1])
    late = trainer.objective.late(batch, batch.condition, draws, 0)
    faces = None

    def reward() -> torch.Tensor:
        pictures = drawn(trainer.customizer, late.latents, late.sigma, batch.condition)
        return trainer.reward(pictures, batch.anchors, faces).reward.mean()

    trainer.objective.backward(batch, draws, weight=1.0, part=0)
    ascent = [-weight.grad for weight in trainer.weights]
    power = sum(float(one.square().sum()) for one in ascent)
    with torch.no_grad():
        pictures = drawn(trainer.customizer, late.latents, late.sigma, batch.condition)
        faces = trainer.reward(pictures, batch.anchors).faces
        before, step = float(reward()), 1e-3 / power
        for weight, one in zip(trainer.weights, ascent, strict=True):
            weight += step * one
        gain = float(reward()) - before
    assert gain == pytest.approx(1e-3, rel=0.05)


def test_the_trainers_updates_raise_the_reward_of_the_same_draws(photographs: list[Sample], tmp_path: Path) -> None:
    """Rolled out and detected anew."""
    trainer = build_real(tmp_path, photographs[:2], diffusion_weight=0.0, batch=2, micro_batch=2, learning_rate=1e-3)

    def reward() -> float:
        trainer.progress.step = 0
        return trainer._backward([0, 1])["reward"]

    before = reward()
    for _ in range(3):
        trainer.progress.step = 0
        trainer.update()
    assert reward() > before + 0.01


def test_faces_are_measured_in_full_precision_where_the_rest_is_bf16(photographs: list[Sample], tmp_path: Path) -> None:
    """A detector that runs in torch hands numpy its numbers, which has no bf16."""
    trainer = build_real(tmp_path, photographs[:2], precision="bf16", validation_samples=2)
    trainer.reward.faces = OpenCVZoo(runtime="torch")
    watched = Watched(trainer, gradient=False)
    row = measure(trainer.customizer, trainer.train, trainer.reward, trainer.recipe, trainer.accelerator)
    assert all(math.isfinite(value) for value in row.values())
    assert {cosines.dtype for _, reward in watched.seen for cosines in reward.cosines} == {torch.float32}
