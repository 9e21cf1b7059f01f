"""FLUX.1 with UNO's references: their tokens follow the picture's, on a diagonal of positions (PAPER.md, UnoPE "d").

The same class draws with the embedded tiny base and with a diffusers FLUX.1 folder; they differ in their autoencoder
and their settings only. Checked against diffusers' FluxPipeline, which is this without references.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from pydantic import Field
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel

from umo import flow
from umo.customizers import autoencoder_kl, flux_lora
from umo.customizers.base import Reference, Settings, Size
from umo.customizers.condition import NEGATIVE, Condition
from umo.customizers.diffusers_customizer import DiffusersCustomizer
from umo.customizers.flux_tokens import PACK, diagonal_ids, pack, unpack
from umo.customizers.folder import load_model, load_other, read_settings
from umo.customizers.lora_file import Naming
from umo.customizers.references import fit
from umo.customizers.tiny import PatchAutoencoder
from umo.errors import BadInput
from umo.guidance import Guidance

MAX_TEXT_TOKENS = 512
AUTOENCODERS = {"AutoencoderKL": AutoencoderKL, "PatchAutoencoder": PatchAutoencoder}


class FluxSettings(Settings):
    """Settings, and UNO's rule for references.

    Attributes:
        reference_side: longest side in pixels that a single reference is scaled to.
        references_side: the same where there are several.
        as_uno: drawn and tuned as UNO is: its schedule (`FluxUno.sigmas`), an autoencoder in float32 whatever the
            precision, and a LoRA whose query, key and value share a down, so that it goes back into UNO's naming at its
            own rank. Without, as FluxPipeline and diffusers' LoRAs.
    """

    reference_side: int = Field(ge=16)
    references_side: int = Field(ge=16)
    as_uno: bool = False


_UPRIGHT = ((768, 256), (768, 320), (704, 320), (640, 384), (576, 448))  # UNO's at 512, height x width

FLUX = FluxSettings(
    max_references=4,
    reference_side=512,
    references_side=320,
    sizes=((512, 512),),
    min_side=256,
    max_side=2048,
    buckets=(*_UPRIGHT, (512, 512), *(size[::-1] for size in reversed(_UPRIGHT))),
    steps=25,
    guidance=Guidance(text=4.0),
    as_uno=True,
)


@dataclass
class FluxUno(DiffusersCustomizer):
    """See `umo.customizers.base.Customizer`. The components are those of FluxPipeline, under its names."""

    network: ClassVar[Any] = FluxTransformer2DModel
    naming: ClassVar[Naming] = flux_lora.NAMING
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")

    settings: FluxSettings
    text_encoder: Any  # CLIP; its pooled vector is used
    text_encoder_2: Any  # T5; its sequence is used
    tokenizer: Any
    tokenizer_2: Any

    @classmethod
    def load(cls, folder: Path, index: dict[str, Any], dtype: torch.dtype) -> Self:
        """See `umo.customizers.load`; `index` is the folder's `model_index.json`."""
        vae_class = (index.get("vae") or [None, None])[1]
        if vae_class not in AUTOENCODERS:
            raise BadInput(f"{folder}: autoencoder {vae_class} is not FLUX.1's; known: {', '.join(AUTOENCODERS)}")
        # FLUX.1's folder is taken as UNO's; the embedded base, which has another autoencoder, never was.
        defaults = FLUX.model_copy(update={"as_uno": vae_class == "AutoencoderKL"})
        settings = read_settings(folder, defaults)
        vae_dtype = torch.float32 if settings.as_uno else dtype
        return cls(
            name=folder.resolve().name,
            settings=settings,
            tokenizer=load_other(folder, "tokenizer", AutoTokenizer),
            tokenizer_2=load_other(folder, "tokenizer_2", AutoTokenizer),
            scheduler=load_other(folder, "scheduler", FlowMatchEulerDiscreteScheduler),
            vae=load_model(folder, "vae", AUTOENCODERS[vae_class], vae_dtype),
            text_encoder=load_model(folder, "text_encoder", CLIPTextModel, dtype),
            text_encoder_2=load_model(folder, "text_encoder_2", T5EncoderModel, dtype),
            transformer=load_model(folder, "transformer", FluxTransformer2DModel, dtype),
        )

    def pipeline(self) -> Any:
        """diffusers' own FluxPipeline on the same weights; draws without references."""
        from diffusers import FluxPipeline  # slow to import, and drawing does not need it

        return FluxPipeline(
            scheduler=self.scheduler,
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            text_encoder_2=self.text_encoder_2,
            tokenizer_2=self.tokenizer_2,
            transformer=self.transformer,
        )

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """The layers that UNO's LoRA is on: attention of both streams, and the single blocks' output."""
        config = self.transformer.config
        return tuple(flux_lora.UNO.modules(config.num_layers, config.num_single_layers))

    def add_lora(self, rank: int) -> None:
        super().add_lora(rank)
        if self.settings.as_uno:
            flux_lora.tie(self.transformer)

    @property
    def multiple(self) -> int:
        """Pixels a token covers, in each direction."""
        return PACK * 2 ** (len(self.vae.config.block_out_channels) - 1)

    def latents_shape(self, size: Size) -> tuple[int, int, int]:
        cells = PACK * size[0] // self.multiple, PACK * size[1] // self.multiple
        return self.transformer.config.in_channels // PACK**2, *cells

    def encode(self, images: Tensor) -> Tensor:
        with self._autoencoder_precision():
            return autoencoder_kl.encode(self.vae, images)

    def decode(self, latents: Tensor) -> Tensor:
        with self._autoencoder_precision():
            return autoencoder_kl.decode(self.vae, latents)

    def _autoencoder_precision(self) -> AbstractContextManager[Any]:
        """Its weights' own, where training's autocast would lower it."""
        return torch.autocast(self.device.type, enabled=False) if self.settings.as_uno else nullcontext()

    def condition(
        self,
        prompts: Sequence[str],
        references: Sequence[Sequence[Reference]],
        guidance: Guidance | float | None = None,
        negative: str | None = None,
    ) -> Condition:
        pictures = self.checked_references(prompts, references)
        texts = dict(zip(("text", "pooled"), self.embed_prompts(prompts), strict=True))
        if negative is not None:
            for name, value in zip(("text", "pooled"), self.embed_prompts([negative]), strict=True):
                texts[NEGATIVE + name] = value.expand(len(prompts), *value.shape[1:])
        samples = [
            {name: value[row] for name, value in texts.items()} | self._encode_references(sample)
            for row, sample in enumerate(pictures)
        ]
        return Condition(tuple(samples), (self.settings.guidance.at(guidance),) * len(prompts))

    def embed_prompts(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """T5's sequence (B, S, D) and CLIP's pooled vector (B, P), padded and cut as FluxPipeline does."""
        self.check_encoders()
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        length = min(MAX_TEXT_TOKENS, self.tokenizer_2.model_max_length)
        ids_2 = self.tokenizer_2(list(prompts), max_length=length, **options).input_ids
        ids = self.tokenizer(list(prompts), max_length=self.tokenizer.model_max_length, **options).input_ids
        text = self.text_encoder_2(ids_2.to(self.device)).last_hidden_state
        return text, self.text_encoder(ids.to(self.device)).pooler_output

    def _encode_references(self, references: Sequence[Tensor]) -> dict[str, Tensor]:
        settings = self.settings
        side = settings.reference_side if len(references) == 1 else settings.references_side
        return self.encode_references([fit(reference, side, self.multiple) for reference in references])

    def velocity(self, latents: Tensor, sigma: Tensor | float, condition: Condition) -> Tensor:
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=latents.device).expand(len(latents))
        # Position ids are one list for a whole batch of FluxTransformer2DModel, so samples go group by group; a mask
        # over padded references could not give each sample its own ids.
        return self.by_group(self._velocity, latents, sigma, condition)

    def _velocity(self, latents: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Of samples whose references have equal sizes."""
        each = [condition.references(row) for row in range(len(condition))]
        references = [torch.stack(same) for same in zip(*each, strict=True)]
        tokens = torch.cat([pack(grid) for grid in (latents, *references)], dim=1)
        ids = diagonal_ids([(grid.shape[2] // PACK, grid.shape[3] // PACK) for grid in (latents, *references)])
        dtype, device = self.dtype, latents.device
        text = condition.stack("text").to(dtype)
        predicted = self.transformer(
            hidden_states=tokens.to(dtype),
            encoder_hidden_states=text,
            pooled_projections=condition.stack("pooled").to(dtype),
            timestep=sigma.to(dtype),
            guidance=condition.scales("text", sigma) if self.transformer.config.guidance_embeds else None,
            img_ids=ids.to(device),
            txt_ids=torch.zeros(text.shape[1], 3, device=device),
            return_dict=False,
        )[0]
        height, width = latents.shape[2:]
        return unpack(predicted[:, : height * width // PACK**2], height, width).to(latents.dtype)

    def sigmas(self, steps: int, size: Size) -> Tensor:
        scheduler: Any = FlowMatchEulerDiscreteScheduler.from_config(self.scheduler.config)
        config = scheduler.config
        # UNO (bytedance/UNO @d305981) divides the latents' area by 16x16, as if it were the picture's.
        tokens = size[0] * size[1] // (256 * (self.multiple // PACK) ** 2 if self.settings.as_uno else self.multiple**2)
        mu = flow.linear_mu(
            tokens, config.base_shift, config.max_shift, config.base_image_seq_len, config.max_image_seq_len
        )
        scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist(), mu=mu)
        return scheduler.sigmas
