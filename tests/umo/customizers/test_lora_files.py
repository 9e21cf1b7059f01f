"""LoRA files of FLUX.1 as others write them: one low-rank change of the original layers, written in every naming.

The table of layers is this file's own, from the architecture's description; diffusers' loader is the other witness.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.umo.customizers.conftest import diffusers_forward, small_flux, write
from umo.customizers import flux_lora
from umo.customizers.flux_lora import NAMING
from umo.errors import BadInput

State = dict[str, Tensor]
Change = dict[str, tuple[Tensor, Tensor]]  # original layer -> down, up
WIDE = 3072  # of FLUX.1 itself: at rank 1 a file of its layers is small


def table(width: int, inside: int = 64, text: int = 4096, pooled: int = 768) -> dict[str, tuple[int, dict[str, int]]]:
    """Original layer of block 1 or of an end -> inputs, {diffusers layer: outputs} in the order they are stacked in."""
    both = {}
    for stream, heads, out, mlp, norm in (
        ("img", "to_{}", "to_out.0", "ff", "norm1"),
        ("txt", "add_{}_proj", "to_add_out", "ff_context", "norm1_context"),
    ):
        here, there = f"double_blocks.1.{stream}", "transformer_blocks.1"
        both[f"{here}_attn.qkv"] = width, {f"{there}.attn.{heads.format(part)}": width for part in "qkv"}
        both[f"{here}_attn.proj"] = width, {f"{there}.attn.{out}": width}
        both[f"{here}_mlp.0"] = width, {f"{there}.{mlp}.net.0.proj": 4 * width}
        both[f"{here}_mlp.2"] = 4 * width, {f"{there}.{mlp}.net.2": width}
        both[f"{here}_mod.lin"] = width, {f"{there}.{norm}.linear": 6 * width}
    here, there = "single_blocks.1", "single_transformer_blocks.1"
    fused = {f"{there}.attn.to_{part}": width for part in "qkv"} | {f"{there}.proj_mlp": 4 * width}
    both[f"{here}.linear1"] = width, fused
    both[f"{here}.linear2"] = 5 * width, {f"{there}.proj_out": width}
    both[f"{here}.modulation.lin"] = width, {f"{there}.norm.linear": 3 * width}
    both |= {"img_in": (inside, {"x_embedder": width}), "txt_in": (text, {"context_embedder": width})}
    for original, embedder, inputs_ in (
        ("time", "timestep", 256),
        ("guidance", "guidance", 256),
        ("vector", "text", pooled),
    ):
        parent = f"time_text_embed.{embedder}_embedder"
        both[f"{original}_in.in_layer"] = inputs_, {f"{parent}.linear_1": width}
        both[f"{original}_in.out_layer"] = width, {f"{parent}.linear_2": width}
    both["final_layer.linear"] = width, {"proj_out": inside}
    both["final_layer.adaLN_modulation.1"] = width, {"norm_out.linear": 2 * width}
    return both


def random_change(layers: Mapping[str, tuple[int, dict[str, int]]], rank: int) -> Change:
    generator = torch.Generator().manual_seed(4)
    return {
        layer: (
            torch.randn(rank, inputs_, generator=generator) * inputs_**-0.5,
            torch.randn(sum(outputs.values()), rank, generator=generator) * rank**-0.5,
        )
        for layer, (inputs_, outputs) in layers.items()
    }


def parts(change: Change, layers: Mapping[str, tuple[int, dict[str, int]]]) -> Change:
    """The same change of diffusers' layers."""
    cut: Change = {}
    for layer, (down, up) in change.items():
        outputs = layers[layer][1]
        if layer == "final_layer.adaLN_modulation.1":  # shift and scale there, scale and shift in diffusers
            up = torch.cat([up[len(up) // 2 :], up[: len(up) // 2]])
        cut |= {part: (down, one) for part, one in zip(outputs, up.split(list(outputs.values())), strict=True)}
    return cut


def named(change: Change, prefix: str, down: str, up: str, *, flat: bool = False, alpha: float | None = None) -> State:
    state = {}
    for layer, (low, high) in change.items():
        name = prefix + (layer.replace(".", "_") if flat else layer)
        state |= {f"{name}.{down}.weight": low, f"{name}.{up}.weight": high}
        if alpha is not None:
            state[f"{name}.alpha"] = torch.tensor(alpha)
    return state


AB, DOWN_UP = ("lora_A", "lora_B"), ("lora_down", "lora_up")
ALPHA, RANK = 3.0, 2
# Writer -> whether it names diffusers' layers, and its file; those that hold no alpha have the rank's.
NAMINGS: dict[str, tuple[bool, Callable[[Change], State]]] = {
    "diffusers": (True, lambda c: named(c, "transformer.", *AB)),
    "diffusers, old": (True, lambda c: named(c, "transformer.", "lora.down", "lora.up")),
    "diffusers, with alphas": (True, lambda c: named(c, "transformer.", *DOWN_UP, alpha=ALPHA)),
    "DiffSynth": (True, lambda c: named(c, "", "lora_A.default", "lora_B.default")),
    "bare": (True, lambda c: named(c, "", *AB)),
    "peft": (True, lambda c: named(c, "base_model.model.", *AB)),
    "peft in a wrapper": (True, lambda c: named(c, "base_model.model.transformer.", "lora_A.mine", "lora_B.mine")),
    "OneTrainer": (True, lambda c: named(c, "lora_transformer_", *DOWN_UP, flat=True, alpha=ALPHA)),
    "SimpleTuner": (True, lambda c: named(c, "lycoris_", *DOWN_UP, flat=True, alpha=ALPHA)),
    "ai-toolkit": (False, lambda c: named(c, "diffusion_model.", *AB)),
    "ComfyUI": (False, lambda c: named(c, "diffusion_model.", *DOWN_UP, alpha=ALPHA)),
    "ComfyUI, a model's own": (False, lambda c: named(c, "model.diffusion_model.", *AB, alpha=ALPHA)),
    "kohya": (False, lambda c: named(c, "lora_unet_", *DOWN_UP, flat=True, alpha=ALPHA)),
    "kohya without alpha": (False, lambda c: named(c, "lora_unet_", *DOWN_UP, flat=True)),
    "fal": (False, lambda c: named(c, "base_model.model.", *AB)),
    "original, bare": (False, lambda c: named(c, "", *DOWN_UP)),
}


def deltas(state: State) -> State:
    """What a LoRA in diffusers' naming adds to each layer's weight, at alpha = rank."""
    layers = {key.rsplit(".lora_", 1)[0] for key in state}
    assert len(state) == 2 * len(layers)
    return {layer: state[f"{layer}.lora_B.weight"] @ state[f"{layer}.lora_A.weight"] for layer in layers}


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for layer, delta in expected.items():
        torch.testing.assert_close(found[layer], delta, rtol=1e-5, atol=1e-6, msg=layer)


@pytest.mark.parametrize("writer", NAMINGS)
def test_every_naming_is_the_same_change(writer: str, tmp_path: Path) -> None:
    layers = table(32)
    change = random_change(layers, RANK)
    cut, (of_diffusers, naming) = parts(change, layers), NAMINGS[writer]
    state = naming(cut if of_diffusers else change)
    scale = ALPHA / RANK if any(key.endswith(".alpha") for key in state) else 1
    found = NAMING.read(write(state, tmp_path / "lora.safetensors"))
    assert_same(deltas(found), {layer: scale * up @ down for layer, (down, up) in cut.items()})


def test_kohyas_file_is_read_as_diffusers_reads_it(tmp_path: Path) -> None:
    """At FLUX.1's own widths, which are the only ones that diffusers cuts; it passes over the last layers' alphas."""
    state = NAMINGS["kohya"][1](random_change(table(WIDE), 1))
    state = {key: value for key, value in state.items() if not ("final_layer" in key and key.endswith(".alpha"))}
    path = write(state, tmp_path / "kohya.safetensors")
    theirs = {key.removeprefix("transformer."): value for key, value in FluxPipeline.lora_state_dict(path).items()}
    ours = NAMING.read(path)
    assert ours.keys() == theirs.keys()
    for layer in sorted({key.rsplit(".lora_", 1)[0] for key in ours}):
        one, other = ([s[f"{layer}.lora_{half}.weight"][:64, :64] for half in "BA"] for s in (ours, theirs))
        torch.testing.assert_close(one[0] @ one[1], other[0] @ other[1], msg=layer)


def attention(rank: int | Callable[[int], int]) -> State:
    """A LoRA on some of the small base's layers, in diffusers' naming without a prefix."""
    generator = torch.Generator().manual_seed(5)
    names = [f"transformer_blocks.{k}.attn.to_{part}" for k in range(2) for part in ("q", "out.0")]
    names += [f"single_transformer_blocks.{k}.proj_out" for k in range(2)] + ["proj_out"]
    sizes = {"proj_out": (64, 32)} | {f"single_transformer_blocks.{k}.proj_out": (32, 160) for k in range(2)}
    state = {}
    for k, name in enumerate(names):
        (rows, columns), own = sizes.get(name, (32, 32)), rank if isinstance(rank, int) else rank(k)
        state[f"{name}.lora_A.weight"] = torch.randn(own, columns, generator=generator) / 4
        state[f"{name}.lora_B.weight"] = torch.randn(rows, own, generator=generator) / 4
    return state


def merged_forward(state: State, scale: Callable[[str], float], given: dict) -> Tensor:
    base = small_flux()
    weights = dict(base.transformer.named_parameters())
    with torch.no_grad():
        for layer, delta in deltas(state).items():
            weights[f"{layer}.weight"] += scale(layer) * delta
    return diffusers_forward(base, given)


PATTERN = {"alpha_pattern": {"^transformer_blocks.0.attn.to_q": 2, r"single_transformer_blocks\.\d+\.proj_out": 1}}


@pytest.mark.parametrize("more", [{}, PATTERN, {"use_rslora": True}], ids=["alpha", "patterns", "rslora"])
def test_alpha_in_the_metadata_scales(more: dict, inputs: dict, tmp_path: Path) -> None:
    """As the base with the LoRA in its weights at that scale draws, and as diffusers draws from the same file."""
    state = attention(4)
    settings = {
        "r": 4,
        "lora_alpha": 16,
        "target_modules": sorted({key.rsplit(".lora_", 1)[0] for key in state}),
    } | more
    FluxPipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=state,
        transformer_lora_adapter_metadata=settings,
        weight_name="meta.safetensors",
    )

    def scale(layer: str) -> float:
        if "alpha_pattern" in more and layer == "transformer_blocks.0.attn.to_q":
            return 2 / 4
        if "alpha_pattern" in more and layer.startswith("single"):
            return 1 / 4
        return 16 / 2 if "use_rslora" in more else 16 / 4

    ours, theirs = small_flux(), small_flux()
    NAMING.attach(ours.transformer, tmp_path / "meta.safetensors", "small-flux")
    theirs.pipeline().load_lora_weights(tmp_path, weight_name="meta.safetensors")
    found = diffusers_forward(ours, inputs)
    torch.testing.assert_close(found, merged_forward(state, scale, inputs), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found, diffusers_forward(theirs, inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("metadata", "scale"),
    [
        ({"ss_network_dim": "4", "ss_network_alpha": "2.0"}, 0.5),
        ({"ss_network_dim": "Dynamic", "ss_network_alpha": "Dynamic"}, 1),
        ({"ss_network_dim": "4", "ss_network_alpha": "None"}, 1),
        ({"ss_network_dim": "4", "ss_network_alpha": "0"}, 1),
        ({"lora_adapter_metadata": json.dumps({"r": 4, "lora_alpha": 6})}, 1.5),
        ({"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 6, "text_encoder.lora_alpha": 9})}, 1.5),
        (
            {
                "lora_adapter_metadata": json.dumps({"r": 4, "lora_alpha": 8}),
                "ss_network_alpha": "8",
            },
            2,
        ),
    ],
)
def test_what_metadata_says_of_alpha(metadata: dict[str, str], scale: float, tmp_path: Path) -> None:
    state = attention(4)
    save_file(state, tmp_path / "lora.safetensors", metadata=metadata)
    expected = {layer: scale * delta for layer, delta in deltas(state).items()}
    assert_same(deltas(NAMING.read(tmp_path)), expected)


def test_the_config_beside_pefts_own_file(tmp_path: Path) -> None:
    state = {f"base_model.model.{key}": value for key, value in attention(4).items()}
    write(state, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 12, "peft_type": "LORA"}))
    assert_same(deltas(NAMING.read(tmp_path)), {layer: 3 * one for layer, one in deltas(attention(4)).items()})


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float64]
)
def test_other_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {key: value.to(dtype) for key, value in attention(4).items()}
    found = NAMING.read(write(state, tmp_path / "lora.safetensors"))
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key].double(), state[key].double()) for key in state)
    NAMING.attach(small_flux().transformer, tmp_path, "small-flux")


@pytest.mark.parametrize("dtype", [torch.int64, torch.float8_e4m3fn])
def test_an_alpha_may_be_a_whole_number(dtype: torch.dtype, tmp_path: Path) -> None:
    state = attention(4)
    alphas = {key.replace("lora_A.weight", "alpha"): torch.tensor(8).to(dtype) for key in state if "lora_A" in key}
    found = NAMING.read(write(state | alphas, tmp_path / "lora.safetensors"))
    assert all(torch.allclose(found[key], state[key] * (2 if "lora_A" in key else 1)) for key in state)


LAYER = "transformer_blocks.0.attn.to_q"
A, B = f"transformer.{LAYER}.lora_A.weight", f"transformer.{LAYER}.lora_B.weight"
ONE = torch.ones(())


def other(name: str, up: int = 96) -> State:
    """kohya's halves of a layer, of rank 4 and 32 inputs."""
    return {
        f"lora_unet_{name}.lora_down.weight": torch.ones(4, 32),
        f"lora_unet_{name}.lora_up.weight": torch.ones(up, 4),
    }


def adapter(text: str) -> dict[str, str]:
    return {"lora_adapter_metadata": text}


# What is wrong -> tensors that are changed (None: taken away), metadata, what is said.
BAD: dict[str, tuple[Mapping[str, Tensor | None], dict[str, str], str]] = {
    "no up": ({B: None}, {}, rf"{A} has no up \(lora_B\)"),
    "no down": ({A: None}, {}, rf"{B} has no down \(lora_A\)"),
    "alpha alone": ({"transformer_blocks.1.ff.net.2.alpha": ONE}, {}, "1.ff.net.2.alpha has no down"),
    "not finite": ({A: torch.full((4, 32), torch.nan)}, {}, rf"{A} is not finite"),
    "infinite": ({B: torch.full((32, 4), -torch.inf)}, {}, rf"{B} is not finite"),
    "infinite in 8 bits": ({A: torch.full((4, 32), torch.inf).to(torch.float8_e5m2)}, {}, rf"{A} is not finite"),
    "integers": ({A: torch.ones(4, 32, dtype=torch.int8)}, {}, rf"{A} holds torch.int8"),
    "ranks": ({B: torch.ones(32, 8)}, {}, rf"{A} \(4, 32\) and its up \(32, 8\) do not fit"),
    "convolution": ({A: torch.ones(4, 32, 1, 1)}, {}, rf"{A} \(4, 32, 1, 1\)"),
    "rank 0": ({A: torch.ones(0, 32), B: torch.ones(32, 0)}, {}, rf"{A} \(0, 32\)"),
    "left over": ({f"{LAYER}.weight": ONE}, {}, rf"1 tensors are no half of a LoRA \({LAYER}.weight\)"),
    "no such layer": (other("middle"), {}, r"1 keys are not of FLUX.1's naming \(lora_unet_middle.lora_down.weight\)"),
    "given twice": (other("double_blocks_0_img_attn_qkv"), {}, rf"qkv.lora_down.weight and {A} are for the same layer"),
    "two adapters": ({A.replace(".weight", ".one.weight"): torch.ones(4, 32)}, {}, "are for the same layer"),
    "uncut": (other("single_blocks_0_linear1"), {}, "linear1.lora_down.weight: its up has 96 rows"),
    "text encoder": (
        other("te1", 8) | {"lora_te1_mlp.alpha": ONE},
        {},
        r"1 tensors are for a text encoder.*lora_te1_mlp",
    ),
    "text encoder of diffusers": ({"text_encoder.mlp.fc1.lora_A.weight": ONE}, {}, "1 tensors are for a text encoder"),
    "DoRA": ({f"transformer.{LAYER}.dora_scale": ONE}, {}, "1 tensors are DoRA"),
    "DoRA of peft": ({f"transformer.{LAYER}.lora_magnitude_vector": ONE}, {}, "1 tensors are DoRA"),
    "DoRA in the metadata": ({}, adapter('{"use_dora": true}'), "says that it is DoRA"),
    "LoKr": ({f"lycoris_{LAYER}.lokr_w1": ONE}, {}, "1 tensors are LoKr"),
    "LoHa": ({f"lora_unet_{LAYER}.hada_w1_a": ONE}, {}, "1 tensors are LoHa"),
    "diff": ({f"diffusion_model.{LAYER}.diff_b": ONE}, {}, "1 tensors are whole differences"),
    "bias": ({f"transformer.{LAYER}.lora_B.bias": ONE}, {}, "1 tensors are a LoRA with biases"),
    "alpha 0": ({f"transformer.{LAYER}.alpha": 0 * ONE}, {}, rf"{A}: alpha is 0 in transformer.{LAYER}.alpha"),
    "alphas": ({f"transformer.{LAYER}.alpha": torch.ones(3)}, {}, "alpha holds 3 numbers"),
    "alpha below 0": ({}, {"ss_network_alpha": "-4"}, "alpha is -4 in ss_network_dim and ss_network_alpha"),
    "two alphas": (
        {f"transformer.{LAYER}.alpha": 8 * ONE},
        {"ss_network_alpha": "16"},
        rf"{A}: alpha is 16 in ss_network_dim and ss_network_alpha and 8 in transformer.{LAYER}.alpha",
    ),
    "two in the metadata": (
        {},
        {"ss_network_alpha": "16"} | adapter('{"lora_alpha": 8}'),
        "alpha is 8 in .* and 16 in",
    ),
    "rank of another": ({}, adapter('{"r": 8, "lora_alpha": 8}'), "has rank 4, and lora_adapter_metadata says another"),
    "no JSON": ({}, adapter("{"), "no LoraConfig"),
    "nested": ({}, adapter("[" * 100000), "no LoraConfig"),
    "a list": ({}, adapter("[1]"), "no LoraConfig"),
    "no number": ({}, adapter('{"lora_alpha": "much"}'), "no LoraConfig"),
    "no pattern": ({}, adapter('{"alpha_pattern": {"(": 2}}'), "no LoraConfig"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused_and_names_it(case: str, tmp_path: Path) -> None:
    change, metadata, message = BAD[case]
    state = {f"transformer.{key}": value for key, value in attention(4).items()} | change
    path = tmp_path / "bad.safetensors"
    save_file({key: value for key, value in state.items() if value is not None}, path, metadata=metadata)
    with pytest.raises(BadInput, match=message) as refused:
        NAMING.read(path)
    assert str(refused.value).startswith(f"{path}: ") and "\n" not in str(refused.value)


def test_a_pickle_is_not_called_damaged(tmp_path: Path) -> None:
    torch.save(attention(4), tmp_path / "lora.safetensors")
    with pytest.raises(BadInput, match="is no safetensors file"):
        NAMING.read(tmp_path / "lora.safetensors")


def test_alpha_in_16_bits_does_not_contradict_the_metadata(tmp_path: Path) -> None:
    state = attention(4)
    alphas = {f"{key.rsplit('.lora_', 1)[0]}.alpha": torch.tensor(0.1, dtype=torch.bfloat16) for key in state}
    save_file(state | alphas, tmp_path / "lora.safetensors", metadata={"ss_network_alpha": "0.1"})
    found = deltas(NAMING.read(tmp_path))[LAYER]
    torch.testing.assert_close(found, 0.025 * deltas(state)[LAYER], rtol=0.01, atol=1e-5)


@pytest.mark.parametrize("ranks", [4, lambda k: 4 if k % 3 else 8], ids=["one rank", "two ranks"])
def test_diffusers_draws_the_same_from_our_file(ranks: int | Callable, inputs: dict, tmp_path: Path) -> None:
    """From tensors and metadata alike; the file says alpha = rank of every layer."""
    state = attention(ranks)
    path = NAMING.save(state, tmp_path, "small-flux")
    with safe_open(path, "pt") as file:
        said = json.loads(file.metadata()["lora_adapter_metadata"])
    assert (said["transformer.r"], said["transformer.lora_alpha"]) == ((4, 4) if ranks == 4 else (8, 8))
    assert said["transformer.rank_pattern"] == said["transformer.alpha_pattern"]
    assert all(torch.equal(load_file(path)[f"transformer.{key}"], value) for key, value in state.items())
    ours, theirs = small_flux(), small_flux()
    NAMING.attach(ours.transformer, path, "small-flux")
    theirs.pipeline().load_lora_weights(tmp_path)
    found = diffusers_forward(ours, inputs)
    torch.testing.assert_close(found, diffusers_forward(theirs, inputs), rtol=0, atol=0)
    torch.testing.assert_close(found, merged_forward(state, lambda layer: 1, inputs), rtol=1e-4, atol=1e-4)


def test_the_same_weights_make_the_same_file(tmp_path: Path) -> None:
    """safetensors itself writes several entries of metadata in an order that changes."""
    files = {NAMING.save(attention(4), tmp_path / str(k), "small-flux").read_bytes() for k in range(8)}
    assert len(files) == 1


def test_keys_of_our_file_are_comfyuis(tmp_path: Path) -> None:
    """It knows `transformer.LAYER.lora_{A,B}.weight` for every layer of diffusers that has a part in one of its own."""
    known = {part for _, outputs in table(32).values() for part in outputs}
    known |= {name.replace(".1.", f".{k}.") for name in known for k in (0, 1)}
    assert set(flux_lora.UNO.modules(2, 2)) <= known
    keys = load_file(NAMING.save(attention(4), tmp_path, "small-flux"))
    assert all(key.startswith("transformer.") and key.endswith((".lora_A.weight", ".lora_B.weight")) for key in keys)
