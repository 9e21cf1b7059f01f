"""The contract of a customizer, held by every family on random weights read back from a folder."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.torch import save_file

from tests.umo.customizers.conftest import FAMILIES, PROMPTS, people, smooth, write
from umo import flow
from umo.customizers import CONDITIONAL, Condition, Drawing, draw, load
from umo.customizers.base import default_size, seeded_noise
from umo.errors import BadInput, WorkFailed


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def customizer(family: str, folders: dict[str, Path]) -> Any:
    return load(folders[family])


def test_encode_and_decode_go_round_and_carry_a_gradient(customizer: Any, family: str) -> None:
    size = FAMILIES[family].size
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


def test_training_on_one_picture_turns_noise_into_it(customizer: Any, family: str) -> None:
    """The sign for good: what the loss teaches is what the rollout undoes."""
    size = FAMILIES[family].size
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


def test_references_of_different_sizes_share_a_batch(customizer: Any, family: str) -> None:
    size = FAMILIES[family].size
    one, two, three = people()
    many = [*two, *three][: min(4, customizer.settings.max_references)]
    condition = customizer.condition(PROMPTS[:3], [one, two, many])
    assert [len(condition.references(row)) for row in range(3)] == [1, 2, len(many)]
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


def test_references_their_order_and_the_prompt_matter(customizer: Any, family: str) -> None:
    (two,) = people()[1:2]
    noise = seeded_noise(customizer, [1], FAMILIES[family].size)

    def velocity(prompt: str, references: list, guidance: float | None = None) -> torch.Tensor:
        with torch.no_grad():
            return customizer.velocity(noise, 0.7, customizer.condition([prompt], [references], guidance))

    plain = velocity("on the left", two)
    others = [velocity("on the left", two[::-1]), velocity("on the left", two[:1]), velocity("on the right", two)]
    if FAMILIES[family].guided:
        assert torch.equal(plain, velocity("on the left", two, guidance=customizer.settings.guidance.text))
        others.append(velocity("on the left", two, guidance=1.0))
    assert all((plain - other).abs().max() > 1e-5 for other in others)


def test_velocity_carries_a_gradient_to_latents_and_weights(customizer: Any, family: str) -> None:
    condition = customizer.condition(PROMPTS[:2], people()[:2])
    assert not any(p.requires_grad for p in customizer.transformer.parameters()), "loaded weights are frozen"
    latents = seeded_noise(customizer, [1, 2], FAMILIES[family].size).requires_grad_()
    first = customizer.transformer.get_submodule(customizer.lora_targets[0])
    weight = first.weight.requires_grad_()
    customizer.velocity(latents, 0.5, condition).square().sum().backward()
    assert latents.grad is not None and latents.grad.abs().max() > 0
    assert weight.grad is not None and weight.grad.abs().max() > 0


def test_lora_targets_exist_and_take_an_adapter(customizer: Any) -> None:
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


def test_a_condition_is_kept_and_joined_as_it_is(customizer: Any) -> None:
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


def trained(customizer: Any, rank: int = 3) -> Any:
    """With a LoRA whose weights are felt."""
    customizer.add_lora(rank)
    generator = torch.Generator().manual_seed(4)
    for weight in customizer.transformer.parameters():
        if weight.requires_grad:
            weight.data = torch.randn(weight.shape, generator=generator) / 4
    return customizer


def answer(customizer: Any, family: str) -> torch.Tensor:
    condition = customizer.condition(PROMPTS[1:2], people()[1:2])
    with torch.no_grad():
        return customizer.velocity(seeded_noise(customizer, [3], FAMILIES[family].size), 0.6, condition)


def test_a_new_lora_changes_nothing_and_is_all_that_is_trained(folders: dict[str, Path], family: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        customizer = load(folders[family], dtype=dtype)  # type: ignore[assignment]
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


def test_a_saved_lora_is_loaded_by_us_and_by_the_familys_own_loader(
    customizer: Any, folders: dict[str, Path], family: str, tmp_path: Path
) -> None:
    bare = answer(customizer, family)
    expected = answer(trained(customizer), family)
    assert (expected - bare).abs().max() > 0.05, "the LoRA is not felt"
    saved = customizer.save_lora(tmp_path / "lora")
    theirs: Any = load(folders[family])
    FAMILIES[family].load_lora(theirs, saved)
    assert torch.equal(answer(theirs, family), expected)
    for path in (saved, tmp_path / "lora"):
        assert torch.equal(answer(load(folders[family], lora=path), family), expected)


def test_a_loaded_lora_is_trained_on_with_its_own_rank(
    customizer: Any, folders: dict[str, Path], family: str, tmp_path: Path
) -> None:
    expected = answer(trained(customizer), family)
    path = customizer.save_lora(tmp_path)
    again: Any = load(folders[family], lora=path)
    assert not any(weight.requires_grad for weight in again.transformer.parameters())
    with pytest.raises(BadInput, match=f"{family}.* has a LoRA of rank 3, and the recipe says 4"):
        again.add_lora(4)
    again.add_lora(3)
    assert torch.equal(answer(again, family), expected)
    weights = [weight for weight in again.transformer.parameters() if weight.requires_grad]
    assert len(weights) == 2 * len(again.lora_targets)
    condition = again.condition(PROMPTS[:1], people()[:1])
    again.velocity(seeded_noise(again, [0], FAMILIES[family].size), 0.5, condition).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in weights)
    again.add_lora(3)
    assert torch.equal(answer(again, family), expected), "taken a second time it is still the same"


def test_an_unfit_lora_is_told_before_weights_are_loaded(
    customizer: Any, folders: dict[str, Path], family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = trained(customizer).save_lora(tmp_path / "lora")
    halves = {"nowhere.lora_A.weight": torch.ones(2, 4), "nowhere.lora_B.weight": torch.ones(4, 2)}
    other = write(halves, tmp_path / "other.safetensors")
    monkeypatch.setattr(type(customizer), "load", lambda *_: pytest.fail("weights are loaded"))
    with pytest.raises(BadInput, match=f"{family}.* has a LoRA of rank 3, and the recipe says 4"):
        load(folders[family], lora=path, rank=4)
    with pytest.raises(BadInput, match=r"other\.safetensors: .*give a whole, plain LoRA for"):
        load(folders[family], lora=other)


def test_recomputed_activations_give_the_same_gradient(customizer: Any, family: str) -> None:
    trained(customizer)
    condition = customizer.condition(PROMPTS[1:2], people()[1:2])
    latents = seeded_noise(customizer, [5], FAMILIES[family].size)
    weights = [weight for weight in customizer.transformer.parameters() if weight.requires_grad]

    def gradients() -> list[torch.Tensor]:
        picture = customizer.decode(
            flow.one_step_x0(latents, torch.tensor(0.5), customizer.velocity(latents, 0.5, condition))
        )
        return list(torch.autograd.grad(picture.square().mean(), weights))

    calls: list[int] = []
    block = customizer.transformer.get_submodule(FAMILIES[family].block)
    block.register_forward_pre_hook(lambda *_: calls.append(1))
    expected, once = gradients(), len(calls)
    customizer.checkpoint_gradients()
    for found, one in zip(gradients(), expected, strict=True):
        assert torch.allclose(found, one, rtol=1e-4, atol=1e-9)
    assert len(calls) == 3 * once > 0, "the block is not computed again in the backward pass"


def test_without_encoders_what_is_embedded_is_drawn(customizer: Any, family: str) -> None:
    condition = customizer.condition(PROMPTS[1:2], people()[1:2])
    noise = seeded_noise(customizer, [3], FAMILIES[family].size)
    with torch.no_grad():
        before = customizer.velocity(noise, 0.5, condition)
        customizer.drop_encoders()
        assert torch.equal(customizer.to("cpu").velocity(noise, 0.5, condition), before)
    with pytest.raises(WorkFailed, match="the text encoders are freed"):
        customizer.condition(PROMPTS[:1], [[]])


def test_same_seed_same_picture_in_any_batch(customizer: Any) -> None:
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
    how = Drawing(FAMILIES[family].size, 2)
    whole, half = (
        draw(load(folders[family], dtype=dtype), PROMPTS[1:2], people()[1:2], [3], how)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert half.dtype == torch.float32
    assert (whole - half).abs().mean() < 0.1 * whole.std()


def test_other_sizes_and_their_defaults(customizer: Any, family: str) -> None:
    how = Drawing(FAMILIES[family].other_size, 1)
    assert draw(customizer, PROMPTS[:1], people()[:1], [0], how).shape[2:] == FAMILIES[family].other_size
    one = draw(customizer, PROMPTS[3:], people()[2:], [0], Drawing(steps=1))
    assert one.shape[2:] == default_size(customizer.settings, 3)


@pytest.mark.parametrize("size", [(64, 100), (1000, 1024), (8, 8)])
def test_size_that_cannot_be_drawn(customizer: Any, size: tuple[int, int]) -> None:
    with pytest.raises(BadInput, match=f"size {size[0]}x{size[1]}.*draws"):
        draw(customizer, PROMPTS[:1], people()[:1], [0], Drawing(size))


def test_references_that_cannot_be_taken(customizer: Any) -> None:
    more = customizer.settings.max_references + 1
    with pytest.raises(BadInput, match=rf"{more} references: .* takes at most"):
        customizer.condition(PROMPTS[:1], [people()[0] * more])
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


def test_component_missing(folders: dict[str, Path], family: str, tmp_path: Path) -> None:
    base = damaged(folders, family, tmp_path)
    for component in FAMILIES[family].components:
        (base / component).rename(base / "away")
        with pytest.raises(BadInput, match=f"component '{component}' is missing; copy the whole folder again"):
            load(base)
        (base / "away").rename(base / component)


def test_weights_cut_short_or_left_out(folders: dict[str, Path], family: str, tmp_path: Path) -> None:
    base = damaged(folders, family, tmp_path)
    for component in ("vae", "transformer", FAMILIES[family].encoder):
        (file,) = (base / component).glob("*.safetensors")
        whole = file.read_bytes()
        file.write_bytes(whole[:-100])
        with pytest.raises(BadInput, match="cut short or damaged; copy the whole folder again"):
            load(base)
        state = safetensors.torch.load(whole)
        state.pop(max(state))
        save_file(state, file, metadata={"format": "pt"})
        with pytest.raises(BadInput, match=f"{component}: .*(missing|cannot be loaded)"):
            load(base)
        file.write_bytes(whole)


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
