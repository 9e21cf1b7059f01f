"""A new embedded base with random weights: FLUX.1's classes, few and narrow layers. Training is models/tiny-uno's."""

from collections.abc import Sequence

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from umo.customizers.flux_uno import FluxSettings, FluxUno
from umo.customizers.tiny import PatchAutoencoder, word_tokenizer

TINY = FluxSettings(
    max_references=3,
    reference_side=64,
    references_side=64,
    sizes=((64, 128), (64, 128), (64, 192)),
    only_sizes=True,
    steps=12,
)


def build_tiny(
    prompts: Sequence[str],
    autoencoder: PatchAutoencoder,
    seed: int = 0,
    settings: FluxSettings = TINY,
    double_blocks: int = 1,
    single_blocks: int = 5,
    heads: int = 4,
    head_width: int = 32,
    text_width: int = 64,
    shift: float = 2.0,
) -> FluxUno:
    """A base that draws noise until it is trained.

    Args:
        prompts: all words it will know, and its longest prompt.
        autoencoder: fitted.
        double_blocks, single_blocks, heads, head_width: of the transformer; the defaults make 2 million parameters.
        text_width: of both text encoders.
        shift: of the schedule, towards the noise.
    """
    count = word_tokenizer(prompts, length=77)
    longest = max(len(count(prompt).input_ids) for prompt in prompts)
    tokenizer = word_tokenizer(prompts, length=longest)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        transformer = FluxTransformer2DModel(
            patch_size=1,
            in_channels=len(autoencoder.scale),
            num_layers=double_blocks,
            num_single_layers=single_blocks,
            attention_head_dim=head_width,
            num_attention_heads=heads,
            joint_attention_dim=text_width,
            pooled_projection_dim=text_width,
            guidance_embeds=False,
            # FLUX.1's shares of a head: an eighth for the index axis, the rest for rows and columns.
            axes_dims_rope=(head_width // 8, head_width * 7 // 16, head_width * 7 // 16),
        )
        text_encoder, text_encoder_2 = _text_encoders(tokenizer, text_width, longest)
    base = FluxUno(
        name="tiny-uno",
        settings=settings,
        transformer=transformer,
        vae=autoencoder,
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=word_tokenizer(prompts, length=longest),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
    )
    for module in (base.transformer, base.vae, base.text_encoder, base.text_encoder_2):
        module.requires_grad_(False).eval()
    return base


def _text_encoders(tokenizer: PreTrainedTokenizerFast, width: int, length: int) -> tuple[CLIPTextModel, T5EncoderModel]:
    clip = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    t5 = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=width // 4,
        d_ff=2 * width,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return CLIPTextModel(clip), T5EncoderModel(t5)
