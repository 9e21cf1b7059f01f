"""Qwen-Image-Edit-Plus against diffusers' own pipelines, and against the formulas of its parts."""

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
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImagePipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as theirs
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.feature_extraction_utils import BatchFeature

from tests.umo.customizers.conftest import PROMPTS, people
from tests.umo.customizers.small_qwen import LIGHTNING, MARKS, small_qwen
from umo import flow
from umo.customizers import CONDITIONAL, Condition, load
from umo.customizers.base import seeded_noise
from umo.customizers.flux_tokens import pack, unpack
from umo.customizers.qwen_edit import EDIT, IMAGE, QWEN, QwenEdit, scaled
from umo.errors import BadInput

SIZE, STEPS = (32, 64), 3


@pytest.fixture(scope="module")
def base() -> QwenEdit:
    return small_qwen()


def arrays(count: int) -> list[np.ndarray]:
    """References as uint8, of different shapes."""
    generator = np.random.default_rng(3)
    sizes = [(70, 90), (120, 80), (50, 50)][:count]
    coarse = [generator.integers(0, 256, (4, 5, 3), np.uint8) for _ in sizes]
    return [
        np.asarray(Image.fromarray(one).resize((w, h), Image.Resampling.BICUBIC))
        for one, (h, w) in zip(coarse, sizes, strict=True)
    ]


class Processor:
    """What Qwen2VLProcessor makes of pictures and texts; that itself needs torchvision."""

    def __init__(self, base: QwenEdit) -> None:
        self.pictures, self.words = base.image_processor, base.tokenizer

    def __call__(self, text: list[str], images: list[Image.Image], **options: Any) -> BatchFeature:
        shown = self.pictures(images=images, return_tensors="pt")
        whole = text[0]
        for grid in shown["image_grid_thw"]:
            whole = whole.replace(IMAGE, "<|there|>" * (int(grid.prod()) // 4), 1)
        return BatchFeature({**self.words([whole.replace("<|there|>", IMAGE)], return_tensors="pt"), **shown})


def pipeline_of(base: QwenEdit, references: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """diffusers' pipeline at the small base's areas; the one without references is Qwen-Image's."""
    monkeypatch.setattr(theirs, "VAE_IMAGE_SIZE", base.settings.reference_area)
    monkeypatch.setattr(theirs, "CONDITION_IMAGE_SIZE", base.settings.encoder_area)
    pipeline = base.pipeline()
    if references:
        pipeline.processor = Processor(base)
    else:
        parts = {name: part for name, part in pipeline.components.items() if name != "processor"}
        pipeline = QwenImagePipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("zero_cond_t", [True, False], ids=["2511", "2509"])
@pytest.mark.parametrize(
    ("size", "count", "guidance"), [(SIZE, 1, 4.0), (SIZE, 2, 1.0), ((48, 32), 2, 2.5), ((48, 32), 0, 4.0)]
)
def test_it_draws_what_diffusers_draws(
    zero_cond_t: bool, size: tuple[int, int], count: int, guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, pictures = small_qwen(zero_cond_t), arrays(count)
    base.settings = base.settings.model_copy(update={"picture_places": False})
    pipeline = pipeline_of(base, count, monkeypatch)
    noise = seeded_noise(base, [5], size)
    expected = pipeline(
        prompt=PROMPTS[1],
        negative_prompt=" ",
        true_cfg_scale=guidance,
        height=size[0],
        width=size[1],
        num_inference_steps=STEPS,
        latents=pack(noise),
        output_type="latent",
        **({"image": [Image.fromarray(one) for one in pictures]} if count else {}),
    ).images
    with torch.no_grad():
        condition = base.condition([PROMPTS[1]], [pictures], guidance)
        sigmas = base.sigmas(STEPS, size)
        found = flow.rollout(lambda x, sigma: base.velocity(x, sigma, condition), noise, sigmas)
    assert expected.abs().max() > 1
    torch.testing.assert_close(found, unpack(expected, *noise.shape[2:]), rtol=0, atol=1e-5)


def test_references_of_2511_are_at_sigma_0(base: QwenEdit) -> None:
    """By its config alone: the same weights without it draw otherwise, and only where there is a reference."""
    older = small_qwen(zero_cond_t=False)
    noise = seeded_noise(base, [1], SIZE)
    for count, same in ((0, True), (1, False)):
        condition = base.condition(PROMPTS[:1], [arrays(count)])
        one, other = base.velocity(noise, 0.8, condition), older.velocity(noise, 0.8, condition)
        assert torch.allclose(one, other, atol=1e-6) == same


def test_pictures_are_encoded_as_the_pipeline_does(base: QwenEdit, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.rand(2, 3, *SIZE) * 2 - 1
    pipeline = pipeline_of(base, 1, monkeypatch)
    with torch.no_grad():
        latents = base.encode(images)
        torch.testing.assert_close(latents, pipeline._encode_vae_image(images[:, :, None], None)[:, :, 0])
        mean, std = (torch.tensor(one)[:, None, None] for one in ([-0.7, 0.1, 0.4, -0.2], [2.8, 1.4, 1.9, 1.1]))
        plain = base.vae.decode((latents * std + mean)[:, :, None]).sample[:, :, 0]
        torch.testing.assert_close(base.decode(latents).clamp(-1, 1), plain)


def test_a_picture_out_of_range_has_a_gradient(base: QwenEdit) -> None:
    """diffusers clips, and what is clipped learns nothing."""
    other = small_qwen()
    other.vae.decoder.conv_out.bias.data += 3
    latents = seeded_noise(other, [2], SIZE).requires_grad_()
    decoded = other.decode(latents)
    assert decoded.min() > 1
    (gradient,) = torch.autograd.grad(decoded.sum(), latents)
    assert gradient.abs().max() > 1e-4


def test_places_of_pictures_are_rows_and_columns(base: QwenEdit) -> None:
    """Of the vision tokens in the text encoder, three by three here; the text goes on after the largest of them."""
    seen: list[Tensor] = []
    language = base.text_encoder.model.language_model
    hook = language.register_forward_pre_hook(
        lambda _, args, given: seen.append(given["position_ids"]), with_kwargs=True
    )
    base.embed("x", [scaled(torch.zeros(3, 64, 64), 96**2)])
    hook.remove()
    before = f"<|im_start|>system\n{EDIT[0]}<|im_end|>\n<|im_start|>user\nPicture 1: <|vision_start|>"
    start = len(base.tokenizer(before).input_ids)
    ahead, row, column = seen[0][:, 0, start : start + 10].tolist()
    assert ahead == [start] * 9 + [start + 3]
    assert row == [start + k // 3 for k in range(9)] + [start + 3]
    assert column == [start + k % 3 for k in range(9)] + [start + 3]


@pytest.mark.parametrize("area", [1024**2, 384**2])
def test_references_are_scaled_as_diffusers_scales_them(area: int) -> None:
    for height, width in ((64, 64), (300, 200), (70, 190), (17, 333)):
        assert scaled(torch.zeros(3, height, width), area).size == theirs.calculate_dimensions(area, width / height)
    for height, width in ((2, 900), (900, 2)):
        with pytest.raises(BadInput, match=f"reference {width}x{height} px is too long and thin"):
            scaled(torch.zeros(3, height, width), area)


@pytest.mark.parametrize("size", [(256, 256), (1024, 1024), (768, 1344)])
def test_sigmas_are_the_configs(base: QwenEdit, size: tuple[int, int]) -> None:
    """Released: a line of 0.5 at 256 tokens to 0.9 at 8192, then stretched to end at 0.02. Lightning: shift 3."""
    steps, tokens = 7, size[0] * size[1] // 256
    mu = 0.5 + (tokens - 256) * 0.4 / 7936
    plain = torch.linspace(1, 1 / steps, steps, dtype=torch.float64)
    shifted = 1 / (1 + (1 / plain - 1) / math.exp(mu))
    stretched = 1 - (1 - shifted) * 0.98 / (1 - shifted[-1])
    found = base.sigmas(steps, size)
    torch.testing.assert_close(found, torch.cat([stretched, torch.zeros(1)]).float())
    assert float(found[-2]) == pytest.approx(0.02, rel=1e-4)
    other = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, **LIGHTNING)
    lightning = replace(base, scheduler=other).sigmas(4, size)
    torch.testing.assert_close(lightning, torch.tensor([1, 0.9, 0.75, 0.5, 0]))
    assert base.sigmas(1, size).tolist() == [1, 0]


def test_samples_of_different_guidance_share_a_batch(base: QwenEdit) -> None:
    parts = [base.condition(PROMPTS[:1], people()[:1], guidance) for guidance in (1.0, 4.0, 2.0)]
    noise = seeded_noise(base, [1, 2, 3], SIZE)
    with torch.no_grad():
        batch = base.velocity(noise, 0.7, Condition.join(parts))
        single = torch.cat([base.velocity(noise[[k]], 0.7, part) for k, part in enumerate(parts)])
    torch.testing.assert_close(batch, single, rtol=0, atol=1e-5)


def test_forwards_are_no_more_than_shapes_ask_for(base: QwenEdit) -> None:
    calls: list[int] = []
    hook = base.transformer.register_forward_pre_hook(
        lambda _, args, given: calls.append(len(given["hidden_states"])), with_kwargs=True
    )
    alike = base.condition(["on the left", "at the back"], [arrays(1)] * 2)
    noise = seeded_noise(base, [1, 2], SIZE)
    with torch.no_grad():
        base.velocity(noise, 0.5, alike)
        guided = sorted(calls)
        base.velocity(noise, 0.5, alike.guided(CONDITIONAL))
        same = base.condition(["on the left"], [arrays(1)], negative="at the back")
        base.velocity(noise[:1], 0.5, same)
    hook.remove()
    assert guided == [2, 2]
    assert calls[2:] == [2, 2], "without guidance, and for a negative prompt of the prompt's length, one is enough"


def test_the_negative_prompt_is_embedded_with_the_references(base: QwenEdit) -> None:
    condition = base.condition(PROMPTS[:2], [arrays(1), arrays(2)])
    one, two = (sample["negative_text"] for sample in condition.samples)
    assert len(one) != len(two)
    away = condition.unprompted([0])
    assert torch.equal(away.samples[0]["text"], one)
    again = base.condition([" "], [arrays(1)])
    assert torch.equal(again.samples[0]["text"], one)
    assert not torch.equal(
        base.condition(PROMPTS[:1], [arrays(1)], negative="blurred").samples[0]["negative_text"], one
    )


def test_a_folder_as_it_is_released(folders: dict[str, Path], tmp_path: Path) -> None:
    """Names and values of 2509's index, image processor and tokenizer files, and no settings of ours."""
    folder = Path(shutil.copytree(folders["qwen"], tmp_path / "base"))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "processor": ["transformers", "Qwen2VLProcessor"]}))
    (folder / "customizer.json").unlink()
    pictures = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor"}
    pictures |= {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2}
    (folder / "processor" / "preprocessor_config.json").write_text(json.dumps({**pictures, "merge_size": 2}))
    shutil.rmtree(folder / "tokenizer")
    (folder / "tokenizer").mkdir()
    letters = {letter: k for k, letter in enumerate(sorted(ByteLevel.alphabet()))}
    added = {mark: len(letters) + k for k, mark in enumerate(MARKS)}
    words = {"tokenizer_class": "Qwen2Tokenizer", "model_max_length": 131072, "pad_token": MARKS[0]}
    words["added_tokens_decoder"] = {str(k): {"content": mark, "special": True} for mark, k in added.items()}
    for name, content in (("vocab", letters), ("added_tokens", added), ("tokenizer_config", words)):
        (folder / "tokenizer" / f"{name}.json").write_text(json.dumps(content))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    loaded: Any = load(folder)
    assert loaded.settings == QWEN
    pictures_seen = [scaled(torch.zeros(3, 80, 60), 96**2)]
    expected: Any = load(folders["qwen"])
    assert torch.equal(loaded.embed("hello", pictures_seen), expected.embed("hello", pictures_seen))


def test_a_transformer_of_another_family(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["qwen"], tmp_path / "base"))
    shutil.rmtree(folder / "transformer")
    shutil.copytree(folders["flux"] / "transformer", folder / "transformer")
    with pytest.raises(BadInput, match=r"transformer: .*(missing|cannot be loaded)"):
        load(folder)


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-9])])
def test_a_bad_transformer_is_told_before_the_encoder_is_loaded(
    damage: Callable[[Path], None], folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(folders["qwen"], tmp_path / "base"))
    damage(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    monkeypatch.setattr(Qwen2_5_VLForConditionalGeneration, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(BadInput, match=r"transformer.*; copy the whole folder again"):
        load(folder)
