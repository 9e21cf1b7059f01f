"""The LoRA merged into the weights for a rollout: the same latents, and nothing of it stays."""

from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer

from tests.umo.training.conftest import build, gradient, small_base, stir
from umo.customizers.flux_uno import FluxUno
from umo.errors import BadInput
from umo.training.draws import draw_randomness
from umo.training.trainer import Trainer


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    trainer = build(tmp_path, merge_rollout=True, ema=0.5)
    stir(trainer)
    return trainer


def weights_of(base: FluxUno) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in base.transformer.named_parameters()}


def merged_layers(base: FluxUno) -> list[bool]:
    return [layer.merged for layer in base.transformer.modules() if isinstance(layer, LoraLayer)]


def test_a_rollout_is_the_same_and_leaves_no_trace(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    base, batch = trainer.customizer, trainer.train.batch([0, 1])
    draws = draw_randomness(trainer.recipe, batch.target.shape[1:], 0, [0, 1])
    before, places = weights_of(base), [weight.data_ptr() for weight in base.transformer.parameters()]
    seen, velocity = [], base.velocity
    monkeypatch.setattr(base, "velocity", lambda *given: seen.append(merged_layers(base)) or velocity(*given))
    found = trainer.objective.late(batch, batch.condition, draws, 0).latents
    assert seen and all(len(layers) == len(base.lora_targets) and all(layers) for layers in seen)
    monkeypatch.setattr(trainer.objective, "recipe", trainer.recipe.model_copy(update={"merge_rollout": False}))
    expected = trainer.objective.late(batch, batch.condition, draws, 0).latents
    assert not any(seen[-1])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert not torch.equal(found, draws.start), "it went nowhere"
    after = weights_of(base)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [weight.data_ptr() for weight in base.transformer.parameters()] == places


def test_the_gradient_is_the_one_of_a_rollout_beside(trainer: Trainer, tmp_path: Path) -> None:
    beside = build(tmp_path)
    stir(beside)
    found, expected = gradient(trainer, [0, 1, 2, 3]), gradient(beside, [0, 1, 2, 3])
    assert expected.norm() > 0
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_validation_draws_with_the_averaged_weights_merged(tmp_path: Path) -> None:
    """After an update and an average, both runs measure the same, and the weights in training come back."""
    rows = []
    for merge in (True, False):
        trainer = build(tmp_path, merge_rollout=merge, ema=0.9)
        stir(trainer)
        trainer.weights.average()
        for weight in trainer.weights:
            weight.data += 0.1
        before = weights_of(trainer.customizer)
        trainer._validate()
        after = weights_of(trainer.customizer)
        assert all(torch.equal(before[name], after[name]) for name in before)
        rows.append(trainer.progress.history[-1][1])
    assert rows[0] == pytest.approx(rows[1], abs=1e-4)


def test_an_error_within_leaves_no_trace_either(trainer: Trainer) -> None:
    base = trainer.customizer
    before = weights_of(base)
    with pytest.raises(RuntimeError, match="within"), base.merged():
        assert all(merged_layers(base))
        raise RuntimeError("within")
    after = weights_of(base)
    assert not any(merged_layers(base)) and all(torch.equal(before[name], after[name]) for name in before)


def test_in_bfloat16_the_sum_is_rounded_once(trainer: Trainer) -> None:
    """Also under autocast, which would round what is added before."""
    base = trainer.customizer
    layer = next(layer for layer in base.transformer.modules() if isinstance(layer, LoraLayer))
    weight = layer.get_base_layer().weight
    weight.data = weight.data.bfloat16()
    added = layer.lora_B["default"].weight @ layer.lora_A["default"].weight  # alpha is the rank
    expected = (weight.data.float() + added).bfloat16()
    with torch.autocast("cpu", torch.bfloat16), base.merged():
        assert torch.equal(weight.data, expected)


def test_weights_in_eight_bits_keep_their_lora_beside_them(trainer: Trainer) -> None:
    base = trainer.customizer
    layer = next(layer for layer in base.transformer.modules() if isinstance(layer, LoraLayer))
    weight = layer.get_base_layer().weight
    weight.data = weight.data.to(torch.float8_e4m3fn)
    with base.merged():
        assert merged_layers(base).count(False) == 1 and not layer.merged


def test_blocks_are_compiled_where_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    build(tmp_path, compile_blocks=True)
    assert sorted(compiled) == ["FluxSingleTransformerBlock", "FluxTransformerBlock"]
    base = small_base()
    monkeypatch.setattr(type(base.transformer), "_repeated_blocks", None)
    with pytest.raises(BadInput, match="compile_blocks: tiny-uno does not say which blocks repeat; set it to false"):
        base.compile_blocks()
