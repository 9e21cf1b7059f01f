"""LoRA files of FLUX.2 as others write them: one low-rank change of the original layers, written in every naming.

What a change of the original's weights is in diffusers, its own converter of checkpoints says; it is linear.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import Flux2KleinPipeline
from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers
from safetensors.torch import load_file
from torch import Tensor

from tests.umo.customizers.conftest import people, write
from tests.umo.customizers.small_flux2 import small_flux2
from tests.umo.customizers.test_lora_files import AB, DOWN_UP, Change, State, assert_same, deltas, named
from umo.customizers import flux2_lora, load
from umo.customizers.base import seeded_noise
from umo.customizers.flux2_lora import NAMING
from umo.errors import BadInput

WIDTH, MLP, ALPHA, RANK = 32, 3 * 32, 3.0, 2
# Original layer -> inputs, outputs.
BLOCKS = {
    f"double_blocks.0.{stream}_{layer}": sides
    for stream in ("img", "txt")
    for layer, sides in {
        "attn.qkv": (WIDTH, 3 * WIDTH),
        "attn.proj": (WIDTH, WIDTH),
        "mlp.0": (WIDTH, 2 * MLP),
        "mlp.2": (MLP, WIDTH),
    }.items()
} | {
    f"single_blocks.1.{layer}": sides
    for layer, sides in {"linear1": (WIDTH, 3 * WIDTH + 2 * MLP), "linear2": (WIDTH + MLP, WIDTH)}.items()
}
ENDS = {
    "img_in": (32, WIDTH),
    "txt_in": (96, WIDTH),
    "time_in.in_layer": (256, WIDTH),
    "time_in.out_layer": (WIDTH, WIDTH),
    "double_stream_modulation_img.lin": (WIDTH, 6 * WIDTH),
    "double_stream_modulation_txt.lin": (WIDTH, 6 * WIDTH),
    "single_stream_modulation.lin": (WIDTH, 3 * WIDTH),
    "final_layer.linear": (WIDTH, 32),
    "final_layer.adaLN_modulation.1": (WIDTH, 2 * WIDTH),
}


def random_change(layers: dict[str, tuple[int, int]]) -> Change:
    generator = torch.Generator().manual_seed(4)
    return {
        layer: (
            torch.randn(RANK, inside, generator=generator) * inside**-0.5,
            torch.randn(outside, RANK, generator=generator) * RANK**-0.5,
        )
        for layer, (inside, outside) in layers.items()
    }


def converted(change: Change) -> State:
    """What the change adds to each layer's weight in diffusers."""
    whole = {f"{layer}.weight": up @ down for layer, (down, up) in change.items()}
    in_diffusers = convert_flux2_transformer_checkpoint_to_diffusers(whole)
    return {key.removesuffix(".weight"): delta for key, delta in in_diffusers.items()}


def parts(change: Change) -> Change:
    """The same change of diffusers' layers, each with a down and an up of its own."""
    cut: Change = {}
    for layer, delta in converted(change).items():
        left, values, right = torch.linalg.svd(delta, full_matrices=False)
        cut[layer] = right[:RANK], left[:, :RANK] * values[:RANK]
    return cut


# Writer -> whether it names diffusers' layers, and its file; those that hold no alpha have the rank's.
NAMINGS: dict[str, tuple[bool, Callable[[Change], State]]] = {
    "diffusers": (True, lambda c: named(c, "transformer.", *AB)),
    "DiffSynth": (True, lambda c: named(c, "", "lora_A.default", "lora_B.default")),
    "DiffSynth, prefixed": (True, lambda c: named(c, "transformer.", "lora_A.default", "lora_B.default")),
    "peft": (True, lambda c: named(c, "base_model.model.", *AB)),
    "expanded": (True, lambda c: named(c, "diffusion_model.", *AB)),
    "OneTrainer": (True, lambda c: named(c, "lora_transformer_", *DOWN_UP, flat=True, alpha=ALPHA)),
    "ai-toolkit": (False, lambda c: named(c, "diffusion_model.", *AB)),
    "ComfyUI": (False, lambda c: named(c, "diffusion_model.", *DOWN_UP, alpha=ALPHA)),
    "ComfyUI, with A and B": (False, lambda c: named(c, "diffusion_model.", *AB, alpha=ALPHA)),
    "musubi": (False, lambda c: named(c, "lora_unet_", *DOWN_UP, flat=True, alpha=ALPHA)),
    "kohya without alpha": (False, lambda c: named(c, "lora_unet_", *DOWN_UP, flat=True)),
    "original, peft": (False, lambda c: named(c, "base_model.model.", *AB)),
}


@pytest.mark.parametrize("writer", NAMINGS)
def test_every_naming_is_the_same_change(writer: str, tmp_path: Path) -> None:
    change = random_change(BLOCKS | ENDS)
    of_diffusers, naming = NAMINGS[writer]
    state = naming(parts(change) if of_diffusers else change)
    scale = ALPHA / RANK if any(key.endswith(".alpha") for key in state) else 1
    found = NAMING.read(write(state, tmp_path / "lora.safetensors"))
    assert_same(deltas(found), {layer: scale * delta for layer, delta in converted(change).items()})


@pytest.mark.parametrize("writer", ["ai-toolkit", "musubi"])
def test_what_diffusers_converts_is_read_as_it_does(writer: str, tmp_path: Path) -> None:
    """Its own converter of LoRAs, which leaves the halves of the last modulation as they are, and drops kohya's."""
    change = random_change(BLOCKS | {layer: ENDS[layer] for layer in ("img_in", "time_in.out_layer")})
    path = write(NAMINGS[writer][1](change), tmp_path / "lora.safetensors")
    theirs = {key.removeprefix("transformer."): one for key, one in Flux2KleinPipeline.lora_state_dict(path).items()}
    assert_same(deltas(NAMING.read(path)), deltas(theirs))


def test_dev_embeds_guidance_in_layers_of_its_own() -> None:
    change = random_change({"guidance_in.in_layer": (256, WIDTH), "guidance_in.out_layer": (WIDTH, WIDTH)})
    assert_same(deltas(NAMING.to_layers(named(change, "diffusion_model.", *AB))), converted(change))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("double_blocks.0.img_mod.lin", r"2 keys are not of FLUX\.2's naming .*double_blocks\.0\.img_mod\.lin"),
        ("single_blocks.0.modulation.lin", r"2 keys are not of FLUX\.2's naming"),
        ("vector_in.in_layer", r"2 keys are not of FLUX\.2's naming"),
    ],
)
def test_leftovers_are_refused_by_name(layer: str, message: str, tmp_path: Path) -> None:
    """Layers of FLUX.1, among whole ones of FLUX.2."""
    change = random_change(BLOCKS | {layer: (WIDTH, WIDTH), f"{layer}.more": (WIDTH, WIDTH)})
    path = write(named(change, "diffusion_model.", *AB), tmp_path / "lora.safetensors")
    with pytest.raises(BadInput, match=message):
        NAMING.read(path)


def test_files_of_another_form_or_size(tmp_path: Path) -> None:
    lokr = {"diffusion_model.double_blocks.0.img_attn.qkv.lokr_w1": torch.ones(2, 2)}
    with pytest.raises(BadInput, match="1 tensors are LoKr"):
        NAMING.read(write(lokr, tmp_path / "lokr.safetensors"))
    wide = random_change({"single_blocks.0.linear2": (160, WIDTH)})
    path = write(named(wide, "diffusion_model.", *AB), tmp_path / "wide.safetensors")
    with pytest.raises(BadInput, match=r"made for another base than small-flux2: single_transformer_blocks\.0\.attn"):
        NAMING.attach(small_flux2().transformer, path, "small-flux2")
    of_dev = random_change({"guidance_in.in_layer": (256, WIDTH)})
    path = write(named(of_dev, "diffusion_model.", *AB), tmp_path / "dev.safetensors")
    with pytest.raises(BadInput, match=r"has no layer time_guidance_embed\.guidance_embedder\.linear_1"):
        NAMING.attach(small_flux2().transformer, path, "small-flux2")


def test_a_lora_of_the_original_draws_as_the_changed_weights_do(folders: dict[str, Path], tmp_path: Path) -> None:
    """The last modulation's swapped halves among them."""
    change = random_change(BLOCKS | ENDS)
    path = write(named(change, "lora_unet_", *DOWN_UP, flat=True, alpha=ALPHA), tmp_path / "lora.safetensors")
    adapted, merged = load(folders["flux2"], lora=path), load(folders["flux2"])
    condition = adapted.condition(["on the left"], people()[:1])
    noise = seeded_noise(adapted, [1], (32, 64))

    def velocity(base: object) -> Tensor:
        with torch.no_grad():
            return base.velocity(noise, 0.6, condition)  # type: ignore[attr-defined]

    before = velocity(merged)
    for layer, delta in converted(change).items():
        merged.transformer.get_submodule(layer).weight.data += ALPHA / RANK * delta
    assert (velocity(merged) - before).abs().max() > 0.1, "the LoRA is not felt"
    torch.testing.assert_close(velocity(adapted), velocity(merged), rtol=1e-4, atol=1e-4)


# Layers of diffusers that ComfyUI finds in FLUX.2, each with its prefix "transformer." (its `flux_to_diffusers`).
COMFYUI = {"attn.to_q", "attn.to_k", "attn.to_v", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"} | {
    "attn.to_out.0",
    "attn.to_add_out",
    "attn.to_qkv_mlp_proj",
    "attn.to_out",
}


def test_what_is_trained_is_written_in_names_that_comfyui_knows(tmp_path: Path) -> None:
    base = small_flux2()
    base.add_lora(2)
    keys = load_file(base.save_lora(tmp_path))
    layers = {key.split(".lora_")[0] for key in keys}
    assert {layer.removeprefix("transformer.") for layer in layers} == set(base.lora_targets)
    assert {layer.split(".", 3)[3] for layer in layers} == COMFYUI
    assert all(key.startswith("transformer.") and key.endswith((".lora_A.weight", ".lora_B.weight")) for key in keys)


def test_the_layers_are_those_of_real_files_at_klein_4b() -> None:
    """1.17 M parameters a rank."""
    width = 3072
    sides = {"attn.to_qkv_mlp_proj": 10 * width, "attn.to_out": 5 * width}
    count = sum(sides.get(layer.split(".", 2)[2], 2 * width) for layer in flux2_lora.ATTENTION_BLOCKS.modules(5, 20))
    assert count == 1_167_360
