"""What is OmniGen2's own: the released code's numbers, its schedule, branches and references.

The golden numbers are held to 3e-4 of values up to 7.7. A time is multiplied by 1000 before its sine is taken, and the
last bit of the machine's `exp` there is seen: it moves the predictions by 1e-4.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from safetensors.torch import load_file
from torch import Tensor

from tests.umo.customizers.conftest import PROMPTS, people, smooth
from tests.umo.customizers.small_omnigen2 import GOLDEN
from umo import flow
from umo.customizers import CONDITIONAL, Guidance, load
from umo.customizers.folder import read_settings
from umo.customizers.omnigen2.adapter import NEGATIVE_PROMPT, OMNIGEN2, Branch, OmniGen2, branches
from umo.customizers.omnigen2.lora import modules
from umo.customizers.omnigen2.transformer import OmniGen2Transformer2DModel
from umo.errors import BadInput
from umo.images import read_image

SIZE = (64, 96)
BOTH = Guidance(text=5.0, image=2.0)


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "golden.safetensors")


@pytest.fixture(scope="module")
def released() -> OmniGen2:
    """Do not change it."""
    return load(GOLDEN / "folder")  # type: ignore[return-value]


@pytest.fixture
def small(folders: dict[str, Path]) -> OmniGen2:
    return load(folders["omnigen2"])  # type: ignore[return-value]


def forwards(base: OmniGen2, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Filled with each forward of the transformer: how many references each of its rows has."""
    calls: list[list[int]] = []
    plain = base.transformer.forward

    def counted(latents: Any, time: Tensor, texts: list[Tensor], references: list[list[Tensor]]) -> list[Tensor]:
        calls.append([len(some) for some in references])
        return plain(latents, time, texts, references)

    monkeypatch.setattr(base.transformer, "forward", counted)
    return calls


def test_the_transformer_predicts_what_the_released_one_does(golden: dict[str, Tensor], released: OmniGen2) -> None:
    samples = [
        {key.split(".")[2]: value for key, value in golden.items() if key.startswith(f"transformer.{row}.")}
        for row in (0, 1)
    ]
    latents, times, texts, expected = ([one[name] for one in samples] for name in ("latents", "time", "text", "output"))
    references = [[one[name] for name in sorted(one) if name.startswith("reference")] for one in samples]
    assert list(map(len, references)) == [2, 1] and latents[0].shape != latents[1].shape
    with torch.no_grad():
        found = released.transformer(latents, torch.stack(times), texts, references)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape and (ours - theirs).abs().max() < 3e-4


def test_at_its_published_size_it_has_the_published_parameters() -> None:
    """3.97 billion, and UMO's LoRA of rank 512 on all 38 blocks 327 million."""
    with torch.device("meta"):
        whole = OmniGen2Transformer2DModel()
    assert round(sum(weight.numel() for weight in whole.parameters()) / 1e9, 2) == 3.97
    targets = [whole.get_submodule(name) for name in modules(refiners=2, layers=32)]
    assert len(targets) == 4 * 38
    assert round(512 * sum(layer.in_features + layer.out_features for layer in targets) / 1e6) == 327


@pytest.mark.parametrize(
    ("name", "guidance", "count"),
    [
        ("both", BOTH, 2),
        ("text_only", Guidance(text=4.0), 2),
        ("range", BOTH.model_copy(update={"end": 0.5}), 2),
        ("no_references", BOTH, 0),
    ],
)
def test_it_draws_what_the_released_pipeline_draws(
    golden: dict[str, Tensor], released: OmniGen2, name: str, guidance: Guidance, count: int
) -> None:
    references = [read_image(GOLDEN / f"reference{k}.png") for k in range(count)]
    with torch.no_grad():
        condition = released.condition(["two people"], [references], guidance, "bad")
        latents = flow.rollout(
            lambda x, sigma: released.velocity(x, sigma, condition), golden["noise"], released.sigmas(4, SIZE)
        )
        picture = released.decode(latents)
    assert (picture - golden[f"pipeline.{name}"]).abs().max() < 3e-4


def test_the_schedule_is_the_familys_shift_of_time(released: OmniGen2) -> None:
    for height, width in ((1024, 1024), (512, 768), (64, 96)):
        time = torch.arange(11, dtype=torch.float64) / 10
        m = (height / 8 * width / 8) ** 0.5 / 40
        shifted = time / (m - m * time + time)
        sigmas = released.sigmas(10, (height, width))
        assert sigmas.dtype == torch.float32 and sigmas[0] == 1 and sigmas[-1] == 0
        assert torch.allclose(sigmas.double(), 1 - shifted, atol=1e-7)


def test_a_schedule_without_shift_is_even(released: OmniGen2) -> None:
    even = replace(released, scheduler=type(released.scheduler)(dynamic_time_shift=False))
    assert torch.allclose(even.sigmas(4, SIZE), torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0]))


def test_branches_add_up_to_the_released_rule() -> None:
    prompted, negative, neither = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)).double()
    values = {(True, False): prompted, (False, False): negative, (False, True): neither}

    def guided(guidance: Guidance, has_references: bool = True, progress: float = 0.0) -> Tensor:
        parts = branches(0, guidance, has_references, progress)
        return torch.stack([part.weight * values[part.prompted, part.alone] for part in parts]).sum(0)

    both = neither + 2 * (negative - neither) + 5 * (prompted - negative)
    text = neither + 5 * (prompted - neither)
    assert torch.allclose(guided(BOTH), both)
    assert torch.allclose(guided(Guidance(text=5.0)), text)
    assert torch.allclose(guided(BOTH, has_references=False), text)
    part = Guidance(text=5.0, image=2.0, start=0.25, end=0.5)
    for step, within in enumerate([False, True, True, False]):
        assert torch.allclose(guided(part, progress=step / 4), both if within else prompted)
    assert branches(3, Guidance(text=1.0, image=2.0), True) == [Branch(3)]


def test_a_branch_is_computed_only_where_it_counts(released: OmniGen2, monkeypatch: pytest.MonkeyPatch) -> None:
    condition = released.condition(["ann", "two people"], people()[:2], BOTH)
    calls = forwards(released, monkeypatch)
    noise = torch.randn(2, *released.latents_shape(SIZE), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        released.velocity(noise, 0.9, condition.guided(CONDITIONAL))
        assert calls == [[1, 2]]
        calls.clear()
        released.velocity(noise, 0.9, condition)
        assert calls == [[1, 1, 2, 2], [0, 0]]
        calls.clear()
        early, late = released.sigmas(4, SIZE)[[1, 3]]
        condition = condition.guided(BOTH.model_copy(update={"end": 0.5}))
        released.velocity(noise, torch.stack([early, late]), condition)
        assert calls == [[1, 1, 2], [0]]


def test_samples_without_references_or_guidance_share_a_batch_with_others(released: OmniGen2) -> None:
    mixed = released.condition(PROMPTS[:4], [*people()[1:], [], []])
    guidance = (CONDITIONAL, BOTH, BOTH, CONDITIONAL)
    parts = [mixed.take([row]).guided(one) for row, one in enumerate(guidance)]
    noise = torch.randn(4, *released.latents_shape(SIZE), generator=torch.Generator().manual_seed(1)).requires_grad_()
    batch = released.velocity(noise, 0.6, type(mixed).join(parts))
    (gradient,) = torch.autograd.grad(batch.square().sum(), noise)
    assert torch.isfinite(gradient).all()
    with torch.no_grad():
        alone = [released.velocity(noise[[row]], 0.6, part) for row, part in enumerate(parts)]
    assert torch.allclose(batch, torch.cat(alone), atol=1e-4)


def test_a_condition_keeps_texts_without_padding(released: OmniGen2) -> None:
    condition = released.condition(["ann", "ann and a much longer sentence"], [[], []], negative="bad")
    alone = released.condition(["bad"], [[]])
    short, long = (sample["text"] for sample in condition.samples)
    assert len(long) - len(short) == len(" and a much longer sentence"), "a byte is a token here"
    assert torch.allclose(alone.samples[0]["text"], condition.samples[0]["negative_text"], atol=1e-5)
    assert torch.equal(condition.unprompted([0]).samples[0]["text"], condition.samples[0]["negative_text"])
    assert len(released.condition(["a" * 1200], [[]]).samples[0]["text"]) == 1024


def test_references_are_scaled_down_by_the_familys_rule(released: OmniGen2) -> None:
    settings = released.settings.model_copy(update={"reference_pixels": 64**2, "reference_side": 96})
    base = replace(released, settings=settings)

    def cells(height: int, width: int) -> tuple[int, ...]:
        return tuple(base.condition(["ann"], [[smooth(1, height, width)[0]]]).references(0)[0].shape[1:])

    assert cells(64, 64) == (8, 8)
    assert cells(40, 50) == (4, 6), "32x48: rounded down, never enlarged"
    assert cells(128, 128) == (8, 8), "by its area"
    assert cells(40, 192) == (2, 12), "by its longest side: 20x96"
    with pytest.raises(BadInput, match="reference 192x20 px is too long and thin"):
        cells(20, 192)


def test_a_released_folder_has_the_familys_settings(released: OmniGen2) -> None:
    settings = released.settings
    assert (settings.steps, settings.guidance, settings.negative) == (50, BOTH, NEGATIVE_PROMPT)
    assert (settings.max_references, settings.reference_pixels, settings.reference_side) == (5, 1024**2, 1024)
    assert settings.training_guidance == CONDITIONAL
    released.check_size((1024, 1024))


def test_more_references_than_the_weights_know_are_not_allowed_by_settings(tmp_path: Path) -> None:
    (tmp_path / "customizer.json").write_text('{"max_references": 6}')
    with pytest.raises(BadInput, match=r"customizer\.json: .*max_references.*less than or equal to 5"):
        read_settings(tmp_path, OMNIGEN2)


def test_the_attention_backend_is_the_one_that_is_set(small: OmniGen2, monkeypatch: pytest.MonkeyPatch) -> None:
    condition = small.condition(PROMPTS[:2], people()[:2], CONDITIONAL)
    noise = torch.randn(2, *small.latents_shape(SIZE), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = small.velocity(noise, 0.6, condition)
        used: list[int] = []
        chosen = AttentionBackendName._NATIVE_MATH
        plain = _AttentionBackendRegistry._backends[chosen]
        monkeypatch.setitem(
            _AttentionBackendRegistry._backends, chosen, lambda **given: (used.append(1), plain(**given))[1]
        )
        before, _ = _AttentionBackendRegistry.get_active_backend()
        try:
            small.transformer.set_attention_backend("_native_math")
        finally:
            _AttentionBackendRegistry.set_active_backend(before)
        assert torch.allclose(small.velocity(noise, 0.6, condition), expected, atol=1e-5)
    assert len(used) == 5, "the blocks of three refiners, and two over all"
