"""Frozen weights in fewer bits."""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.umo.customizers.conftest import PROMPTS, people, smooth
from umo.customizers import load
from umo.customizers.base import Customizer
from umo.customizers.frozen import cast_storage, loading, make_optimizer, stored_bytes
from umo.errors import BadInput
from umo.guidance import CONDITIONAL

TINY_UNO = Path(__file__).resolve().parents[3] / "models" / "tiny-uno"


def _gradients(base: Customizer) -> torch.Tensor:
    condition = base.condition(PROMPTS[:1], people()[:1], CONDITIONAL)
    channels, *cells = base.latents_shape((64, 128))
    latents = smooth(1, *cells)[:, :1].repeat(1, channels, 1, 1)
    base.velocity(latents, 0.5, condition).square().mean().backward()
    trained = [weight for weight in base.transformer.parameters() if weight.requires_grad]
    assert all(weight.dtype == torch.float32 for weight in trained)
    return torch.cat([weight.grad.flatten() for weight in trained if weight.grad is not None])


def test_fp8_trains_as_weights_rounded_to_8_bits_do() -> None:
    stored, rounded = load(TINY_UNO), load(TINY_UNO)
    for base in (stored, rounded):
        torch.manual_seed(0)
        base.add_lora(4)
    full = stored_bytes(stored.transformer, "full")
    cast_storage(stored.transformer, "fp8")
    assert stored_bytes(stored.transformer, "full") < 0.6 * full
    names = {name for name, weight in stored.transformer.named_parameters() if weight.itemsize == 1}
    assert "transformer_blocks.0.attn.to_q.base_layer.weight" in names
    for name, weight in rounded.transformer.named_parameters():
        if name in names:
            weight.data = weight.to(torch.float8_e4m3fn).float()
    expected = _gradients(rounded)
    assert expected.abs().max() > 0
    for checkpointing in (False, True):
        if checkpointing:
            stored.checkpoint_gradients()
        stored.transformer.zero_grad()
        torch.testing.assert_close(_gradients(stored), expected, rtol=1e-4, atol=1e-8)
        assert names == {name for name, weight in stored.transformer.named_parameters() if weight.itemsize == 1}


def test_the_transformer_waits_while_prompts_and_pictures_are_encoded() -> None:
    base = load(TINY_UNO, device="meta", encode_first=True)
    assert base.device.type == "meta" and next(base.transformer.parameters()).device.type == "cpu"
    assert base.to("meta").transformer.device.type == "meta"


def test_what_needs_bitsandbytes_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = [torch.nn.Parameter(torch.zeros(2))]
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    for what, use in {
        "weights nf4": lambda: loading("nf4").__enter__(),
        "optimizer adamw8bit": lambda: make_optimizer("adamw8bit", weights, lr=0.1),
    }.items():
        with pytest.raises(BadInput, match=rf"^{what}: bitsandbytes is missing: pip install 'umo\[quantised\]'"):
            use()


def test_bitsandbytes_is_given_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    package, optimizers = ModuleType("bitsandbytes"), ModuleType("bitsandbytes.optim")
    package.__spec__ = ModuleSpec("bitsandbytes", None)
    optimizers.AdamW8bit = torch.optim.SGD  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", optimizers)
    made = make_optimizer("adamw8bit", [torch.nn.Parameter(torch.zeros(2))], lr=0.1, weight_decay=0.01)
    assert made.defaults["lr"] == 0.1 and made.defaults["weight_decay"] == 0.01
    if not torch.cuda.is_available():
        with pytest.raises(BadInput, match="weights int8: bitsandbytes quantises on a GPU"), loading("int8"):
            pass
