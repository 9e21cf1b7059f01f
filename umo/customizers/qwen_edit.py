"""Qwen-Image-Edit-Plus (2509, 2511): references are read by the text encoder and follow the picture as tokens.

Checked against diffusers' QwenImageEditPlusPipeline, with `picture_places` off: diffusers 0.42 does not tell the text
encoder which tokens are pictures, which transformers 5 needs to count their rows and columns as it was trained to
(huggingface/diffusers#14194).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel
from PIL import Image
from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer, Qwen2VLImageProcessorPil

from umo import flow
from umo.customizers import qwen_lora
from umo.customizers.base import Reference, Settings, Size
from umo.customizers.buckets import buckets_around
from umo.customizers.condition import NEGATIVE, Condition
from umo.customizers.diffusers_customizer import DiffusersCustomizer
from umo.customizers.flux_tokens import PACK, pack, unpack
from umo.customizers.folder import load_model, load_other, read_settings
from umo.customizers.lora_file import Naming
from umo.customizers.references import scaled_in_8_bits, to_tensor, too_thin
from umo.guidance import Guidance

SIDE = 32  # a scaled reference's sides are multiples of it
LONGEST = 200  # times its shorter side; the text encoder's limit
IMAGE = "<|image_pad|>"
_TURNS = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
# With references and without: what the encoder is told to do, and how many tokens of that are dropped again.
EDIT = (
    "Describe the key features of the input image (color, shape, size, texture, objects, background), then explain how "
    "the user's text instruction should alter or modify the image. Generate a new image that meets the user's "
    "requirements while maintaining consistency with the original input where appropriate.",
    64,
)
PLAIN = (
    "Describe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships of the "
    "objects and background:",
    34,
)


class QwenSettings(Settings):
    """Settings, and the family's rule for references, each of which is scaled up or down in its own proportions.

    Attributes:
        reference_area: pixels of a reference that the picture attends to.
        encoder_area: pixels of the same for the text encoder.
        picture_places: the text encoder is told which tokens are pictures, as it was trained; off draws exactly what
            diffusers 0.42 draws.
    """

    reference_area: int = Field(ge=SIDE**2)
    encoder_area: int = Field(ge=SIDE**2)
    picture_places: bool = True


QWEN = QwenSettings(
    max_references=3,
    reference_area=1024**2,
    encoder_area=384**2,
    sizes=((1024, 1024),),
    min_side=256,
    max_side=2048,
    buckets=buckets_around(1024),
    steps=40,
    guidance=Guidance(text=4.0),
    negative=" ",
)


@dataclass
class QwenEdit(DiffusersCustomizer):
    """See `umo.customizers.base.Customizer`. The components are those of QwenImageEditPlusPipeline.

    2511 is 2509 whose references are always at sigma 0, which its transformer's config says (`zero_cond_t`).
    """

    network: ClassVar[Any] = QwenImageTransformer2DModel
    naming: ClassVar[Naming] = qwen_lora.NAMING

    settings: QwenSettings
    text_encoder: Any
    tokenizer: Any
    image_processor: Any

    @classmethod
    def load(cls, folder: Path, index: dict[str, Any], dtype: torch.dtype) -> Self:
        """See `umo.customizers.load`; `index` is the folder's `model_index.json`."""
        return cls(
            name=folder.resolve().name,
            settings=read_settings(folder, QWEN),
            tokenizer=load_other(folder, "tokenizer", Qwen2Tokenizer),
            # Its other class needs torchvision, and scales to other numbers than PIL does.
            image_processor=load_other(folder, "processor", Qwen2VLImageProcessorPil),
            scheduler=load_other(folder, "scheduler", FlowMatchEulerDiscreteScheduler),
            vae=load_model(folder, "vae", AutoencoderKLQwenImage, dtype),
            text_encoder=load_model(folder, "text_encoder", Qwen2_5_VLForConditionalGeneration, dtype),
            transformer=load_model(folder, "transformer", QwenImageTransformer2DModel, dtype),
        )

    def pipeline(self) -> Any:
        """diffusers' own pipeline on the same weights.

        It draws after `processor`, here the pictures' alone, is replaced by transformers' Qwen2VLProcessor, which
        needs torchvision.
        """
        from diffusers import QwenImageEditPlusPipeline  # slow to import, and drawing does not need it

        return QwenImageEditPlusPipeline(
            scheduler=self.scheduler,
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            processor=self.image_processor,
            transformer=self.transformer,
        )

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """Attention of both streams. The last block's text goes no further, so what only it needs is left out."""
        layers = self.transformer.config.num_layers
        idle = {f"transformer_blocks.{layers - 1}.attn.{layer}" for layer in ("add_q_proj", "to_add_out")}
        names = [f"transformer_blocks.{k}.{layer}" for k in range(layers) for layer in qwen_lora.ATTENTION]
        return tuple(name for name in names if name not in idle)

    @property
    def multiple(self) -> int:
        return PACK * self.vae.spatial_compression_ratio

    def latents_shape(self, size: Size) -> tuple[int, int, int]:
        cells = PACK * size[0] // self.multiple, PACK * size[1] // self.multiple
        return self.vae.config.z_dim, *cells

    def encode(self, images: Tensor) -> Tensor:
        # The autoencoder is one of films: (B, C, frames, h, w).
        mean = self.vae.encode(images[:, :, None].to(self.vae.dtype)).latent_dist.mode()[:, :, 0].float()
        shift, scale = self._statistics(mean)
        return (mean - shift) / scale

    def decode(self, latents: Tensor) -> Tensor:
        shift, scale = self._statistics(latents)
        films = (latents * scale + shift)[:, :, None].to(self.vae.dtype)
        # Not `vae.decode`, which clips. One frame needs no cache of those before it.
        return self.vae.decoder(self.vae.post_quant_conv(films))[:, :, 0].float()

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each channel of latents."""
        config = self.vae.config
        mean, std = (like.new_tensor(one)[:, None, None] for one in (config.latents_mean, config.latents_std))
        return mean, std

    def checkpoint_gradients(self) -> None:
        super().checkpoint_gradients()
        for block in self.vae.decoder.up_blocks:  # diffusers has no checkpointing for this autoencoder
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)

    def condition(
        self,
        prompts: Sequence[str],
        references: Sequence[Sequence[Reference]],
        guidance: Guidance | float | None = None,
        negative: str | None = None,
    ) -> Condition:
        self.check_encoders()
        away = self.settings.negative if negative is None else negative
        samples = []
        for prompt, pictures in zip(prompts, self.checked_references(prompts, references), strict=True):
            seen = [scaled(picture, self.settings.encoder_area) for picture in pictures]
            kept = [to_tensor(np.asarray(scaled(picture, self.settings.reference_area))) for picture in pictures]
            text, negative_text = (self.embed(words, seen).to(self.device) for words in (prompt, away))
            samples.append({"text": text, NEGATIVE + "text": negative_text} | self.encode_references(kept))
        return Condition(tuple(samples), (self.settings.guidance.at(guidance),) * len(prompts))

    def embed(self, prompt: str, pictures: Sequence[Image.Image]) -> Tensor:
        """(S, D): a prompt as the text encoder reads it beside the pictures, which it calls Picture 1, 2, ..."""
        task, dropped = EDIT if pictures else PLAIN
        shown, inputs = "", {}
        if pictures:
            inputs = dict(self.image_processor(images=list(pictures), return_tensors="pt"))
            counts = inputs["image_grid_thw"].prod(dim=1) // self.image_processor.merge_size**2
            for k, count in enumerate(counts.tolist(), start=1):
                shown += f"Picture {k}: <|vision_start|>{IMAGE * count}<|vision_end|>"
        ids = self.tokenizer(_TURNS.format(task, shown + prompt), return_tensors="pt").input_ids
        inputs["input_ids"] = ids
        if self.settings.picture_places:
            inputs["mm_token_type_ids"] = (ids == self.text_encoder.config.image_token_id).int()
        there = {name: value.to(self.text_encoder.device) for name, value in inputs.items()}
        return self.text_encoder.model(**there, use_cache=False).last_hidden_state[0, dropped:]

    def velocity(self, latents: Tensor, sigma: Tensor | float, condition: Condition) -> Tensor:
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=latents.device).expand(len(latents))
        guided = [row for row, guidance in enumerate(condition.guidance) if guidance.text > 1]
        away = condition.take(guided).unprompted(range(len(guided)))
        rows = [*range(len(latents)), *guided]
        # A forward has one list of places for all its samples, and without padded text it needs no mask, which the
        # fastest attention kernels do not take.
        both = Condition.join([condition, away])
        predicted = self.by_group(self._forward, latents[rows], sigma[rows], both, "text")
        text = predicted[: len(latents)]
        if guided:
            where = torch.tensor(guided, device=latents.device)
            negative = text.index_copy(0, where, predicted[len(latents) :])
            mixed = negative + condition.scales("text", text) * (text - negative)
            text = mixed * (text.norm(dim=-1, keepdim=True) / mixed.norm(dim=-1, keepdim=True))
        return unpack(text, *latents.shape[2:])

    def _forward(self, latents: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """(B, tokens, 4 C): of samples whose references, and whose texts, have equal shapes."""
        each = [condition.references(row) for row in range(len(condition))]
        grids = [latents, *(torch.stack(same) for same in zip(*each, strict=True))]
        dtype = self.dtype
        predicted = self.transformer(
            hidden_states=torch.cat([pack(grid) for grid in grids], dim=1).to(dtype),
            encoder_hidden_states=condition.stack("text").to(dtype),
            timestep=sigma.to(dtype),
            img_shapes=[[(1, grid.shape[2] // PACK, grid.shape[3] // PACK) for grid in grids]] * len(latents),
            return_dict=False,
        )[0]
        return predicted[:, : latents[0, 0].numel() // PACK**2].to(latents.dtype)

    def sigmas(self, steps: int, size: Size) -> Tensor:
        if steps == 1:  # stretching a single sigma to the scheduler's terminal one divides by zero
            return torch.tensor([1.0, 0.0])
        scheduler: Any = FlowMatchEulerDiscreteScheduler.from_config(self.scheduler.config)
        config = scheduler.config
        tokens = size[0] * size[1] // self.multiple**2
        mu = flow.linear_mu(
            tokens, config.base_shift, config.max_shift, config.base_image_seq_len, config.max_image_seq_len
        )
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=mu)
        return scheduler.sigmas


def scaled(reference: Tensor, area: int) -> Image.Image:
    """A reference (3, H, W) in [-1, 1] at about so many pixels, as diffusers scales it; BadInput for one too thin."""
    height, width = reference.shape[1:]
    across = math.sqrt(area * width / height)
    size = [round(side / SIDE) * SIDE for side in (across, across * height / width)]
    if min(size) == 0 or max(size) > LONGEST * min(size):
        raise too_thin(height, width)
    return scaled_in_8_bits(reference, (size[0], size[1]))
