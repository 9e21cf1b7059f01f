"""Small bases with random weights, one a family, saved in its real layout."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from tests.umo.customizers.small_flux2 import small_flux2
from tests.umo.customizers.small_omnigen2 import load_as_umo, small_omnigen2
from tests.umo.customizers.small_qwen import small_qwen
from umo.customizers.base import Size
from umo.customizers.build import build_tiny
from umo.customizers.flux_tokens import diagonal_ids
from umo.customizers.flux_uno import FluxSettings, FluxUno
from umo.customizers.tiny import PatchAutoencoder
from umo.scenes.prompts import prompt

PROMPTS = [prompt(centres, "plain blue") for centres in ([0.5], [0.2, 0.8], [0.8, 0.2], [0.2, 0.5, 0.8])]


def smooth(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Soft coloured spots (count, 3, height, width) in [-1, 1]."""
    coarse = torch.rand(count, 3, 4, 5, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(-1, 1)


def people() -> list[list]:
    """References of three samples: one, two and three of different sizes and kinds."""
    array = ((smooth(1, 70, 90, seed=1)[0] + 1) * 127.5).byte().permute(1, 2, 0).numpy()
    other = smooth(1, 96, 96, seed=2)[0]
    third = smooth(1, 120, 80, seed=3)[0]
    return [[array], [other, array], [third, other, array]]


def tiny() -> FluxUno:
    return build_tiny(PROMPTS, PatchAutoencoder().fit(smooth(8, 64, 128)))


def small_flux() -> FluxUno:
    """FLUX.1-dev's classes, each with few and narrow layers, and guidance."""
    letters = [f"{letter}{end}" for letter in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")]
    clip_words = [*letters, "<|startoftext|>", "<|endoftext|>"]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -2.0), ("▁", -2.0), *[(c, -3.0) for c in letters[::2]]]
    vocabulary = {word: index for index, word in enumerate(clip_words)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)
    tokenizer_2 = T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=24)
    torch.manual_seed(0)
    clip = CLIPTextConfig(
        vocab_size=len(clip_words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=vocabulary["<|startoftext|>"],
        eos_token_id=vocabulary["<|endoftext|>"],
    )
    t5 = T5Config(vocab_size=len(tokenizer_2), d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    autoencoder = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=4,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    transformer = FluxTransformer2DModel(
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=16,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    return FluxUno(
        name="small-flux",
        settings=FluxSettings(
            max_references=4,
            reference_side=64,
            references_side=48,
            sizes=((32, 64),),
            max_side=256,
            steps=4,
            guidance=4.0,
        ),
        transformer=transformer,
        vae=autoencoder.eval(),
        text_encoder=CLIPTextModel(clip).eval(),
        text_encoder_2=T5EncoderModel(t5).eval(),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
    )


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """These networks are too small to share a step among threads; waiting for them costs tenfold on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def load_by_pipeline(base: Any, lora: Path) -> None:
    base.pipeline().load_lora_weights(lora.parent)


@dataclass(frozen=True)
class Family:
    """A small base of a family with random weights, and what the contract test has to know of it.

    Attributes:
        make: builds it; it is saved by its `save` and read back by `umo.customizers.load`.
        size, other_size: (height, width) that it draws.
        block: name of a block of its transformer that checkpointing computes again.
        components: all folders without which it is refused.
        encoder: the folder of a network for text.
        guided: whether another guidance draws another picture.
        load_lora: puts a saved LoRA on a base as the family's own loader does.
    """

    make: Callable[[], Any]
    size: Size
    other_size: Size
    block: str
    components: tuple[str, ...]
    encoder: str = "text_encoder"
    guided: bool = True
    load_lora: Callable[[Any, Path], None] = load_by_pipeline


FLUX_PARTS = ("vae", "transformer", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
FLUX2_PARTS = ("vae", "transformer", "text_encoder", "tokenizer", "scheduler")
OMNIGEN2_PARTS = ("vae", "transformer", "mllm", "processor", "scheduler")
QWEN_PARTS = (*FLUX2_PARTS, "processor")
FAMILIES = {
    "tiny": Family(tiny, (64, 128), (64, 192), "single_transformer_blocks.0", FLUX_PARTS, guided=False),
    "flux": Family(small_flux, (32, 64), (48, 32), "single_transformer_blocks.0", FLUX_PARTS),
    "flux2": Family(small_flux2, (32, 64), (48, 32), "single_transformer_blocks.0", FLUX2_PARTS),
    "omnigen2": Family(
        small_omnigen2, (32, 64), (48, 32), "layers.0", OMNIGEN2_PARTS, encoder="mllm", load_lora=load_as_umo
    ),
    "qwen": Family(small_qwen, (32, 64), (48, 32), "transformer_blocks.0", QWEN_PARTS),
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A saved base a family; do not write into them."""
    root = tmp_path_factory.mktemp("bases")
    for name, family in FAMILIES.items():
        family.make().save(root / name)
    return {name: root / name for name in FAMILIES}


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    ids = diagonal_ids([(2, 3), (2, 2)])
    return {
        "image": torch.randn(2, len(ids), 64, generator=generator),
        "text": torch.randn(2, 5, 24, generator=generator),
        "pooled": torch.randn(2, 16, generator=generator),
        "time": torch.tensor([0.9, 0.3]),
        "guidance": torch.tensor([4.0, 1.0]),
        "ids": ids,
    }


def diffusers_forward(base: FluxUno, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return base.transformer(
            hidden_states=inputs["image"],
            encoder_hidden_states=inputs["text"],
            pooled_projections=inputs["pooled"],
            timestep=inputs["time"],
            guidance=inputs["guidance"],
            img_ids=inputs["ids"],
            txt_ids=torch.zeros(inputs["text"].shape[1], 3),
            return_dict=False,
        )[0]


def write(state: dict[str, torch.Tensor], path: Path) -> Path:
    save_file({key: tensor.contiguous().clone() for key, tensor in state.items()}, path)
    return path
