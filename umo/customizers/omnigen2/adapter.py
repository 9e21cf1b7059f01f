"""OmniGen2 (arXiv 2506.18871), the second base of UMO's paper: references natively, guided by two further branches.

Its transformer predicts `x0 - noise` at a time that runs from the noise to the picture; both are turned here.
Checked against pictures that the released code drew.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
from diffusers import AutoencoderKL
from pydantic import Field
from torch import Tensor
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from umo import flow
from umo.customizers import autoencoder_kl
from umo.customizers.base import Reference, Settings, Size
from umo.customizers.buckets import buckets_around
from umo.customizers.condition import NEGATIVE, Condition
from umo.customizers.diffusers_customizer import DiffusersCustomizer
from umo.customizers.folder import load_model, load_other, read_settings
from umo.customizers.lora_file import Naming
from umo.customizers.omnigen2 import lora as names
from umo.customizers.omnigen2.folder import FlowMatchEulerDiscreteScheduler, OmniGen2Pipeline
from umo.customizers.omnigen2.transformer import MAX_REFERENCES, OmniGen2Transformer2DModel
from umo.customizers.references import shrunk
from umo.guidance import Guidance

SYSTEM = "You are a helpful assistant that generates high-quality images based on user instructions."
NEGATIVE_PROMPT = (  # of OmniGen2's and UMO's own scripts
    "(((deformed))), blurry, over saturation, bad anatomy, disfigured, poorly drawn face, mutation, mutated, "
    "(extra_limb), (ugly), (poorly drawn hands), fused fingers, messy drawing, broken legs censor, censored, censor_bar"
)
MAX_TEXT_TOKENS = 1024  # UMO's
ROUNDING = 1e-4  # of a step's share of the rollout, found from its float32 sigma


class OmniGen2Settings(Settings):
    """Settings, and OmniGen2's rule for references: larger ones are scaled down, none is enlarged.

    Attributes:
        reference_pixels: the largest area.
        reference_side: the longest side.
    """

    max_references: int = Field(ge=1, le=MAX_REFERENCES)
    reference_pixels: int = Field(ge=16**2)
    reference_side: int = Field(ge=16)


OMNIGEN2 = OmniGen2Settings(
    max_references=MAX_REFERENCES,
    reference_pixels=1024**2,
    reference_side=1024,
    sizes=((1024, 1024),),
    min_side=256,
    max_side=2048,
    buckets=buckets_around(1024),
    steps=50,
    guidance=Guidance(text=5.0, image=2.0),
    negative=NEGATIVE_PROMPT,
)


class Branch(NamedTuple):
    """A forward that a guided prediction is made of.

    Attributes:
        row: its sample.
        weight: of its prediction in the sum.
        prompted: with the prompt; else with the negative one.
        alone: without the references.
    """

    row: int
    weight: float = 1.0
    prompted: bool = True
    alone: bool = False


def branches(row: int, guidance: Guidance, has_references: bool, progress: float = 0.0) -> list[Branch]:
    """The forwards of a sample at a share of the steps, by the released pipeline's rule; their weights add up to 1.

    With c of prompt and references, r of the negative prompt and references, u of the negative prompt alone, it is
    u + image (r - u) + text (c - r), and where `image` does nothing u + text (c - u).
    """
    if guidance.text <= 1 or not guidance.start - ROUNDING <= progress <= guidance.end + ROUNDING:
        return [Branch(row)]
    image = guidance.image if has_references and guidance.image > 1 else guidance.text
    parts = [
        Branch(row, guidance.text),
        Branch(row, image - guidance.text, prompted=False),
        Branch(row, 1 - image, prompted=False, alone=True),
    ]
    return [part for part in parts if part.weight]


@dataclass
class OmniGen2(DiffusersCustomizer):
    """See `umo.customizers.base.Customizer`. Of the folder's `processor`, which needs torchvision, the tokenizer."""

    network: ClassVar[Any] = OmniGen2Transformer2DModel
    naming: ClassVar[Naming] = names.NAMING
    encoders: ClassVar[tuple[str, ...]] = ("mllm",)
    mixes_references: ClassVar[bool] = True

    settings: OmniGen2Settings
    mllm: Any
    tokenizer: Any

    @classmethod
    def load(cls, folder: Path, index: dict[str, Any], dtype: torch.dtype) -> Self:
        """See `umo.customizers.load`. Modules that `index` names are not looked at: no package has them."""
        return cls(
            name=folder.resolve().name,
            settings=read_settings(folder, OMNIGEN2),
            tokenizer=load_other(folder, "processor", AutoTokenizer),
            scheduler=load_other(folder, "scheduler", FlowMatchEulerDiscreteScheduler),
            vae=load_model(folder, "vae", AutoencoderKL, dtype),
            mllm=load_model(folder, "mllm", Qwen2_5_VLForConditionalGeneration, dtype),
            transformer=load_model(folder, "transformer", OmniGen2Transformer2DModel, dtype),
        )

    def pipeline(self) -> Any:
        """What writes the folder: OmniGen2's own pipeline is in no package."""
        return OmniGen2Pipeline(self.transformer, self.vae, self.scheduler, self.mllm, processor=self.tokenizer)

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """The layers that UMO's LoRA is on: attention of all blocks, refiners included."""
        config = self.transformer.config
        return tuple(names.modules(config.num_refiner_layers, config.num_layers))

    @property
    def multiple(self) -> int:
        """Pixels a token covers, in each direction."""
        return self.transformer.config.patch_size * self._cell

    @property
    def _cell(self) -> int:
        """Pixels a latent covers, in each direction."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def latents_shape(self, size: Size) -> tuple[int, int, int]:
        return self.transformer.config.in_channels, size[0] // self._cell, size[1] // self._cell

    def encode(self, images: Tensor) -> Tensor:
        return autoencoder_kl.encode(self.vae, images)

    def decode(self, latents: Tensor) -> Tensor:
        return autoencoder_kl.decode(self.vae, latents)

    def condition(
        self,
        prompts: Sequence[str],
        references: Sequence[Sequence[Reference]],
        guidance: Guidance | float | None = None,
        negative: str | None = None,
    ) -> Condition:
        pictures = self.checked_references(prompts, references)
        *texts, unlike = self.embed_prompts([*prompts, self.settings.negative if negative is None else negative])
        samples = [
            {"text": text, NEGATIVE + "text": unlike} | self._encode_references(sample)
            for text, sample in zip(texts, pictures, strict=True)
        ]
        return Condition(tuple(samples), (self.settings.guidance.at(guidance),) * len(prompts))

    def embed_prompts(self, prompts: Sequence[str]) -> list[Tensor]:
        """The text encoder's last hidden states (L, D) of each, without padding; at most 1024 tokens."""
        self.check_encoders()
        asked = [[{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}] for prompt in prompts]
        tokens = self.tokenizer(
            self.tokenizer.apply_chat_template(asked, tokenize=False),
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=MAX_TEXT_TOKENS,
            return_tensors="pt",
        ).to(self.device)
        # Without the head, which gives a number for each word of the vocabulary.
        hidden = self.mllm.model(**tokens, use_cache=False).last_hidden_state
        lengths = tokens.attention_mask.sum(dim=1).tolist()
        return [row[:length].clone() for row, length in zip(hidden, lengths, strict=True)]

    def _encode_references(self, references: Sequence[Tensor]) -> dict[str, Tensor]:
        settings = self.settings
        fitted = [shrunk(one, settings.reference_pixels, settings.reference_side, self.multiple) for one in references]
        return self.encode_references(fitted)

    def velocity(self, latents: Tensor, sigma: Tensor | float, condition: Condition) -> Tensor:
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=latents.device).expand(len(latents))
        progress = [0.0] * len(latents)
        if any((one.start, one.end) != (0, 1) for one in condition.guidance):
            progress = (1 - flow.shift(sigma, 1 / self.scheduler.shift(*latents.shape[2:]))).tolist()
        parts = [
            part
            for row, (guidance, at) in enumerate(zip(condition.guidance, progress, strict=True))
            for part in branches(row, guidance, bool(condition.references(row)), at)
        ]
        velocity: list[Any] = [0.0] * len(latents)
        for alone in (False, True):  # apart, for those without references are much shorter than the others
            group = [part for part in parts if part.alone is alone]
            for part, predicted in zip(group, self._predict(latents, sigma, condition, group), strict=True):
                velocity[part.row] = velocity[part.row] - part.weight * predicted.to(latents.dtype)
        return torch.stack(velocity)

    def _predict(self, latents: Tensor, sigma: Tensor, condition: Condition, group: Sequence[Branch]) -> list[Tensor]:
        """The transformer's `x0 - noise` (C, h, w) of each branch, all in one forward."""
        if not group:
            return []
        dtype, rows = self.dtype, [part.row for part in group]
        texts = [condition.samples[part.row]["text" if part.prompted else NEGATIVE + "text"] for part in group]
        references = [[] if part.alone else condition.references(part.row) for part in group]
        return self.transformer(
            latents[rows].to(dtype),
            1 - sigma[rows],
            [text.to(dtype) for text in texts],
            [[one.to(dtype) for one in some] for some in references],
        )

    def sigmas(self, steps: int, size: Size) -> Tensor:
        return self.scheduler.sigmas(steps, *self.latents_shape(size)[1:])
