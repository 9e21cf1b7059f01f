"""LoRA files of OmniGen2: the same change in every writer's naming, and what is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.umo.customizers.conftest import write
from tests.umo.customizers.small_omnigen2 import small_omnigen2
from umo.customizers.omnigen2.adapter import OmniGen2
from umo.customizers.omnigen2.lora import NAMING
from umo.errors import BadInput


@pytest.fixture(scope="module")
def base() -> OmniGen2:
    return small_omnigen2()


FORMS = {
    "UMO": "{name}.lora_{half}.default.weight",
    "diffusers": "transformer.{name}.lora_{half}.weight",
    "ComfyUI": "diffusion_model.{name}.lora_{half}.weight",
    "peft": "base_model.model.{name}.lora_{half}.weight",
    "kohya": "lora_unet_{flat}.lora_{low}.weight",
}


@pytest.mark.parametrize("form", FORMS)
def test_a_lora_in_any_naming_is_the_same_change(form: str, base: OmniGen2, tmp_path: Path) -> None:
    generator, alpha = torch.Generator().manual_seed(5), 0.5 if form == "kohya" else 2.0
    given: dict[str, Tensor] = {}
    changes = {}
    for name in (*base.lora_targets, "layers.1.feed_forward.linear_2", "norm_out.linear_1"):
        layer = base.transformer.get_submodule(name)
        down = torch.randn(2, layer.in_features, generator=generator)
        up = torch.randn(layer.out_features, 2, generator=generator)
        flat = name.replace(".", "_")
        for half, low, tensor in (("A", "down", down), ("B", "up", up)):
            given[FORMS[form].format(name=name, flat=flat, half=half, low=low)] = tensor
        if form == "kohya":
            given[f"lora_unet_{flat}.alpha"] = torch.tensor(alpha)
        changes[name] = up @ down * alpha / 2
    read = NAMING.read(write(given, tmp_path / "lora.safetensors"))
    assert len(read) == 2 * len(changes)
    for name, change in changes.items():
        assert torch.allclose(read[f"{name}.lora_B.weight"] @ read[f"{name}.lora_A.weight"], change, atol=1e-5), name


def test_a_trained_lora_is_written_as_umos_is(tmp_path: Path) -> None:
    trained = small_omnigen2()
    trained.add_lora(2)
    state = load_file(trained.save_lora(tmp_path))
    blocks = [*(f"{stack}_refiner.0" for stack in ("context", "noise", "ref_image")), "layers.0", "layers.1"]
    layers = [f"{block}.attn.{layer}" for block in blocks for layer in ("to_q", "to_k", "to_v", "to_out.0")]
    assert set(state) == {f"{layer}.lora_{half}.default.weight" for layer in layers for half in "AB"}


@pytest.mark.parametrize("layer", ["double_blocks.0.img_attn.qkv", "layers.0.attn.to_add_out", "layers.0.attn.norm_q"])
def test_a_lora_of_another_family_is_refused(layer: str, tmp_path: Path) -> None:
    state = {f"{layer}.lora_A.weight": torch.zeros(2, 48), f"{layer}.lora_B.weight": torch.zeros(48, 2)}
    with pytest.raises(BadInput, match=r"1 keys are not of OmniGen2's naming .*OmniGen2's transformer"):
        NAMING.read(write(state, tmp_path / "lora.safetensors"))


@pytest.mark.parametrize(
    ("layer", "why"), [("layers.31.attn.to_q", "which has no layer"), ("layers.0.attn.to_q", "wide")]
)
def test_a_lora_of_a_larger_base_is_refused(base: OmniGen2, layer: str, why: str, tmp_path: Path) -> None:
    state = {f"{layer}.lora_A.weight": torch.zeros(2, 2520), f"{layer}.lora_B.weight": torch.zeros(2520, 2)}
    path = write(state, tmp_path / "lora.safetensors")
    with pytest.raises(BadInput, match=f"made for another base than folder.*{why}"):
        NAMING.attach(base.transformer, path, base.name)
