"""LoRA files for Qwen-Image in the namings of their writers, against diffusers' own loader where it can read them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import QwenImageEditPlusPipeline
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.umo.customizers.conftest import write
from tests.umo.customizers.small_qwen import small_qwen
from umo.customizers.qwen_edit import QwenEdit
from umo.customizers.qwen_lora import NAMING
from umo.errors import BadInput

RANK, ALPHA = 4, 6.0
LAYERS = (
    "transformer_blocks.0.attn.to_q",
    "transformer_blocks.0.attn.to_out.0",
    "transformer_blocks.1.attn.add_k_proj",
    "transformer_blocks.0.attn.to_add_out",
    "transformer_blocks.1.img_mlp.net.0.proj",
    "transformer_blocks.1.txt_mlp.net.2",
    "transformer_blocks.0.img_mod.1",
)
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def base() -> QwenEdit:
    return small_qwen()


@pytest.fixture(scope="module")
def change(base: QwenEdit) -> dict[str, tuple[Tensor, Tensor]]:
    """Down and up of some layers."""
    generator = torch.Generator().manual_seed(1)
    modules = {name: base.transformer.get_submodule(name) for name in LAYERS}
    return {
        name: (
            torch.randn(RANK, module.in_features, generator=generator) / 4,
            torch.randn(module.out_features, RANK, generator=generator) / 4,
        )
        for name, module in modules.items()
    }


def named(change: dict, prefix: str, halves: tuple[str, str], flat: bool = False, alpha: bool = False) -> State:
    state = {}
    for layer, pair in change.items():
        name = prefix + (layer.replace(".", "_") if flat else layer)
        state |= {f"{name}.{half}.weight": value for half, value in zip(halves, pair, strict=True)}
        if alpha:
            state[f"{name}.alpha"] = torch.tensor(ALPHA)
    return state


AB, DOWN_UP = ("lora_A", "lora_B"), ("lora_down", "lora_up")
# Writer -> how it names a LoRA, and whether diffusers reads it.
NAMINGS: dict[str, tuple[Callable[[dict], State], bool]] = {
    "diffusers": (lambda c: named(c, "transformer.", AB), True),
    "ai-toolkit, ComfyUI": (lambda c: named(c, "diffusion_model.", AB), True),
    "ComfyUI with alpha": (lambda c: named(c, "diffusion_model.", DOWN_UP, alpha=True), True),
    "musubi, kohya": (lambda c: named(c, "lora_unet_", DOWN_UP, flat=True, alpha=True), True),
    "DiffSynth": (lambda c: named(c, "", ("lora_A.default", "lora_B.default")), True),
    "Lightning": (lambda c: named(c, "", DOWN_UP, alpha=True), True),
    "diffusers with alpha": (lambda c: named(c, "transformer.", AB, alpha=True), False),
    "DiffSynth, prefixed": (lambda c: named(c, "transformer.", ("lora_A.default", "lora_B.default")), False),
    "bare without alpha": (lambda c: named(c, "", DOWN_UP), False),
    "SimpleTuner": (lambda c: named(c, "lycoris_", DOWN_UP, flat=True, alpha=True), False),
}


@pytest.mark.parametrize("writer", NAMINGS)
def test_every_naming_is_the_same_change(writer: str, change: dict, tmp_path: Path) -> None:
    naming, known = NAMINGS[writer]
    state = naming(change)
    scale = ALPHA / RANK if any(key.endswith(".alpha") for key in state) else 1
    path = write(state, tmp_path / "lora.safetensors")
    found = NAMING.read(path)
    assert found.keys() == {f"{layer}.{half}.weight" for layer in change for half in AB}
    for layer, (down, up) in change.items():
        product = found[f"{layer}.lora_B.weight"] @ found[f"{layer}.lora_A.weight"]
        torch.testing.assert_close(product, scale * up @ down, msg=layer)
    if known:
        theirs = QwenImageEditPlusPipeline.lora_state_dict(path)
        assert {key.removeprefix("transformer.") for key in theirs} == found.keys()
        for layer in change:
            one, other = ([states[key] for key in states if f"{layer}.lora_" in key] for states in (found, theirs))
            torch.testing.assert_close(sum_of(one), sum_of(other), msg=layer)


def sum_of(halves: list[Tensor]) -> Tensor:
    down, up = sorted(halves, key=len)
    return up @ down


def test_every_layer_has_a_name(base: QwenEdit) -> None:
    """Dotted and flat, of the whole transformer; and nothing else has one."""
    layers = [name for name, module in base.transformer.named_modules() if isinstance(module, nn.Linear)]
    assert len(layers) == 2 * (8 + 6) + 6
    for layer in layers:
        for name in (layer, layer.replace(".", "_")):
            assert [place.layer for place in NAMING.places(name)] == [layer]
    for name in ("attn.to_q", "transformer_blocks.0.img_in", "transformer_blocks.0", "double_blocks.0.img_attn.qkv"):
        assert not NAMING.places(name)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("double_blocks.0.img_attn.proj", r"1 keys are not of Qwen-Image's naming \(double_blocks"),
        ("transformer_blocks.0.attn.to_out", "1 keys are not of Qwen-Image's naming"),
        ("lora_unet_transformer_blocks_0_attn_to_q", "are for the same layer"),
    ],
)
def test_leftovers_are_refused(key: str, message: str, change: dict, tmp_path: Path) -> None:
    down, up = change[LAYERS[0]]
    more = {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
    path = write(NAMINGS["diffusers"][0](change) | more, tmp_path / "lora.safetensors")
    with pytest.raises(BadInput, match=message):
        NAMING.read(path)


def test_a_lora_of_another_width(change: dict, tmp_path: Path) -> None:
    up = change[LAYERS[0]][1]
    path = write(named({LAYERS[0]: (torch.ones(RANK, 3072), up)}, "transformer.", AB), tmp_path / "lora.safetensors")
    with pytest.raises(BadInput, match=r"made for another base than small-qwen.*32 wide there, 3072 here"):
        NAMING.attach(small_qwen().transformer, path, "small-qwen")


def test_our_file_is_diffusers_and_comfyuis(change: dict, tmp_path: Path) -> None:
    """ComfyUI knows `transformer.LAYER` of every layer that diffusers has, with these halves (its comfy/lora.py)."""
    bare = small_qwen()
    state = {key.removeprefix("transformer."): value for key, value in NAMINGS["diffusers"][0](change).items()}
    path = NAMING.save(state, tmp_path, "small-qwen")
    written = load_file(path)
    assert written.keys() == {f"transformer.{layer}.{half}.weight" for layer in LAYERS for half in AB}
    assert all(torch.equal(written[f"transformer.{key}"], value) for key, value in state.items())
    theirs, merged = small_qwen(), small_qwen()
    theirs.pipeline().load_lora_weights(tmp_path)
    with torch.no_grad():
        for layer, (down, up) in change.items():
            merged.transformer.get_submodule(layer).weight += up @ down
    NAMING.attach(bare.transformer, path, "small-qwen")
    condition = bare.condition(["on the left"], [[]])
    noise = torch.randn(1, *bare.latents_shape((32, 64)), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        ours, others, sums = (one.velocity(noise, 0.5, condition) for one in (bare, theirs, merged))
        plain = small_qwen().velocity(noise, 0.5, condition)
    assert (ours - plain).abs().max() > 0.05
    assert torch.equal(ours, others)
    torch.testing.assert_close(ours, sums, rtol=1e-4, atol=1e-4)


def test_a_file_of_ours_says_its_alpha(change: dict, tmp_path: Path) -> None:
    path = write(NAMINGS["Lightning"][0](change), tmp_path / "given.safetensors")
    saved = NAMING.save(NAMING.read(path), tmp_path / "saved", "small-qwen")
    with safe_open(saved, "pt") as file:
        said = json.loads(file.metadata()["lora_adapter_metadata"])
    assert (said["transformer.r"], said["transformer.lora_alpha"]) == (RANK, RANK)
    read = NAMING.read(saved)
    assert all(torch.equal(read[key], value) for key, value in NAMING.read(path).items())
