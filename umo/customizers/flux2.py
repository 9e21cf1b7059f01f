"""FLUX.2: klein (base and distilled) and dev, which take references as they are, each at a time of its own.

Checked against diffusers' Flux2KleinPipeline and Flux2Pipeline.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel
from pydantic import Field
from torch import Tensor
from transformers import AutoTokenizer, Mistral3ForConditionalGeneration, Qwen3ForCausalLM

from umo.customizers import flux2_lora
from umo.customizers.base import Reference, Settings, Size
from umo.customizers.buckets import buckets_around
from umo.customizers.condition import NEGATIVE, Condition
from umo.customizers.diffusers_customizer import DiffusersCustomizer
from umo.customizers.flux2_tokens import fit, picture_ids, text_ids
from umo.customizers.flux_tokens import PACK
from umo.customizers.folder import load_model, load_other, read_settings
from umo.customizers.lora_file import Naming
from umo.errors import BadInput
from umo.guidance import CONDITIONAL, Guidance

TEXT, MAX_TEXT_TOKENS = "text", 512


class Flux2Settings(Settings):
    """Settings, and FLUX.2's rule for references.

    Attributes:
        reference_area: pixels of a reference; one that has more is scaled to as many.
    """

    reference_area: int = Field(default=1024**2, ge=64**2)


KLEIN_BASE = Flux2Settings(
    max_references=4,
    sizes=((1024, 1024),),
    min_side=256,
    max_side=2048,
    buckets=buckets_around(1024),
    steps=50,
    guidance=Guidance(text=4.0),
)
KLEIN_DISTILLED = KLEIN_BASE.model_copy(update={"steps": 4, "guidance": CONDITIONAL})
DEV = KLEIN_BASE.model_copy(update={"max_references": 6})


class Kind(NamedTuple):
    """What the pipelines of the family differ in, beside the sizes of their parts."""

    encoder: Any
    settings: Flux2Settings
    distilled: Flux2Settings


KINDS = {
    "Flux2KleinPipeline": Kind(Qwen3ForCausalLM, KLEIN_BASE, KLEIN_DISTILLED),
    "Flux2Pipeline": Kind(Mistral3ForConditionalGeneration, DEV, DEV),
}


@dataclass
class Flux2(DiffusersCustomizer):
    """See `umo.customizers.base.Customizer`. The components are those of diffusers' pipelines, under their names.

    Attributes:
        pipeline_class: a key of KINDS.
        distilled: whether it is a klein that is drawn without guidance, in few steps.
    """

    network: ClassVar[Any] = Flux2Transformer2DModel
    naming: ClassVar[Naming] = flux2_lora.NAMING

    settings: Flux2Settings
    text_encoder: Any
    tokenizer: Any
    pipeline_class: str
    distilled: bool = False
    _negatives: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, folder: Path, index: dict[str, Any], dtype: torch.dtype) -> Self:
        """See `umo.customizers.load`; `index` is the folder's `model_index.json`."""
        pipeline_class = index["_class_name"]
        kind, distilled = KINDS[pipeline_class], bool(index.get("is_distilled"))
        encoder, expected = (index.get("text_encoder") or [None, None])[1], kind.encoder.__name__
        if encoder != expected:
            raise BadInput(f"{folder}: text encoder {encoder} is not {pipeline_class}'s, which is {expected}")
        return cls(
            name=folder.resolve().name,
            settings=read_settings(folder, kind.distilled if distilled else kind.settings),
            pipeline_class=pipeline_class,
            distilled=distilled,
            tokenizer=load_other(folder, "tokenizer", AutoTokenizer),
            scheduler=load_other(folder, "scheduler", FlowMatchEulerDiscreteScheduler),
            vae=load_model(folder, "vae", AutoencoderKLFlux2, dtype),
            text_encoder=load_model(folder, "text_encoder", kind.encoder, dtype),
            transformer=load_model(folder, "transformer", Flux2Transformer2DModel, dtype),
        )

    def pipeline(self) -> Any:
        """diffusers' own pipeline on the same weights; dev's has the tokenizer alone, not its image processor."""
        import diffusers  # its pipelines are slow to import

        options = {"is_distilled": self.distilled} if self.pipeline_class == "Flux2KleinPipeline" else {}
        return getattr(diffusers, self.pipeline_class)(
            scheduler=self.scheduler,
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            transformer=self.transformer,
            **options,
        )

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """Attention of both streams, and the single blocks' two layers."""
        config = self.transformer.config
        return tuple(flux2_lora.ATTENTION_BLOCKS.modules(config.num_layers, config.num_single_layers))

    @property
    def classifier_free(self) -> bool:
        """Whether guidance takes a second branch: klein base. dev embeds the scale, a distilled klein has none."""
        return not (self.distilled or self.transformer.config.guidance_embeds)

    @property
    def multiple(self) -> int:
        """Pixels a token covers, in each direction."""
        return PACK * 2 ** (len(self.vae.config.block_out_channels) - 1)

    def latents_shape(self, size: Size) -> tuple[int, int, int]:
        return self.transformer.config.in_channels, size[0] // self.multiple, size[1] // self.multiple

    def encode(self, images: Tensor) -> Tensor:
        mean = self.vae.encode(images.to(self.vae.dtype)).latent_dist.mode()
        shift, scale = self._statistics()
        return (F.pixel_unshuffle(mean.float(), PACK) - shift) / scale

    def decode(self, latents: Tensor) -> Tensor:
        shift, scale = self._statistics()
        grid = F.pixel_shuffle(latents * scale + shift, PACK)
        return self.vae.decode(grid.to(self.vae.dtype), return_dict=False)[0].float()

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the autoencoder's latents, (1, C, 1, 1) each."""
        norm = self.vae.bn
        shape = 1, -1, 1, 1
        return norm.running_mean.float().view(shape), (norm.running_var.float() + norm.eps).sqrt().view(shape)

    def condition(
        self,
        prompts: Sequence[str],
        references: Sequence[Sequence[Reference]],
        guidance: Guidance | float | None = None,
        negative: str | None = None,
    ) -> Condition:
        pictures = [
            [fit(one, self.settings.reference_area, self.multiple) for one in sample]
            for sample in self.checked_references(prompts, references)
        ]
        texts = {TEXT: self.embed_prompts(prompts)}
        if negative is None and self.classifier_free:
            negative = self.settings.negative
        if negative is not None:
            if negative not in self._negatives:
                self._negatives[negative] = self.embed_prompts([negative])
            texts[NEGATIVE + TEXT] = self._negatives[negative].to(self.device).expand_as(texts[TEXT])
        samples = [
            {name: value[row] for name, value in texts.items()} | self.encode_references(sample)
            for row, sample in enumerate(pictures)
        ]
        return Condition(tuple(samples), (self.settings.guidance.at(guidance),) * len(prompts))

    def embed_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Three layers of the text encoder side by side, (B, S, 3 D), padded and cut as the pipeline does."""
        self.check_encoders()
        length = min(MAX_TEXT_TOKENS, self.tokenizer.model_max_length)
        embedded, _ = self.pipeline().encode_prompt(
            prompt=list(prompts), device=self.text_encoder.device, max_sequence_length=length
        )
        return embedded.to(self.device)

    def velocity(self, latents: Tensor, sigma: Tensor | float, condition: Condition) -> Tensor:
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=latents.device).expand(len(latents))
        # Position ids are one list for a whole batch of Flux2Transformer2DModel, which has no mask for padding either.
        return self.by_group(self._guided, latents, sigma, condition)

    def _guided(self, latents: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Of samples whose references have equal sizes; both branches of classifier-free guidance in one forward."""
        if not self.classifier_free or all(one.text <= 1 for one in condition.guidance):
            return self._velocity(latents, sigma, condition)
        both = Condition.join([condition, condition.unprompted(range(len(condition)))])
        prompted, without = self._velocity(latents.repeat(2, 1, 1, 1), sigma.repeat(2), both).chunk(2)
        scale = condition.scales("text", latents)
        return torch.where(scale > 1, without + scale * (prompted - without), prompted)

    def _velocity(self, latents: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """One branch of samples whose references have equal sizes."""
        each = [condition.references(row) for row in range(len(condition))]
        grids = [latents, *(torch.stack(same) for same in zip(*each, strict=True))]
        dtype, device = self.dtype, latents.device
        text = condition.stack(TEXT).to(dtype)
        predicted = self.transformer(
            hidden_states=torch.cat([grid.flatten(2).transpose(1, 2) for grid in grids], dim=1).to(dtype),
            encoder_hidden_states=text,
            timestep=sigma,
            guidance=condition.scales("text", sigma) if self.transformer.config.guidance_embeds else None,
            img_ids=picture_ids([(grid.shape[2], grid.shape[3]) for grid in grids]).to(device),
            txt_ids=text_ids(text.shape[1]).to(device),
            return_dict=False,
        )[0]
        height, width = latents.shape[2:]
        return predicted[:, : height * width].transpose(1, 2).unflatten(2, (height, width)).to(latents.dtype)

    def sigmas(self, steps: int, size: Size) -> Tensor:
        from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

        scheduler: Any = FlowMatchEulerDiscreteScheduler.from_config(self.scheduler.config)
        mu = compute_empirical_mu(size[0] * size[1] // self.multiple**2, steps)
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=mu)
        return scheduler.sigmas
