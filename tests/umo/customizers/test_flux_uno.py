"""What is FLUX.1's own, in both of its bases: the autoencoder's scale, packing, positions, schedule, FluxPipeline."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from tests.umo.customizers.conftest import FAMILIES, PROMPTS, people, smooth
from umo import flow
from umo.customizers import CONDITIONAL, Drawing, draw, load
from umo.customizers.base import seeded_noise
from umo.customizers.flux_tokens import diagonal_ids, pack, unpack
from umo.customizers.flux_uno import FluxUno


@pytest.fixture(params=["tiny", "flux"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def customizer(family: str, folders: dict[str, Path]) -> FluxUno:
    return load(folders[family])  # type: ignore[return-value]


def test_latents_are_scaled_as_flux_pipeline_scales_them(customizer: FluxUno, family: str) -> None:
    images = smooth(1, *FAMILIES[family].size)
    config = customizer.vae.config
    plain = customizer.vae.encode(images).latent_dist.mode()
    latents = customizer.encode(images)
    assert torch.allclose(latents / config.scaling_factor + config.shift_factor, plain, atol=1e-5)
    assert torch.allclose(customizer.decode(latents), customizer.vae.decode(plain).sample, atol=1e-4)


def test_packing_is_flux_pipelines(customizer: FluxUno) -> None:
    latents = torch.randn(2, 16, 6, 10)
    pipeline = customizer.pipeline()
    packed = pipeline._pack_latents(latents, 2, 16, 6, 10)
    assert torch.equal(pack(latents), packed)
    assert torch.equal(unpack(packed, 6, 10), latents)


def test_position_ids_run_down_the_diagonal() -> None:
    ids = diagonal_ids([(2, 3), (1, 2), (2, 1)])
    assert ids[:, 0].tolist() == [0] * 10
    assert ids[:6, 1:].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert ids[6:8, 1:].tolist() == [[2, 3], [2, 4]]
    assert ids[8:, 1:].tolist() == [[3, 5], [4, 5]]


def test_without_references_it_draws_what_flux_pipeline_draws(customizer: FluxUno, family: str) -> None:
    (height, width), steps = FAMILIES[family].size, 3
    noise = seeded_noise(customizer, [5], (height, width))
    pipeline = customizer.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        PROMPTS[1],
        height=height,
        width=width,
        num_inference_steps=steps,
        guidance_scale=2.5,
        latents=pack(noise),
        max_sequence_length=customizer.tokenizer_2.model_max_length,
        output_type="pt",
    ).images
    ours = draw(customizer, [PROMPTS[1]], [[]], [5], Drawing((height, width), steps, 2.5))
    assert torch.allclose(ours, theirs * 2 - 1, atol=1e-4)


def test_velocity_has_the_schedulers_sign_and_time(customizer: FluxUno, family: str) -> None:
    size, steps = FAMILIES[family].size, 4
    condition = customizer.condition(PROMPTS[:1], people()[:1])
    sigmas = customizer.sigmas(steps, size)
    assert sigmas[0] == 1 and sigmas[-1] == 0 and (sigmas.diff() < 0).all()
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(customizer.scheduler.config)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist(), mu=_mu(customizer, size))
    x = seeded_noise(customizer, [0], size)
    theirs = x
    with torch.no_grad():
        for time in scheduler.timesteps:
            velocity = customizer.velocity(theirs, time / scheduler.config.num_train_timesteps, condition)
            theirs = scheduler.step(velocity, time, theirs).prev_sample
        ours = flow.rollout(lambda x, sigma: customizer.velocity(x, sigma, condition), x, sigmas)
    assert torch.allclose(ours, theirs, atol=1e-5)


def _mu(customizer: FluxUno, size: tuple[int, int]) -> float:
    return flow.linear_mu(size[0] * size[1] // customizer.multiple**2)


def test_a_prompt_has_512_tokens_where_the_tokenizer_takes_as_many(folders: dict[str, Path]) -> None:
    """As FLUX.1 and UNO do; CLIP's 77 are its own."""
    customizer = load(folders["flux"])
    customizer.tokenizer_2.model_max_length = 600
    words = ["a c e"] * 60
    text = customizer.condition([" ".join(words), " ".join([*words, "g"])], [[], []]).stack("text")
    assert text.shape[1] == 512
    assert not torch.allclose(text[0, 100:], text[1, 100:]), "what stands late in a prompt is read"


def test_a_flux_folder_needs_no_settings_of_ours(folders: dict[str, Path], tmp_path: Path) -> None:
    base = Path(shutil.copytree(folders["flux"], tmp_path / "base"))
    (base / "customizer.json").unlink()
    settings = load(base).settings
    assert (settings.reference_side, settings.references_side) == (512, 320)
    assert (settings.guidance.text, settings.training_guidance, settings.steps) == (4.0, CONDITIONAL, 25)
    assert settings.as_uno


def test_the_embedded_base_is_not_tuned_as_uno(folders: dict[str, Path], tmp_path: Path) -> None:
    base = Path(shutil.copytree(folders["tiny"], tmp_path / "base"))
    path = base / "customizer.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in told.items() if key != "as_uno"}))
    assert not load(base).settings.as_uno
    path.unlink()
    assert not load(base).settings.as_uno


@pytest.mark.parametrize(
    ("size", "mu"), [((512, 512), 0.5 - 240 * 0.65 / 3840), ((1024, 768), 0.5 - 208 * 0.65 / 3840)]
)
def test_unos_schedule(folders: dict[str, Path], size: tuple[int, int], mu: float) -> None:
    """Its own formula, exp(mu) / (exp(mu) + 1/t - 1), at 16 and 48 tokens where FluxPipeline counts 1,024 and 3,072."""
    base: FluxUno = load(folders["flux"])  # type: ignore[assignment]
    plain = base.sigmas(25, size)
    base.settings = base.settings.model_copy(update={"as_uno": True})
    times = torch.linspace(1, 0, 26, dtype=torch.float64)[:-1]
    expected = [math.exp(mu) / (math.exp(mu) + 1 / t - 1) for t in times.tolist()]
    assert base.sigmas(25, size).tolist() == pytest.approx([*expected, 0], abs=1e-6)
    assert (base.sigmas(25, size) - plain).abs().max() > 0.03


def test_the_autoencoder_stays_in_float32(folders: dict[str, Path], tmp_path: Path) -> None:
    """Under training's autocast too."""
    base = Path(shutil.copytree(folders["flux"], tmp_path / "base"))
    path = base / "customizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"as_uno": True}))
    half: FluxUno = load(base, dtype=torch.bfloat16)  # type: ignore[assignment]
    whole = load(folders["flux"])
    assert (half.vae.dtype, half.transformer.dtype) == (torch.float32, torch.bfloat16)
    images = smooth(1, 32, 64)
    latents = whole.encode(images)
    picture = whole.decode(latents)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(half.encode(images), latents)
        assert torch.equal(half.decode(latents), picture)
