"""FLUX.2's classes, each with few and narrow layers and random weights: klein base, klein distilled and dev."""

import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
    PreTrainedModel,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from umo.customizers.flux2 import KINDS, Flux2

QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
MISTRAL_TEMPLATE = (
    "<s>{% for message in messages %}[{{ message.role }}]"
    "{% for part in message.content %}{{ part.text }}{% endfor %}[/{{ message.role }}]{% endfor %}"
)
WIDTH = 32


def _tokenizer(template: str, side: str, length: int) -> Qwen2Tokenizer:
    """A token a byte, and fewer places than FLUX.2's 512."""
    alphabet = {letter: k for k, letter in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(vocab=alphabet, merges=[], padding_side=side, model_max_length=length)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<s>"]})
    tokenizer.chat_template = template
    return tokenizer


def _encoder(dev: bool, words: int) -> PreTrainedModel:
    narrow = {
        "vocab_size": words,
        "hidden_size": WIDTH,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "initializer_range": 0.2,
    }
    if not dev:
        return Qwen3ForCausalLM(Qwen3Config(num_hidden_layers=28, **narrow))
    vision = PixtralVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, image_size=32, patch_size=16
    )
    text = MistralConfig(num_hidden_layers=31, **narrow)
    return Mistral3ForConditionalGeneration(Mistral3Config(text_config=text, vision_config=vision))


def small_flux2(*, dev: bool = False, distilled: bool = False) -> Flux2:
    torch.manual_seed(0)
    tokenizer = _tokenizer(MISTRAL_TEMPLATE, "left", 450) if dev else _tokenizer(QWEN_TEMPLATE, "right", 224)
    encoder = _encoder(dev, len(tokenizer))
    autoencoder = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 16, 16), layers_per_block=1, latent_channels=8, norm_num_groups=4
    )
    transformer = Flux2Transformer2DModel(
        in_channels=32,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * WIDTH,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=dev,
    )
    for module in (*transformer.modules(), *autoencoder.modules()):
        if isinstance(module, nn.RMSNorm | nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    nn.init.normal_(autoencoder.bn.running_mean)
    nn.init.uniform_(autoencoder.bn.running_var, 0.3, 3)
    kind = KINDS[pipeline_class := "Flux2Pipeline" if dev else "Flux2KleinPipeline"]
    own = {"sizes": ((32, 64),), "min_side": 16, "max_side": 256, "steps": 4}
    return Flux2(
        name="small-flux2",
        settings=(kind.distilled if distilled else kind.settings).model_copy(update=own),
        transformer=transformer,
        vae=autoencoder.eval(),
        text_encoder=encoder.eval(),
        tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        pipeline_class=pipeline_class,
        distilled=distilled,
    )
