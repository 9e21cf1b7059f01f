"""The configurations of published bases, where they differ from what their classes take by themselves."""

from typing import Any

_FLUX_VAE: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 16,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
_KLEIN: dict[str, Any] = {
    "_class_name": "Flux2KleinPipeline",
    "transformer": ["diffusers", "Flux2Transformer2DModel"],
    "vae": ["diffusers", "AutoencoderKLFlux2"],
    "text_encoder": ["transformers", "Qwen3ForCausalLM"],
}
_QWEN3: dict[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": 151936,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
}
_QWEN_VL: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "vision_config": {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420},
}

# A base's name -> its index, and the config.json of each of its parts.
PUBLISHED: dict[str, dict[str, dict[str, Any]]] = {
    "flux1": {
        "index": {
            "_class_name": "FluxPipeline",
            "transformer": ["diffusers", "FluxTransformer2DModel"],
            "vae": ["diffusers", "AutoencoderKL"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "text_encoder_2": ["transformers", "T5EncoderModel"],
        },
        "transformer": {"guidance_embeds": True},
        "vae": _FLUX_VAE,
        "text_encoder": {
            "model_type": "clip_text_model",
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
        },
        "text_encoder_2": {
            "model_type": "t5",
            "d_model": 4096,
            "d_kv": 64,
            "d_ff": 10240,
            "num_layers": 24,
            "num_heads": 64,
            "feed_forward_proj": "gated-gelu",
        },
    },
    "flux2-klein-4b": {
        "index": _KLEIN,
        "transformer": {
            "num_layers": 5,
            "num_single_layers": 20,
            "num_attention_heads": 24,
            "joint_attention_dim": 7680,
            "guidance_embeds": False,
        },
        "vae": {},
        "text_encoder": _QWEN3
        | {"hidden_size": 2560, "intermediate_size": 9728, "num_attention_heads": 32, "tie_word_embeddings": True},
    },
    "flux2-klein-9b": {
        "index": _KLEIN,
        "transformer": {
            "num_layers": 8,
            "num_single_layers": 24,
            "num_attention_heads": 32,
            "joint_attention_dim": 12288,
            "guidance_embeds": False,
        },
        "vae": {},
        "text_encoder": _QWEN3 | {"hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32},
    },
    "flux2-dev": {
        "index": _KLEIN
        | {
            "_class_name": "Flux2Pipeline",
            "text_encoder": ["transformers", "Mistral3ForConditionalGeneration"],
        },
        "transformer": {},
        "vae": {},
        "text_encoder": {
            "model_type": "mistral3",
            "tie_word_embeddings": False,
            "text_config": {
                "model_type": "mistral",
                "hidden_size": 5120,
                "intermediate_size": 32768,
                "num_hidden_layers": 40,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "vocab_size": 131072,
            },
        },
    },
    "qwen-image-edit": {
        "index": {
            "_class_name": "QwenImageEditPlusPipeline",
            "transformer": ["diffusers", "QwenImageTransformer2DModel"],
            "vae": ["diffusers", "AutoencoderKLQwenImage"],
            "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
        },
        "transformer": {"zero_cond_t": True},
        "vae": {},
        "text_encoder": _QWEN_VL
        | {
            "vision_config": _QWEN_VL["vision_config"] | {"out_hidden_size": 3584},
            "text_config": {
                "hidden_size": 3584,
                "intermediate_size": 18944,
                "num_hidden_layers": 28,
                "num_attention_heads": 28,
                "num_key_value_heads": 4,
                "vocab_size": 152064,
            },
        },
    },
    "omnigen2": {
        "index": {
            "_class_name": "OmniGen2Pipeline",
            "transformer": ["diffusers", "OmniGen2Transformer2DModel"],
            "vae": ["diffusers", "AutoencoderKL"],
            "mllm": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
        },
        "transformer": {},
        "vae": _FLUX_VAE,
        "mllm": _QWEN_VL
        | {
            "vision_config": _QWEN_VL["vision_config"] | {"out_hidden_size": 2048},
            "text_config": {
                "hidden_size": 2048,
                "intermediate_size": 11008,
                "num_hidden_layers": 36,
                "num_attention_heads": 16,
                "num_key_value_heads": 2,
                "vocab_size": 151936,
            },
            "tie_word_embeddings": True,
        },
    },
}
