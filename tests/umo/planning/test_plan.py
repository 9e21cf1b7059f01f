"""`umo plan`, against peaks that a GPU had."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from umo.cli import app
from umo.customizers import load
from umo.errors import BadInput, WorkFailed
from umo.planning import search
from umo.planning.bases import Base, find
from umo.planning.memory import GIB, Memory, Switches, Work, estimate
from umo.planning.published import PUBLISHED
from umo.training.recipe import Recipe

TINY_UNO = Path(__file__).resolve().parents[3] / "models" / "tiny-uno"
# Allocated at most on an H200, in GiB (bench/gpu.py; one sample, two references of 320 px, 512 px, no averaging).
MEASURED = {
    Switches(512): 63.0,
    Switches(512, checkpointing=True): 44.8,
    Switches(64, checkpointing=True): 28.1,
    Switches(512, checkpointing=True, weights="fp8"): 36.7,
}


@pytest.mark.slow
def test_estimates_are_near_measured_peaks_and_flux1_trains_on_24_gib() -> None:
    # As it was measured: the autoencoder in 16 bits, and every layer's LoRA with a down of its own.
    base = dataclasses.replace(find("flux1"), settings={"as_uno": False})
    work = Work((512, 512), references=2, side=320)
    estimates = {switches: estimate(base, work, switches).update / GIB for switches in MEASURED}
    assert estimates == pytest.approx(MEASURED, rel=0.05)  # 0.15 is asked for
    small = search.plan(base, work, 24, {"rank": 64})
    assert small.fits and small.chosen == Switches(64, checkpointing=True, weights="fp8")
    assert search.plan(base, work, 141, {}).chosen == Switches()
    assert not search.plan(base, work, 8, {"rank": 512, "weights": "full"}).fits


def test_parts_are_what_the_base_has() -> None:
    """Weights against the loaded base, at another depth than those that are counted."""
    base = find(str(TINY_UNO))
    work = Work((64, 128), references=1, side=64, averaged=True)
    memory = estimate(base, work, Switches(rank=4))
    loaded = load(TINY_UNO, dtype=torch.bfloat16)
    loaded.add_lora(4)
    weights = dict(loaded.transformer.named_parameters())
    lora = sum(weight.nbytes for name, weight in weights.items() if ".lora_" in name)
    assert memory.transformer == sum(weight.nbytes for name, weight in weights.items() if ".lora_" not in name)
    assert (memory.lora, memory.gradients, memory.optimizer, memory.copies) == (lora, lora, 2 * lora, lora)
    merged = estimate(base, dataclasses.replace(work, merged=True), Switches(rank=4)).rollout - memory.rollout
    assert merged == sum(weights[f"{name}.base_layer.weight"].nbytes for name in loaded.lora_targets)
    encoders = [*loaded.text_encoder.parameters(), *loaded.text_encoder_2.parameters()]
    assert memory.text_encoders == sum(weight.nbytes for weight in encoders)
    assert memory.update == memory.held + max(memory.diffusion_pass, memory.reward_pass, memory.optimizer_step)


def test_published_bases_have_their_number_of_parameters() -> None:
    """In thousand millions, as the models' cards say."""
    known = {"flux2-klein-4b": 3.88, "flux2-klein-9b": 9.08, "flux2-dev": 32.22, "qwen-image-edit": 20.43}
    for name, billions in known.items():
        kind = getattr(diffusers, PUBLISHED[name]["index"]["transformer"][1])
        with torch.device("meta"):
            network = kind.from_config(PUBLISHED[name]["transformer"])
        assert sum(weight.numel() for weight in network.parameters()) / 1e9 == pytest.approx(billions, abs=0.005)


class Counter:
    """Memory by a rule of thumb, and what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[Switches] = []

    def __call__(self, base: Base, work: Work, switches: Switches) -> Memory:
        self.asked.append(switches)
        frozen = {"full": 16, "fp8": 8, "int8": 8, "nf4": 4}[switches.weights] * GIB
        lora = switches.rank * GIB // 64
        optimizer = lora * 2 if switches.optimizer == "adamw" else lora // 2
        passes = (2 if switches.checkpointing else 20) * GIB
        return Memory(frozen, 0, lora, lora, optimizer, 0, 0, passes, 0, passes, 0, 0, 0, reserve=0)


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    made = Counter()
    monkeypatch.setattr(search, "estimate", made)
    return made


@pytest.mark.parametrize(
    ("card", "given", "chosen"),
    [
        (68, {}, Switches(512)),
        (50, {}, Switches(512, True)),
        (42, {}, Switches(512, True, "full", "adamw8bit")),
        (34, {"optimizer": "adamw"}, Switches(256, True)),
        (30, {}, Switches(512, True, "fp8", "adamw8bit")),
        (12, {"rank": 128}, Switches(128, True, "nf4", "adamw8bit")),
        (24, {"rank": 64, "checkpointing": False}, None),
    ],
)
def test_the_cheapest_that_fits_is_chosen(
    counter: Counter, card: float, given: dict[str, Any], chosen: Switches | None
) -> None:
    found = search.plan(find(str(TINY_UNO)), Work((64, 128), references=1, side=64), card, given)
    assert found.fits == (chosen is not None)
    assert chosen in (None, found.chosen)
    assert all(getattr(found.chosen, name) == value for name, value in given.items())
    assert all(one.checkpointing for one in counter.asked if one.weights == "fp8")  # without, fp8 saves nothing
    if chosen is None:  # the least that any way needs
        assert found.memory.needed == min(counter(found.base, found.work, one).needed for one in list(counter.asked))


def test_command_prints_a_recipe_or_leaves_with_1(counter: Counter, capsys: pytest.CaptureFixture) -> None:
    asked = ["plan", "--base", str(TINY_UNO), "--size", "64x64", "--rank", "64"]
    app([*asked, "--gpu-memory", "20"], standalone_mode=False)
    printed = capsys.readouterr().out
    assert "--set rank=64 --set weights=fp8 --set optimizer=adamw --set precision=bf16" in printed
    assert "--set checkpoint_gradients=true" in printed and "Without a switch it needs 40.0 GiB" in printed
    app([*asked, "--gpu-memory", "20", "--json"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] and Recipe(steps=1, **found["recipe"]).weights == "fp8"
    assert found["bytes"]["needed"] == 14 * GIB
    with pytest.raises(WorkFailed, match=r"does not fit 6 GiB: with what is held it needs 8\.5: take a larger card"):
        app([*asked, "--gpu-memory", "6"], standalone_mode=False)


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such folder, and no base of that name: give one or flux1, "):
        find("flux3")
    with pytest.raises(BadInput, match=r"model_index\.json is missing"):
        find(str(tmp_path))
    index = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(BadInput, match=r"transformer/config\.json is missing"):
        find(str(tmp_path))
    index |= {"_class_name": "StableDiffusionPipeline", "vae": ["diffusers", "AutoencoderKL"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    for part in ("transformer", "vae"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text("{}")
    with pytest.raises(BadInput, match="a StableDiffusionPipeline, and umo trains FluxPipeline"):
        find(str(tmp_path))
    base = find(str(TINY_UNO))
    work = Work((64, 128), references=1, side=64)
    with pytest.raises(BadInput, match="--gpu-memory 0: give the card's memory"):
        search.plan(base, work, 0, {})
    with pytest.raises(BadInput, match="--gpu-memory inf: give the card's memory"):
        search.plan(base, work, float("inf"), {})
    with pytest.raises(BadInput, match="--rank 0: give a number above 0"):
        search.plan(base, work, 24, {"rank": 0})
    with pytest.raises(BadInput, match="multiples of 8"):
        search.plan(base, Work((60, 128), references=1, side=64), 24, {})
