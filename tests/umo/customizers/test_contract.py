"""The contract of a customizer, held by every family on random weights read back from a folder."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from tests.umo.customizers.conftest import FAMILIES, PROMPTS, smooth
from umo import flow
from umo.customizers import CONDITIONAL, Condition, Drawing, draw, load
from umo.customizers.base import seeded_noise
from umo.customizers.flux_tokens import diagonal_ids, pack, unpack
from umo.customizers.flux_uno import FluxUno
from umo.errors import BadInput

SIZES = {"tiny": (64, 128), "flux": (32, 64)}
OTHER_SIZES = {"tiny": (64, 192), "flux": (48, 32)}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def customizer(family: str, folders: dict[str, Path]) -> FluxUno:
    return load(folders[family])  # type: ignore[return-value]


def people() -> list[list]:
    """References of three samples: one, two and three of different sizes and kinds."""
    array = ((smooth(1, 70, 90, seed=1)[0] + 1) * 127.5).byte().permute(1, 2, 0).numpy()
    other = smooth(1, 96, 96, seed=2)[0]
    third = smooth(1, 120, 80, seed=3)[0]
    return [[array], [other, array], [third, other, array]]


def test_encode_and_decode_go_round_and_carry_a_gradient(customizer: FluxUno, family: str) -> None:
    size = SIZES[family]
    images = smooth(2, *size).requires_grad_()
    latents = customizer.encode(images)
    assert latents.shape == (2, *customizer.latents_shape(size)) and latents.dtype == torch.float32
    back = customizer.decode(latents)
    assert back.shape == images.shape
    assert torch.equal(customizer.encode(images), latents), "encoding is not repeatable"
    (gradient,) = torch.autograd.grad(back.square().sum(), images)
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 0
    if family == "tiny":  # random convolutions have no round trip to hold
        assert (back - images).abs().mean() < 0.01
        assert torch.allclose(customizer.encode(back), latents, atol=1e-3)


def test_latents_are_scaled_as_flux_pipeline_scales_them(customizer: FluxUno, family: str) -> None:
    images = smooth(1, *SIZES[family])
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
    (height, width), steps = SIZES[family], 3
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
    size, steps = SIZES[family], 4
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


def test_training_on_one_picture_turns_noise_into_it(customizer: FluxUno, family: str) -> None:
    """The sign for good: what the loss teaches is what the rollout undoes."""
    size = SIZES[family]
    target = customizer.encode(smooth(1, *size)).detach()
    condition = customizer.condition(PROMPTS[:1], [[]])
    noise = seeded_noise(customizer, [0], size)
    customizer.transformer.requires_grad_(True)
    optimizer = torch.optim.Adam(customizer.transformer.parameters(), 3e-3)
    losses = []
    for step in range(12):
        sigma = torch.tensor([0.15 + 0.07 * step])
        loss = flow.loss(lambda x, s: customizer.velocity(x, s, condition), target, noise, sigma)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    with torch.no_grad():
        drawn = flow.rollout(lambda x, s: customizer.velocity(x, s, condition), noise, customizer.sigmas(4, size))
    assert (drawn - target).square().mean() < (noise - target).square().mean()


def test_references_of_different_sizes_share_a_batch(customizer: FluxUno, family: str) -> None:
    size = SIZES[family]
    condition = customizer.condition(PROMPTS[:3], people())
    assert [len(condition.references(row)) for row in range(3)] == [1, 2, 3]
    noise = seeded_noise(customizer, [1, 2, 3], size)
    sigma = torch.tensor([0.9, 0.5, 0.2])
    with torch.no_grad():
        batch = customizer.velocity(noise, sigma, condition)
        single = [customizer.velocity(noise[[k]], sigma[[k]], condition.take([k])) for k in range(3)]
        swapped = customizer.velocity(noise[[2, 0]], sigma[[2, 0]], condition.take([2, 0]))
    assert batch.shape == noise.shape
    assert torch.allclose(batch, torch.cat(single), atol=1e-5)
    assert torch.allclose(batch[[2, 0]], swapped, atol=1e-5)
    joined = type(condition).join([condition.take([k]) for k in range(3)])
    with torch.no_grad():
        assert torch.allclose(customizer.velocity(noise, sigma, joined), batch, atol=1e-5)


def test_references_their_order_and_the_prompt_matter(customizer: FluxUno, family: str) -> None:
    (two,) = people()[1:2]
    noise = seeded_noise(customizer, [1], SIZES[family])

    def velocity(prompt: str, references: list, guidance: float | None = None) -> torch.Tensor:
        with torch.no_grad():
            return customizer.velocity(noise, 0.7, customizer.condition([prompt], [references], guidance))

    plain = velocity("on the left", two)
    others = [velocity("on the left", two[::-1]), velocity("on the left", two[:1]), velocity("on the right", two)]
    if family == "flux":
        assert torch.equal(plain, velocity("on the left", two, guidance=4.0))
        others.append(velocity("on the left", two, guidance=1.0))
    assert all((plain - other).abs().max() > 1e-5 for other in others)


def test_velocity_carries_a_gradient_to_latents_and_weights(customizer: FluxUno, family: str) -> None:
    condition = customizer.condition(PROMPTS[:2], people()[:2])
    assert not any(p.requires_grad for p in customizer.transformer.parameters()), "loaded weights are frozen"
    latents = seeded_noise(customizer, [1, 2], SIZES[family]).requires_grad_()
    weight = customizer.transformer.x_embedder.weight.requires_grad_()
    customizer.velocity(latents, 0.5, condition).square().sum().backward()
    assert latents.grad is not None and latents.grad.abs().max() > 0
    assert weight.grad is not None and weight.grad.abs().max() > 0


def test_lora_targets_exist_and_take_an_adapter(customizer: FluxUno) -> None:
    from peft import LoraConfig

    modules = dict(customizer.transformer.named_modules())
    assert customizer.lora_targets
    assert all(isinstance(modules[name], torch.nn.Linear) for name in customizer.lora_targets)
    config = LoraConfig(r=2, lora_alpha=2, target_modules=list(customizer.lora_targets))
    customizer.transformer.add_adapter(config)
    adapted = {name for name, module in customizer.transformer.named_modules() if hasattr(module, "lora_A")}
    assert adapted == set(customizer.lora_targets)
    with pytest.raises(ValueError, match="load it without"):
        customizer.save(Path("never-written"))


def test_a_condition_is_kept_and_joined_as_it_is(customizer: FluxUno) -> None:
    condition = customizer.condition(PROMPTS[:3], people(), guidance=2.5)
    stored = [condition.take([row]).state() | {"target": torch.zeros(1)} for row in range(3)]
    assert all(isinstance(value, torch.Tensor) for state in stored for value in state.values())
    joined = Condition.join([Condition.from_state(state, ignored=["target"]) for state in stored])
    assert len(joined) == 3 and joined.guidance == condition.guidance and joined.guidance[0].text == 2.5
    for ours, theirs in zip(joined.samples, condition.samples, strict=True):
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert joined.guided(CONDITIONAL).guidance == (CONDITIONAL,) * 3 and joined.guidance[0].text == 2.5
    with pytest.raises(ValueError, match="one sample is stored at a time"):
        condition.state()


def trained(customizer: FluxUno, rank: int = 3) -> FluxUno:
    """With a LoRA whose weights are felt."""
    customizer.add_lora(rank)
    generator = torch.Generator().manual_seed(4)
    for weight in customizer.transformer.parameters():
        if weight.requires_grad:
            weight.data = torch.randn(weight.shape, generator=generator) / 4
    return customizer


def answer(customizer: FluxUno, family: str) -> torch.Tensor:
    condition = customizer.condition(PROMPTS[1:2], people()[1:2])
    with torch.no_grad():
        return customizer.velocity(seeded_noise(customizer, [3], SIZES[family]), 0.6, condition)


def test_a_new_lora_changes_nothing_and_is_all_that_is_trained(folders: dict[str, Path], family: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        customizer: FluxUno = load(folders[family], dtype=dtype)  # type: ignore[assignment]
        before = answer(customizer, family)
        customizer.add_lora(3)
        assert torch.equal(answer(customizer, family), before)
        weights = {name: weight for name, weight in customizer.transformer.named_parameters() if weight.requires_grad}
        layers = {name.split(".lora_")[0] for name in weights}
        assert layers == set(customizer.lora_targets)
        assert len(weights) == 2 * len(layers) and all(".lora_" in name for name in weights)
        assert {weight.dtype for weight in weights.values()} == {torch.float32}
        assert all(3 in weight.shape for weight in weights.values())
        assert customizer.transformer.dtype == dtype, "the base keeps its precision"


def test_a_saved_lora_is_loaded_by_us_and_by_diffusers(
    customizer: FluxUno, folders: dict[str, Path], family: str, tmp_path: Path
) -> None:
    bare = answer(customizer, family)
    expected = answer(trained(customizer), family)
    assert (expected - bare).abs().max() > 0.05, "the LoRA is not felt"
    saved = customizer.save_lora(tmp_path / "lora")
    theirs: FluxUno = load(folders[family])  # type: ignore[assignment]
    theirs.pipeline().load_lora_weights(tmp_path / "lora")
    assert torch.equal(answer(theirs, family), expected)
    for path in (saved, tmp_path / "lora"):
        assert torch.equal(answer(load(folders[family], lora=path), family), expected)  # type: ignore[arg-type]


def test_a_loaded_lora_is_trained_on_with_its_own_rank(
    customizer: FluxUno, folders: dict[str, Path], family: str, tmp_path: Path
) -> None:
    expected = answer(trained(customizer), family)
    path = customizer.save_lora(tmp_path)
    again: FluxUno = load(folders[family], lora=path)  # type: ignore[assignment]
    assert not any(weight.requires_grad for weight in again.transformer.parameters())
    with pytest.raises(BadInput, match=f"{family}.* has a LoRA of rank 3, and the recipe says 4"):
        again.add_lora(4)
    again.add_lora(3)
    assert torch.equal(answer(again, family), expected)
    weights = [weight for weight in again.transformer.parameters() if weight.requires_grad]
    assert len(weights) == 2 * len(again.lora_targets)
    condition = again.condition(PROMPTS[:1], people()[:1])
    again.velocity(seeded_noise(again, [0], SIZES[family]), 0.5, condition).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in weights)
    again.add_lora(3)
    assert torch.equal(answer(again, family), expected), "taken a second time it is still the same"


def test_recomputed_activations_give_the_same_gradient(customizer: FluxUno, family: str) -> None:
    trained(customizer)
    condition = customizer.condition(PROMPTS[1:2], people()[1:2])
    latents = seeded_noise(customizer, [5], SIZES[family])
    weights = [weight for weight in customizer.transformer.parameters() if weight.requires_grad]

    def gradients() -> list[torch.Tensor]:
        picture = customizer.decode(
            flow.one_step_x0(latents, torch.tensor(0.5), customizer.velocity(latents, 0.5, condition))
        )
        return list(torch.autograd.grad(picture.square().mean(), weights))

    expected, calls = gradients(), []
    customizer.transformer.single_transformer_blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    customizer.checkpoint_gradients()
    for found, one in zip(gradients(), expected, strict=True):
        assert torch.allclose(found, one, rtol=1e-4, atol=1e-9)
    assert len(calls) == 2, "the block is not computed again in the backward pass"


def test_without_encoders_what_is_embedded_is_drawn(customizer: FluxUno, family: str) -> None:
    condition = customizer.condition(PROMPTS[1:2], people()[1:2])
    noise = seeded_noise(customizer, [3], SIZES[family])
    with torch.no_grad():
        before = customizer.velocity(noise, 0.5, condition)
        customizer.drop_encoders()
        assert torch.equal(customizer.to("cpu").velocity(noise, 0.5, condition), before)
    assert customizer.text_encoder is None and customizer.text_encoder_2 is None


def test_a_prompt_has_512_tokens_where_the_tokenizer_takes_as_many(folders: dict[str, Path]) -> None:
    """As FLUX.1 and UNO do; CLIP's 77 are its own."""
    customizer = load(folders["flux"])
    customizer.tokenizer_2.model_max_length = 600
    words = ["a c e"] * 60
    text = customizer.condition([" ".join(words), " ".join([*words, "g"])], [[], []]).stack("text")
    assert text.shape[1] == 512
    assert not torch.allclose(text[0, 100:], text[1, 100:]), "what stands late in a prompt is read"


def test_same_seed_same_picture_in_any_batch(customizer: FluxUno) -> None:
    prompts, references, how = PROMPTS[:3], people(), Drawing(steps=2)
    references = [references[1]] * 3
    first = draw(customizer, prompts, references, [7, 8, 7], how)
    again = draw(customizer, prompts, references, [7, 8, 7], how)
    assert torch.equal(first, again)
    alone = draw(customizer, prompts[:1], references[:1], [7], how)
    assert torch.allclose(first[:1], alone, atol=1e-5)
    assert not torch.allclose(draw(customizer, prompts[:1], references[:1], [8], how), alone, atol=1e-3)
    assert first.min() >= -1 and first.max() <= 1


def test_half_precision_draws_about_the_same(folders: dict[str, Path], family: str) -> None:
    how = Drawing(SIZES[family], 2)
    whole, half = (
        draw(load(folders[family], dtype=dtype), PROMPTS[1:2], people()[1:2], [3], how)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert half.dtype == torch.float32
    assert (whole - half).abs().mean() < 0.1 * whole.std()


def test_other_sizes_and_their_defaults(customizer: FluxUno, family: str) -> None:
    how = Drawing(OTHER_SIZES[family], 1)
    assert draw(customizer, PROMPTS[:1], people()[:1], [0], how).shape[2:] == OTHER_SIZES[family]
    one = draw(customizer, PROMPTS[3:], people()[2:], [0], Drawing(steps=1))
    assert one.shape[2:] == ((64, 192) if family == "tiny" else (32, 64))


@pytest.mark.parametrize("size", [(64, 100), (1000, 1024), (8, 8)])
def test_size_that_cannot_be_drawn(customizer: FluxUno, size: tuple[int, int]) -> None:
    with pytest.raises(BadInput, match=f"size {size[0]}x{size[1]}.*draws"):
        draw(customizer, PROMPTS[:1], people()[:1], [0], Drawing(size))


def test_references_that_cannot_be_taken(customizer: FluxUno) -> None:
    with pytest.raises(BadInput, match=r"5 references: .* takes at most"):
        customizer.condition(PROMPTS[:1], [people()[0] * 5])
    for wrong in ("a path", np.zeros((4, 4)), np.zeros((8, 8, 3)), torch.zeros(1, 8, 8), torch.full((3, 8, 8), 255.0)):
        with pytest.raises(BadInput, match=r"reference .*: give"):
            customizer.condition(PROMPTS[:1], [[wrong]])  # type: ignore[list-item]
    with pytest.raises(BadInput, match="too long and thin"):
        customizer.condition(PROMPTS[:1], [[np.zeros((2, 900, 3), np.uint8)]])


def damaged(folders: dict[str, Path], family: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders[family], tmp_path / "base"))


def test_folder_of_another_family_or_of_none(folders: dict[str, Path], family: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"model_index\.json is missing"):
        load(tmp_path / "nowhere")
    base = damaged(folders, family, tmp_path)
    index = base / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(BadInput, match="a StableDiffusionPipeline folder; umo draws with FluxPipeline"):
        load(base)
    index.write_text("{")
    with pytest.raises(BadInput, match="not readable as JSON"):
        load(base)


@pytest.mark.parametrize("component", ["vae", "transformer", "text_encoder_2", "tokenizer", "scheduler"])
def test_component_missing(folders: dict[str, Path], family: str, component: str, tmp_path: Path) -> None:
    base = damaged(folders, family, tmp_path)
    shutil.rmtree(base / component)
    with pytest.raises(BadInput, match=f"component '{component}' is missing; copy the whole folder again"):
        load(base)


@pytest.mark.parametrize("component", ["vae", "transformer", "text_encoder"])
def test_weights_cut_short(folders: dict[str, Path], family: str, component: str, tmp_path: Path) -> None:
    base = damaged(folders, family, tmp_path)
    (file,) = (base / component).glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(BadInput, match="cut short or damaged; copy the whole folder again"):
        load(base)


@pytest.mark.parametrize("component", ["transformer", "text_encoder"])
def test_weights_left_out(folders: dict[str, Path], family: str, component: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = damaged(folders, family, tmp_path)
    (file,) = (base / component).glob("*.safetensors")
    state = load_file(file)
    state.pop(max(state))
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(BadInput, match=f"{component}: .*(missing|cannot be loaded)"):
        load(base)


def test_settings_beside_the_index_override_and_are_checked(
    folders: dict[str, Path], family: str, tmp_path: Path
) -> None:
    base = damaged(folders, family, tmp_path)
    settings = base / "customizer.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "max_references": 1}))
    with pytest.raises(BadInput, match="takes at most 1"):
        load(base).condition(PROMPTS[1:2], people()[1:2])
    settings.write_text('{"max_refs": 1}')
    with pytest.raises(BadInput, match=r"customizer\.json: .*max_refs"):
        load(base)


def test_a_flux_folder_needs_no_settings_of_ours(folders: dict[str, Path], tmp_path: Path) -> None:
    base = damaged(folders, "flux", tmp_path)
    (base / "customizer.json").unlink()
    settings = load(base).settings
    assert (settings.reference_side, settings.references_side) == (512, 320)
    assert (settings.guidance.text, settings.training_guidance, settings.steps) == (4.0, CONDITIONAL, 25)
