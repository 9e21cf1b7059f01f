"""A small Qwen-Image-Edit-Plus with random weights, in its real layout."""

import math
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessorPil,
)

from umo.customizers.qwen_edit import QwenEdit, QwenSettings
from umo.guidance import Guidance

MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
SHIFT = {"base_shift": 0.5, "max_shift": 0.9, "base_image_seq_len": 256, "max_image_seq_len": 8192}
RELEASED = {**SHIFT, "shift_terminal": 0.02}
LIGHTNING = {**SHIFT, "base_shift": math.log(3), "max_shift": math.log(3), "shift_terminal": None}


def tokenizer() -> Qwen2Tokenizer:
    letters = {letter: k for k, letter in enumerate(sorted(ByteLevel.alphabet()))}
    made = Qwen2Tokenizer(vocab=letters, merges=[])
    made.add_special_tokens({"additional_special_tokens": list(MARKS[1:])})
    return made


def text_encoder(words: Any) -> Qwen2_5_VLForConditionalGeneration:
    ids = {name: words.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end", "image_pad")}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(words),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "bos_token_id": None,
            "eos_token_id": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_heads": 2,
            "out_hidden_size": 32,
            "window_size": 112,
            "fullatt_block_indexes": [1],
        },
        image_token_id=ids["image_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def small_qwen(zero_cond_t: bool = True) -> QwenEdit:
    """2511, or 2509 without `zero_cond_t`; biases and norms are random too."""
    torch.manual_seed(0)
    words = tokenizer()
    encoder = text_encoder(words)
    autoencoder = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 2, 2],
        num_res_blocks=1,
        latents_mean=[-0.7, 0.1, 0.4, -0.2],
        latents_std=[2.8, 1.4, 1.9, 1.1],
    )
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 6, 6),
        zero_cond_t=zero_cond_t,
    )
    with torch.no_grad():
        for model in (encoder, autoencoder, transformer):
            for weight in model.parameters():
                if weight.ndim == 1:
                    weight += torch.randn(weight.shape) / 10
        for weight in encoder.parameters():
            if weight.ndim == 2:
                weight *= 8  # transformers begins with attention to all places alike
    return QwenEdit(
        name="small-qwen",
        settings=QwenSettings(
            max_references=4,
            reference_area=64**2,
            encoder_area=96**2,
            sizes=((32, 64),),
            max_side=256,
            steps=4,
            guidance=Guidance(text=4.0),
            negative=" ",
        ),
        transformer=transformer.eval(),
        vae=autoencoder.eval(),
        text_encoder=encoder.eval(),
        tokenizer=words,
        image_processor=Qwen2VLImageProcessorPil(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, **RELEASED),
    )
