"""Small random models in their real folder layouts, made without any download."""

from pathlib import Path

import torch

from umo.customizers.tiny import word_tokenizer

INSTRUCTION = "describe the scene"
WORDS = "two people stand beside an old boat at a calm lake in warm evening light while birds fly over the hills"


def write_captioner(folder: Path, words: str = WORDS, seed: int = 0, chat: bool = True) -> Path:
    """A LLaVA of a few thousand weights that speaks the given words; no network is asked for anything."""
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = word_tokenizer([f"{words} {INSTRUCTION}"], length=256)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    template = (
        "{% for message in messages %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
    )
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template if chat else None,
    )
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids("<image>")
    )
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
        for name, weight in model.named_parameters():  # far from zero, so that a picture changes what is said
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=0.6 if "embed" not in name else 1.0)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def write_text_to_image(folder: Path) -> Path:
    """A Stable Diffusion of a few thousand weights that draws noise."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = word_tokenizer(["a diptych , two pictures of the same people"], length=77)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    sizes = {"block_out_channels": (4, 8), "norm_num_groups": 2}
    down, up = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        pipeline = StableDiffusionPipeline(
            vae=AutoencoderKL(down_block_types=down, up_block_types=up, latent_channels=4, **sizes),
            text_encoder=CLIPTextModel(text),
            tokenizer=tokenizer,
            unet=UNet2DConditionModel(
                sample_size=16,
                layers_per_block=1,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                cross_attention_dim=16,
                attention_head_dim=2,
                **sizes,
            ),
            scheduler=DDIMScheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder
