"""What is FLUX.2's own: diffusers' pipelines of klein base, klein distilled and dev, and all their rules."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor
from PIL import Image

from tests.umo.customizers.conftest import PROMPTS, people, smooth
from tests.umo.customizers.small_flux2 import small_flux2
from umo.customizers import CONDITIONAL, Drawing, Guidance, draw, load
from umo.customizers.base import seeded_noise
from umo.customizers.flux2 import Flux2
from umo.customizers.flux2_tokens import fit, picture_ids, text_ids
from umo.errors import BadInput

KINDS: dict[str, dict[str, bool]] = {"base": {}, "distilled": {"distilled": True}, "dev": {"dev": True}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a kind, saved when it is first asked for; do not write into it."""
    root = tmp_path_factory.mktemp("flux2")

    def folder(kind: str) -> Path:
        if not (root / kind).exists():
            small_flux2(**KINDS[kind]).save(root / kind)
        return root / kind

    return folder


@pytest.fixture(scope="module")
def loaded(saved: Callable[[str], Path]) -> Callable[[str], Flux2]:
    """The base of a kind, read back once; do not change it."""
    found: dict[str, Any] = {}
    return lambda kind: found.get(kind) or found.setdefault(kind, load(saved(kind)))


def pictures(count: int) -> list[np.ndarray]:
    """References (H, W, 3) uint8 whose sides are no multiples of 16."""
    made = [smooth(1, *size, seed=k)[0] for k, size in enumerate([(70, 90), (100, 75)])]
    return [((one + 1) * 127.5).byte().permute(1, 2, 0).numpy() for one in made[:count]]


def theirs(customizer: Flux2, size: tuple[int, int], steps: int, people: list[np.ndarray], guidance: float) -> Any:
    """What diffusers' pipeline draws of the second prompt from the noise of seed 5, in [-1, 1]."""
    pipeline = customizer.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        prompt=PROMPTS[1],
        image=[Image.fromarray(one) for one in people] or None,
        height=size[0],
        width=size[1],
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=seeded_noise(customizer, [5], size),
        max_sequence_length=customizer.tokenizer.model_max_length,
        output_type="pt",
    ).images
    return images * 2 - 1


@pytest.mark.parametrize(
    ("kind", "size", "count", "guidance"),
    [
        ("base", (32, 64), 1, 4.0),
        ("base", (48, 32), 2, 4.0),
        ("base", (32, 64), 0, 1.0),
        ("distilled", (32, 64), 2, 4.0),
        ("dev", (32, 64), 1, 2.5),
        ("dev", (48, 32), 2, 4.0),
    ],
)
def test_it_draws_what_its_pipeline_draws(
    kind: str, size: tuple[int, int], count: int, guidance: float, loaded: Callable[[str], Flux2]
) -> None:
    customizer = loaded(kind)
    people = pictures(count)
    expected = theirs(customizer, size, 3, people, guidance)
    found = draw(customizer, [PROMPTS[1]], [people], [5], Drawing(size, 3, guidance))
    assert found.std() > 0.1 and (found.abs() == 1).float().mean() < 0.05, "hardly anything is clipped"
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_what_is_encoded_and_decoded_is_the_pipelines(loaded: Callable[[str], Flux2]) -> None:
    customizer = loaded("base")
    pipeline, images = customizer.pipeline(), smooth(2, 32, 64)
    latents = customizer.encode(images)
    assert latents.shape == (2, 32, 2, 4) == (2, *customizer.latents_shape((32, 64)))
    torch.testing.assert_close(latents, pipeline._encode_vae_image(images, None), rtol=1e-5, atol=1e-5)
    plain = customizer.vae.encode(images).latent_dist.mode()
    torch.testing.assert_close(customizer.decode(latents), customizer.vae.decode(plain).sample, rtol=0, atol=1e-5)


def test_positions_are_the_pipelines(loaded: Callable[[str], Flux2]) -> None:
    pipeline, grids = loaded("base").pipeline(), [(2, 3), (4, 1), (1, 5)]
    latents = [torch.zeros(1, 32, *grid) for grid in grids]
    expected = torch.cat([pipeline._prepare_latent_ids(latents[0]), pipeline._prepare_image_ids(latents[1:])], dim=1)
    assert torch.equal(picture_ids(grids), expected[0])
    assert torch.equal(text_ids(7), pipeline._prepare_text_ids(torch.zeros(1, 7, 4))[0])


@pytest.mark.parametrize("size", [(256, 512), (1024, 1024), (1056, 1056)])
@pytest.mark.parametrize("steps", [4, 50])
def test_the_schedule_depends_on_tokens_and_steps(
    size: tuple[int, int], steps: int, loaded: Callable[[str], Flux2]
) -> None:
    """BFL's line: two, through 10 and 200 steps; above 4300 tokens the latter alone."""
    tokens = size[0] * size[1] // 256
    many, few = 1.6927e-4 * tokens + 0.45666666, 8.73809524e-5 * tokens + 1.89833333
    mu = many if tokens > 4300 else many + (many - few) / 190 * (steps - 200)
    even = torch.linspace(1, 1 / steps, steps)
    shifted = math.exp(mu) / (math.exp(mu) + 1 / even - 1)
    sigmas = loaded("base").sigmas(steps, size)
    torch.testing.assert_close(sigmas, torch.cat([shifted, torch.zeros(1)]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(64, 512), (1024, 1024), (1030, 1300), (700, 2500), (2500, 333)])
def test_references_are_cut_as_the_pipeline_cuts_them(size: tuple[int, int]) -> None:
    picture = smooth(1, *size)[0]
    pixels = ((picture + 1) * 127.5).byte().permute(1, 2, 0)
    image = Flux2ImageProcessor._resize_if_exceeds_area(Image.fromarray(pixels.numpy()))
    width, height = (side // 16 * 16 for side in image.size)
    expected = Flux2ImageProcessor(vae_scale_factor=16).preprocess(image, height, width, resize_mode="crop")[0]
    found = fit(pixels.permute(2, 0, 1) / 127.5 - 1, 1024**2, 16)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(63, 64), (64, 63), (64, 513), (520, 64), (1, 1)])
def test_references_that_the_pipeline_refuses(height: int, width: int) -> None:
    with pytest.raises(ValueError, match="too"):
        Flux2ImageProcessor.check_image_input(Image.new("RGB", (width, height)))
    with pytest.raises(BadInput, match=f"reference {width}x{height} px is too (long and thin|small): "):
        fit(torch.zeros(3, height, width), 1024**2, 16)


def test_the_settings_say_how_large_a_reference_is(loaded: Callable[[str], Flux2]) -> None:
    customizer = loaded("distilled")
    smaller = replace(customizer, settings=customizer.settings.model_copy(update={"reference_area": 96 * 64}))
    (reference,) = smaller.condition(PROMPTS[:1], [[np.zeros((192, 128, 3), np.uint8)]]).references(0)
    assert reference.shape == (32, 6, 4)


def calls(customizer: Flux2, condition: Any, seeds: list[int]) -> tuple[torch.Tensor, list[int]]:
    """The velocity, and how many samples each forward of the transformer had."""
    sizes: list[int] = []
    hook = customizer.transformer.x_embedder.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    with torch.no_grad():
        velocity = customizer.velocity(seeded_noise(customizer, seeds, (32, 64)), 0.5, condition)
    hook.remove()
    return velocity, sizes


def test_guidance_takes_a_second_branch_in_the_same_forward(loaded: Callable[[str], Flux2]) -> None:
    customizer = loaded("base")
    condition = customizer.condition(PROMPTS[:2], [pictures(1)] * 2)
    assert condition.guidance[0].text == 4
    guided, sizes = calls(customizer, condition, [1, 2])
    assert sizes == [4]
    plain, sizes = calls(customizer, condition.guided(CONDITIONAL), [1, 2])
    assert sizes == [2]
    without, _ = calls(customizer, condition.unprompted([0, 1]).guided(CONDITIONAL), [1, 2])
    torch.testing.assert_close(guided, without + 4 * (plain - without), rtol=0, atol=1e-5)
    mixed = condition.join([condition.take([0]).guided(CONDITIONAL), condition.take([1])])
    velocity, _ = calls(customizer, mixed, [1, 2])
    torch.testing.assert_close(velocity, torch.stack([plain[0], guided[1]]), rtol=0, atol=1e-5)
    several = customizer.condition(PROMPTS[:3], people())
    assert sorted(calls(customizer, several, [1, 2, 3])[1]) == [2, 2, 2], "a forward for each mixture of sizes"


def test_what_has_no_second_branch_stores_none(loaded: Callable[[str], Flux2]) -> None:
    for kind in ("distilled", "dev"):
        condition = loaded(kind).condition(PROMPTS[:1], [pictures(1)], 4.0)
        assert condition.samples[0].keys() == {"text", "reference0"}
        assert calls(loaded(kind), condition, [1])[1] == [1]
    one, other = (calls(loaded("dev"), condition.guided(Guidance(text=text)), [1])[0] for text in (1.0, 4.0))
    assert (one - other).abs().max() > 1e-4, "dev's guidance is embedded"


def test_the_negative_is_the_empty_prompt_and_embedded_once(loaded: Callable[[str], Flux2]) -> None:
    customizer = loaded("base")
    condition = customizer.condition([PROMPTS[0], ""], [[], []])
    torch.testing.assert_close(condition.samples[0]["negative_text"], condition.samples[1]["text"], rtol=0, atol=1e-5)
    forwards: list[int] = []
    hook = customizer.text_encoder.register_forward_pre_hook(lambda *_: forwards.append(1))
    again = customizer.condition(PROMPTS[:1], [[]])
    assert len(forwards) == 1 and torch.equal(again.stack("negative_text")[0], condition.stack("negative_text")[0])
    worse = customizer.condition(PROMPTS[:1], [[]], negative="blurred")
    hook.remove()
    assert not torch.allclose(worse.stack("negative_text"), again.stack("negative_text"), atol=1e-3)
    assert "negative_text" in loaded("dev").condition(PROMPTS[:1], [[]], negative="").samples[0], "for text dropout"


def test_a_prompt_has_512_places_where_the_tokenizer_has_as_many() -> None:
    customizer = small_flux2()
    customizer.tokenizer.model_max_length = 600
    text = customizer.embed_prompts(["a" * 450, "a" * 440 + "b" * 10])
    assert text.shape == (2, 512, 96)
    assert torch.allclose(text[0, :430], text[1, :430], atol=1e-5)
    assert not torch.allclose(text[0, 440:], text[1, 440:], atol=1e-2), "what stands late in a prompt is read"


@pytest.mark.parametrize(
    ("kind", "steps", "guidance", "most"), [("base", 50, 4, 4), ("distilled", 4, 1, 4), ("dev", 50, 4, 6)]
)
def test_a_folder_needs_no_settings_of_ours(
    kind: str, steps: int, guidance: float, most: int, saved: Callable[[str], Path], tmp_path: Path
) -> None:
    base = Path(shutil.copytree(saved(kind), tmp_path / "base"))
    (base / "customizer.json").unlink()
    settings = load(base).settings
    assert (settings.steps, settings.guidance.text, settings.max_references) == (steps, guidance, most)
    assert settings.sizes == ((1024, 1024),) and settings.training_guidance == CONDITIONAL


def test_folders_that_are_not_quite_this_family(saved: Callable[[str], Path], tmp_path: Path) -> None:
    base = Path(shutil.copytree(saved("base"), tmp_path / "base"))
    index = json.loads((base / "model_index.json").read_text())
    changes = {
        "_class_name": ("Flux2KleinKVPipeline", "a Flux2KleinKVPipeline folder; umo draws with .*Flux2KleinPipeline"),
        "text_encoder": (["transformers", "T5EncoderModel"], "text encoder T5EncoderModel is not Flux2KleinPipeline's"),
    }
    for key, (value, message) in changes.items():
        (base / "model_index.json").write_text(json.dumps({**index, key: value}))
        with pytest.raises(BadInput, match=message):
            load(base)
