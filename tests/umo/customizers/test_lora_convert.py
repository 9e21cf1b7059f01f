"""`umo lora convert`: every form against files written here from the original layers, and back to the same change."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.umo.customizers.conftest import FAMILIES, write
from tests.umo.customizers.test_flux_lora import random_lora
from tests.umo.customizers.test_lora_files import NAMINGS, assert_same, deltas, named, parts, random_change, table
from umo.customizers import CUSTOMIZERS, load
from umo.customizers.flux_lora import NAMING
from umo.customizers.lora_convert import Converted, convert
from umo.customizers.lora_file import Naming
from umo.errors import BadInput

LAYERS = table(32)
CHANGE = random_change(LAYERS, 2)
WHOLE = {("uno", "comfyui"), ("uno", "kohya")}  # they have no name for a part of a layer
FORMS = {"comfyui": "ai-toolkit", "kohya": "kohya without alpha", "diffusers": "diffusers"}


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """In diffusers' naming; q, k and v of a block have one down, as they have when they come from one layer."""
    return write(NAMINGS["diffusers"][1](parts(CHANGE, LAYERS)), tmp_path / "given.safetensors")


@pytest.mark.parametrize("form", FORMS)
def test_what_is_written_is_what_its_programs_write(form: str, given: Path, tmp_path: Path) -> None:
    of_diffusers, naming = NAMINGS[FORMS[form]]
    expected = naming(parts(CHANGE, LAYERS) if of_diffusers else CHANGE)
    converted = convert(given, tmp_path / "out/lora.safetensors", form)  # type: ignore[arg-type]
    assert converted == Converted("FLUX.1", len(LAYERS) if form != "diffusers" else len(parts(CHANGE, LAYERS)), (2,))
    found = load_file(tmp_path / "out/lora.safetensors")
    alphas = [key for key in found if key.endswith(".alpha")]
    assert len(alphas) == (len(LAYERS) if form == "kohya" else 0) and all(found.pop(key) == 2 for key in alphas)
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)


@pytest.mark.parametrize("form", ["diffusers", "comfyui", "kohya", "uno"])
@pytest.mark.parametrize("writer", ["uno", "kohya", "peft"])
def test_any_naming_becomes_any_other_with_its_alpha(writer: str, form: str, tmp_path: Path) -> None:
    attention = {key: value for key, value in table(32).items() if "attn" in key}
    change = random_change(attention, 2)
    state = (
        random_lora(doubles=1, singles=1)
        if writer == "uno"
        else NAMINGS[writer][1](parts(change, attention) if NAMINGS[writer][0] else change)
    )
    source, target = write(state, tmp_path / "in.safetensors"), tmp_path / "out.safetensors"
    convert(source, target, form, "FLUX.1")  # type: ignore[arg-type]
    found, expected = deltas(NAMING.read(target)), deltas(NAMING.read(source))
    extra = found.keys() - expected.keys()  # the part of a single block's first layer that UNO leaves alone
    assert extra == ({"single_transformer_blocks.0.proj_mlp"} if (writer, form) in WHOLE else set())
    assert not any(found.pop(layer).any() for layer in extra)
    assert_same(found, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_familys_lora_is_the_same_change_in_every_form(
    family: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    base: Any = load(folders[family])
    base.add_lora(2)
    generator = torch.Generator().manual_seed(4)
    for weight in base.transformer.parameters():
        if weight.requires_grad:
            weight.data = torch.randn(weight.shape, generator=generator)
    source, target = base.save_lora(tmp_path), tmp_path / "out.safetensors"
    expected = deltas(base.naming.read(source))
    assert expected.keys() == set(base.lora_targets)
    for form in ("diffusers", "comfyui", "kohya"):
        convert(source, target, form, base.naming.family)  # type: ignore[arg-type]
        found = deltas(base.naming.read(target))
        assert not any(found.pop(layer).any() for layer in found.keys() - expected.keys())
        assert_same(found, expected)


def test_downs_of_their_own_are_stacked(tmp_path: Path) -> None:
    state = {
        f"transformer.transformer_blocks.0.attn.to_{part}.lora_{half}.weight": torch.randn(
            (rank, 32) if half == "A" else (32, rank), generator=torch.Generator().manual_seed(rank)
        )
        for rank, part in ((2, "q"), (3, "v"))
        for half in "AB"
    }
    source, target = write(state, tmp_path / "in.safetensors"), tmp_path / "out.safetensors"
    assert convert(source, target, "comfyui", "FLUX.1") == Converted("FLUX.1", 1, (5,))
    found = deltas(NAMING.read(target))
    assert not found.pop("transformer_blocks.0.attn.to_k").any()
    assert_same(found, deltas(NAMING.read(source)))


def test_the_file_says_its_base_licence_and_settings(tmp_path: Path) -> None:
    source = tmp_path / "in.safetensors"
    state = random_lora()
    save_file(state, source, metadata={"base": "FLUX.1-dev", "license": "cc-by-nc-4.0"})
    said = {}
    for form in ("diffusers", "uno"):
        convert(source, tmp_path / "out.safetensors", form)  # type: ignore[arg-type]
        with safe_open(tmp_path / "out.safetensors", "pt") as file:
            said[form] = file.metadata()
    assert all((one["base"], one["licence"]) == ("FLUX.1-dev", "cc-by-nc-4.0") for one in said.values())
    assert json.loads(said["diffusers"]["lora_adapter_metadata"])["transformer.r"] == 4
    assert "lora_adapter_metadata" not in said["uno"]


def test_a_family_is_asked_for_where_keys_fit_several(given: Path, tmp_path: Path, monkeypatch) -> None:
    twin = Naming("FLUX.9", NAMING.places)
    adapter = type("Adapter", (), {"naming": twin})
    monkeypatch.setitem(CUSTOMIZERS, "Flux9Pipeline", lambda: adapter)
    with pytest.raises(BadInput, match=r"its keys are those of FLUX.1.* and of FLUX.9; say whose it is with --family"):
        convert(given, tmp_path / "out.safetensors", "diffusers")
    assert convert(given, tmp_path / "out.safetensors", "diffusers", "flux.9").family == "FLUX.9"
    with pytest.raises(BadInput, match=r"cannot be written in the form 'uno' \(FLUX.9 has no naming of UNO's\)"):
        convert(given, tmp_path / "out.safetensors", "uno", "FLUX.9")


def test_what_cannot_be_converted_is_refused_and_changes_nothing(given: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    out.write_text("before")
    half = load_file(given)
    half.pop(min(half))
    left = named({"middle": CHANGE["double_blocks.1.img_attn.proj"]}, "lora_unet_", "lora_down", "lora_up")
    for source, form, message in (
        (given, "uno", r"given.safetensors: cannot be written in the form 'uno' \(\d+ layers have no place in it"),
        (write(half, tmp_path / "half.safetensors"), "kohya", "half.safetensors: .* has no (up|down)"),
        (write(left, tmp_path / "left.safetensors"), "kohya", r"left.safetensors: 1 keys are not of FLUX.1's naming"),
        (tmp_path / "none.safetensors", "kohya", "none.safetensors: LoRA missing"),
    ):
        with pytest.raises(BadInput, match=message):
            convert(source, out, form)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=r"name a \.safetensors file to write"):
        convert(given, tmp_path / "folder", "kohya")
    with pytest.raises(BadInput, match=r"--family SD: no such family; choose one of FLUX.1"):
        convert(given, out, "kohya", "SD")
    assert out.read_text() == "before" and not list(tmp_path.glob(".*.tmp"))
