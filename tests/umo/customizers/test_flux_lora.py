"""UNO's LoRA naming against the original blocks, written here from the architecture's description in plain torch.

Independent of the converter: the base's weights are mapped to the original naming by this file's own table, and the
LoRA works inside the fused layers as UNO's processors do.
"""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from tests.umo.customizers.conftest import PROMPTS, diffusers_forward, small_flux, smooth, write
from umo.customizers import flux_lora, load
from umo.customizers.flux_lora import NAMING
from umo.customizers.flux_uno import FluxUno
from umo.customizers.lora_convert import renamed
from umo.customizers.lora_file import FILE
from umo.errors import BadInput

RANK, HEADS, HEAD = 4, 2, 16
WIDTH = HEADS * HEAD
State = dict[str, Tensor]


def random_lora(doubles: int = 2, singles: int = 2, width: int = WIDTH, rank: int = RANK) -> State:
    """A LoRA as UNO publishes it; weights large enough to be felt."""
    sizes = {f"double_blocks.{i}.processor.qkv_lora{s}": (width, 3 * width) for i in range(doubles) for s in (1, 2)}
    sizes |= {f"double_blocks.{i}.processor.proj_lora{s}": (width, width) for i in range(doubles) for s in (1, 2)}
    sizes |= {f"single_blocks.{i}.processor.qkv_lora": (width, 3 * width) for i in range(singles)}
    sizes |= {f"single_blocks.{i}.processor.proj_lora": (5 * width, width) for i in range(singles)}
    generator = torch.Generator().manual_seed(1)
    state = {}
    for name, (inside, outside) in sizes.items():
        state[f"{name}.down.weight"] = torch.randn(rank, inside, generator=generator) / inside**0.5
        state[f"{name}.up.weight"] = torch.randn(outside, rank, generator=generator) / rank**0.5
    return state


class Original:
    """FLUX's transformer as published, a LoRA inside, on weights named as in diffusers.

    A linear layer is `(weight, bias)`; the fused ones are put together here.
    """

    def __init__(self, weights: State, lora: State, doubles: int, singles: int) -> None:
        self.weights, self.lora, self.doubles, self.singles = weights, lora, doubles, singles

    def linear(self, x: Tensor, *names: str) -> Tensor:
        weight, bias = (torch.cat([self.weights[f"{name}.{part}"] for name in names]) for part in ("weight", "bias"))
        return x @ weight.T + bias

    def low_rank(self, x: Tensor, name: str) -> Tensor:
        if f"{name}.down.weight" not in self.lora:
            return torch.zeros(())
        return (x @ self.lora[f"{name}.down.weight"].T) @ self.lora[f"{name}.up.weight"].T

    def forward(
        self, image: Tensor, text: Tensor, pooled: Tensor, time: Tensor, guidance: Tensor, ids: Tensor
    ) -> Tensor:
        vector = self._mlp(_sinusoid(time), "time_text_embed.timestep_embedder")
        vector = vector + self._mlp(_sinusoid(guidance), "time_text_embed.guidance_embedder")
        vector = vector + self._mlp(pooled, "time_text_embed.text_embedder")
        image, text = self.linear(image, "x_embedder"), self.linear(text, "context_embedder")
        turn = _rope(torch.cat([torch.zeros(text.shape[1], 3), ids]))
        for block in range(self.doubles):
            image, text = self.double(block, image, text, vector, turn)
        both = torch.cat([text, image], dim=1)
        for block in range(self.singles):
            both = self.single(block, both, vector, turn)
        # diffusers stores this layer's halves the other way round than the original: scale first.
        scale, shift = self.linear(F.silu(vector), "norm_out.linear").chunk(2, dim=-1)
        return self.linear(_modulate(both[:, text.shape[1] :], shift, scale), "proj_out")

    def double(self, block: int, image: Tensor, text: Tensor, vector: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
        here, lora = f"transformer_blocks.{block}", f"double_blocks.{block}.processor"
        streams = []
        sides = ((text, "norm1_context", "add_{}_proj", "norm_added_", 2), (image, "norm1", "to_{}", "norm_", 1))
        for x, norm, layer, rms, stream in sides:
            modulation = self.linear(F.silu(vector), f"{here}.{norm}.linear").chunk(6, dim=-1)
            inside = _modulate(x, modulation[0], modulation[1])
            fused = self.linear(inside, *[f"{here}.attn.{layer.format(part)}" for part in "qkv"])
            fused = fused + self.low_rank(inside, f"{lora}.qkv_lora{stream}")
            q, k, v = _heads(fused)
            q, k = self._rms(q, f"{here}.attn.{rms}q"), self._rms(k, f"{here}.attn.{rms}k")
            streams.append((x, modulation, (q, k, v)))
        together = [torch.cat([streams[0][2][part], streams[1][2][part]], dim=2) for part in range(3)]
        attended = _attention(*together, turn)
        parts = attended.split([text.shape[1], image.shape[1]], dim=1)
        results = []
        outs = ((2, "to_add_out", "ff_context"), (1, "to_out.0", "ff"))
        for (x, modulation, _), part, (stream, out, mlp) in zip(streams, parts, outs, strict=True):
            projected = self.linear(part, f"{here}.attn.{out}") + self.low_rank(part, f"{lora}.proj_lora{stream}")
            x = x + modulation[2][:, None] * projected
            hidden = F.gelu(
                self.linear(_modulate(x, modulation[3], modulation[4]), f"{here}.{mlp}.net.0.proj"), approximate="tanh"
            )
            results.append(x + modulation[5][:, None] * self.linear(hidden, f"{here}.{mlp}.net.2"))
        return results[1], results[0]

    def single(self, block: int, x: Tensor, vector: Tensor, turn: Tensor) -> Tensor:
        here, lora = f"single_transformer_blocks.{block}", f"single_blocks.{block}.processor"
        shift, scale, gate = self.linear(F.silu(vector), f"{here}.norm.linear").chunk(3, dim=-1)
        inside = _modulate(x, shift, scale)
        fused = self.linear(inside, *[f"{here}.attn.to_{part}" for part in "qkv"], f"{here}.proj_mlp")
        qkv, mlp = fused.split([3 * WIDTH, 4 * WIDTH], dim=-1)
        q, k, v = _heads(qkv + self.low_rank(inside, f"{lora}.qkv_lora"))
        q, k = self._rms(q, f"{here}.attn.norm_q"), self._rms(k, f"{here}.attn.norm_k")
        out = torch.cat([_attention(q, k, v, turn), F.gelu(mlp, approximate="tanh")], dim=-1)
        return x + gate[:, None] * (self.linear(out, f"{here}.proj_out") + self.low_rank(out, f"{lora}.proj_lora"))

    def _mlp(self, x: Tensor, name: str) -> Tensor:
        return self.linear(F.silu(self.linear(x, f"{name}.linear_1")), f"{name}.linear_2")

    def _rms(self, x: Tensor, name: str) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weights[f"{name}.weight"]


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    normal = (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, unbiased=False, keepdim=True) + 1e-6)
    return (1 + scale[:, None]) * normal + shift[:, None]


def _heads(fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, L, 3 H D) -> three of (B, H, L, D)."""
    batch, length, _ = fused.shape
    q, k, v = fused.view(batch, length, 3, HEADS, HEAD).permute(2, 0, 3, 1, 4)
    return q, k, v


def _attention(q: Tensor, k: Tensor, v: Tensor, turn: Tensor) -> Tensor:
    q, k = _turned(q, turn), _turned(k, turn)
    weights = (q @ k.transpose(-1, -2) / HEAD**0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def _rope(ids: Tensor) -> Tensor:
    """(L, 3) positions -> (L, D / 2) complex rotations; axes of 4, 6 and 6."""
    angles = []
    for axis, width in enumerate((4, 6, 6)):
        frequency = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        angles.append(ids[:, axis].double()[:, None] * frequency)
    angle = torch.cat(angles, dim=-1)
    return torch.polar(torch.ones_like(angle), angle)


def _turned(x: Tensor, turn: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turn).flatten(-2).float()


def _sinusoid(value: Tensor) -> Tensor:
    frequency = 10000.0 ** (-torch.arange(128, dtype=torch.float32) / 128)
    angle = 1000 * value[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


@pytest.mark.parametrize("layers", ["", "double_blocks.", "single_blocks."])
def test_converted_lora_does_what_the_original_blocks_do(layers: str, inputs: dict, tmp_path: Path) -> None:
    base = small_flux()
    lora = {key: tensor for key, tensor in random_lora().items() if key.startswith(layers)}
    weights = {key: tensor.clone() for key, tensor in base.transformer.state_dict().items()}
    plain = diffusers_forward(base, inputs)
    with torch.no_grad():
        assert torch.allclose(Original(weights, {}, 2, 2).forward(**inputs), plain, atol=1e-4), "the bare blocks differ"
        expected = Original(weights, lora, 2, 2).forward(**inputs)
    NAMING.attach(base.transformer, write(lora, tmp_path / "uno.safetensors"), "small-flux")
    found = diffusers_forward(base, inputs)
    assert torch.allclose(found, expected, atol=1e-4)
    assert (expected - plain).abs().max() > 0.1, "the LoRA is not felt"


def test_round_trip_is_exact() -> None:
    lora = random_lora()
    back = renamed(NAMING, NAMING.to_layers(lora), "uno")
    assert back.keys() == lora.keys()
    assert all(torch.equal(back[key], lora[key]) for key in lora)
    wrapped = {f"module.{key}": tensor for key, tensor in lora.items()}
    assert renamed(NAMING, NAMING.to_layers(wrapped), "uno").keys() == lora.keys()


def test_lora_trained_in_diffusers_goes_back_as_the_same_function(inputs: dict, tmp_path: Path) -> None:
    """Its query, key and value have downs of their own: three ranks side by side."""
    base = small_flux()
    generator = torch.Generator().manual_seed(3)
    trained = {
        key: torch.randn(tensor.shape, generator=generator) / 4
        for key, tensor in NAMING.to_layers(random_lora()).items()
    }
    original = renamed(NAMING, trained, "uno")
    ranks = {tensor.shape[0] for key, tensor in original.items() if ".down." in key}
    assert ranks == {3 * RANK}, "UNO's loader takes one rank for all"
    weights = {key: tensor.clone() for key, tensor in base.transformer.state_dict().items()}
    with torch.no_grad():
        expected = Original(weights, original, 2, 2).forward(**inputs)
    NAMING.attach(base.transformer, NAMING.save(trained, tmp_path, "small-flux"), "small-flux")
    assert torch.allclose(diffusers_forward(base, inputs), expected, atol=1e-4)


def as_uno(lora: Path | None = None) -> FluxUno:
    """A FLUX.1 that is tuned as UNO is, in the middle of a training that may have begun with a LoRA."""
    base = small_flux()
    base.settings = base.settings.model_copy(update={"as_uno": True})
    if lora is not None:
        NAMING.attach(base.transformer, lora, "small-flux")
    base.add_lora(RANK)
    generator = torch.Generator().manual_seed(7)
    for weight in base.transformer.parameters():
        if weight.requires_grad:
            weight.data += torch.randn(weight.shape, generator=generator) / 8
    return base


@pytest.mark.parametrize("given", [False, True])
def test_what_is_trained_goes_back_to_uno_at_its_own_rank(given: bool, inputs: dict, tmp_path: Path) -> None:
    """From UNO's LoRA and from nothing: 4 doubles and 2 singles' queries, keys and values have 6 downs, not 18."""
    base = as_uno(write(random_lora(), tmp_path / "uno.safetensors") if given else None)
    trained = [weight for weight in base.transformer.parameters() if weight.requires_grad]
    assert len(trained) == 2 * len(base.lora_targets) - 2 * 6
    weights = {key.replace(".base_layer", ""): tensor for key, tensor in base.transformer.state_dict().items()}
    original = renamed(NAMING, NAMING.read(base.save_lora(tmp_path / "trained")), "uno")
    assert {tensor.shape[0] for key, tensor in original.items() if ".down." in key} == {RANK}
    assert original.keys() == random_lora().keys()
    with torch.no_grad():
        expected = Original(weights, original, 2, 2).forward(**inputs)
    assert torch.allclose(diffusers_forward(base, inputs), expected, atol=1e-4)


def test_a_tied_down_has_the_gradients_of_the_three(inputs: dict) -> None:
    tied = as_uno()
    state = {key: tensor.clone() for key, tensor in tied.transformer.state_dict().items()}
    free = small_flux()
    free.add_lora(RANK)
    free.transformer.load_state_dict(state)

    def gradients(base: FluxUno) -> dict[str, Tensor]:
        base.velocity(torch.ones(1, 16, 4, 8), 0.5, base.condition(PROMPTS[:1], [[]])).square().sum().backward()
        found = base.transformer.named_parameters(remove_duplicate=False)
        return {name: weight.grad for name, weight in found if weight.grad is not None}

    one, three = gradients(tied), gradients(free)
    for where, parts in (("transformer_blocks.1.attn", "add_{}_proj"), ("single_transformer_blocks.0.attn", "to_{}")):
        names = [f"{where}.{parts.format(part)}.lora_A.default.weight" for part in "qkv"]
        assert (three[names[0]] - three[names[1]]).abs().max() > 0
        for name in names:
            torch.testing.assert_close(one[name], sum(three[name] for name in names), rtol=1e-4, atol=1e-6)


def test_downs_that_differ_are_trained_on_as_they_are(inputs: dict, tmp_path: Path) -> None:
    base = small_flux()
    base.add_lora(RANK)
    generator = torch.Generator().manual_seed(3)
    for name, weight in base.transformer.named_parameters():
        if ".lora_" in name:
            weight.data = torch.randn(weight.shape, generator=generator) / 4
    expected = diffusers_forward(base, inputs)
    base.save_lora(tmp_path)
    again = small_flux()
    again.settings = again.settings.model_copy(update={"as_uno": True})
    NAMING.attach(again.transformer, tmp_path, "small-flux")
    again.add_lora(RANK)
    assert torch.equal(diffusers_forward(again, inputs), expected)
    trained = [weight for weight in again.transformer.parameters() if weight.requires_grad]
    assert len(trained) == 2 * len(again.lora_targets)


def test_diffusers_own_loader_takes_what_is_saved(inputs: dict, tmp_path: Path) -> None:
    ours, theirs = small_flux(), small_flux()
    state = NAMING.to_layers(random_lora())
    path = NAMING.save(state, tmp_path / "lora", "small-flux")
    assert not list(path.parent.glob("*.tmp"))
    NAMING.attach(ours.transformer, path.parent, "small-flux")
    theirs.pipeline().load_lora_weights(path.parent)
    assert torch.equal(diffusers_forward(ours, inputs), diffusers_forward(theirs, inputs))


def test_load_with_a_lora_and_without(folders: dict[str, Path], tmp_path: Path) -> None:
    path = write(random_lora(), tmp_path / "umo.safetensors")
    bare, adapted = load(folders["flux"]), load(folders["flux"], lora=path)
    latents, references = torch.randn(1, *bare.latents_shape((32, 64))), [[smooth(1, 48, 48)[0]]]
    results = [c.velocity(latents, 0.5, c.condition(PROMPTS[:1], references)) for c in (bare, adapted)]
    assert (results[0] - results[1]).abs().max() > 0.05
    assert not any(parameter.requires_grad for parameter in adapted.transformer.parameters())


@pytest.mark.parametrize("change", [{"width": 48}, {"doubles": 3}])
def test_lora_for_another_base_names_both(change: dict, tmp_path: Path) -> None:
    path = write(random_lora(**change), tmp_path / "other.safetensors")
    with pytest.raises(BadInput, match=r"other\.safetensors: made for another base than small-flux"):
        NAMING.attach(small_flux().transformer, path, "small-flux")


def test_lora_that_says_another_base_is_refused_with_both_names(tmp_path: Path) -> None:
    """Even where its layers would fit."""
    NAMING.save(NAMING.to_layers(random_lora()), tmp_path, "large-flux")
    with pytest.raises(BadInput, match="made for base 'large-flux', and this is 'small-flux'"):
        NAMING.attach(small_flux().transformer, tmp_path, "small-flux")
    NAMING.attach(small_flux().transformer, tmp_path / FILE, "large-flux")


def test_files_that_are_no_lora(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="LoRA missing; check the path"):
        NAMING.read(tmp_path / "nowhere.safetensors")
    with pytest.raises(BadInput, match="holds no LoRA"):
        NAMING.read(write({"x_embedder.weight": torch.ones(2, 2)}, tmp_path / "weights.safetensors"))
    with pytest.raises(BadInput, match=r"0 \.safetensors files"):
        NAMING.read(tmp_path.parent)
    lora = random_lora()
    lora.pop("double_blocks.1.processor.qkv_lora2.up.weight")
    with pytest.raises(BadInput, match=r"double_blocks.1.processor.qkv_lora2.down.weight has no up"):
        NAMING.read(write(lora, tmp_path / "half.safetensors"))
    whole = write(random_lora(), tmp_path / "cut.safetensors")
    whole.write_bytes(whole.read_bytes()[:-10])
    with pytest.raises(BadInput, match="cut short or damaged; copy it again"):
        NAMING.read(whole)


def test_modules_are_those_of_the_naming() -> None:
    names = {key.rsplit(".lora_", 1)[0] for key in NAMING.to_layers(random_lora())}
    assert set(flux_lora.UNO.modules(2, 2)) == names


def test_saved_file_says_its_base(tmp_path: Path) -> None:
    from safetensors import safe_open

    path = NAMING.save(NAMING.to_layers(random_lora()), tmp_path, "tiny-uno")
    with safe_open(path, "pt") as file:
        assert file.metadata()["base"] == "tiny-uno"
    assert all(key.startswith("transformer.") for key in load_file(path))
