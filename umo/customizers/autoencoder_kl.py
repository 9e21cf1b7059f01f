"""The latents of FLUX.1 and OmniGen2: AutoencoderKL's, shifted and scaled by two numbers of its config."""

from typing import Any

from torch import Tensor


def encode(vae: Any, images: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1] -> (B, C, h, w) float32: the mode of its distribution."""
    mean = vae.encode(images.to(vae.dtype)).latent_dist.mode()
    return ((mean - (vae.config.shift_factor or 0)) * vae.config.scaling_factor).float()


def decode(vae: Any, latents: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, 3, H, W) float32, about in [-1, 1]."""
    scaled = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0)
    return vae.decode(scaled.to(vae.dtype), return_dict=False)[0].float()
