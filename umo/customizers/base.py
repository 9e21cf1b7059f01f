"""What every customizer offers: a family of pretrained models that draws given people into a described picture.

One adapter a family, one contract test for all. What a family need not know is here once: drawing from noise.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from umo import flow
from umo.customizers.condition import Condition
from umo.guidance import CONDITIONAL, Guidance

Reference = Tensor | np.ndarray
Size = tuple[int, int]


class Settings(BaseModel):
    """What a base was trained for. A `customizer.json` beside `model_index.json` overrides a family's defaults.

    A family whose references have a rule with numbers of its own adds them in a subclass.

    Attributes:
        max_references: more are refused.
        sizes: the default size (height, width) for 1, 2, ... references; the last serves all that follow.
        only_sizes: whether no other size can be drawn.
        min_side, max_side: limits of a picture's sides in pixels.
        buckets: sizes (height, width) of training pictures; each takes the nearest in aspect ratio. Empty: the default
            size alone, as with `only_sizes`.
        reference_crop: side of the square that a photograph is cut to around its face, in longer sides of the face's
            box; the references of exported sets are cut so.
        steps: default number of denoising steps.
        guidance: default for drawing.
        training_guidance: what the base was trained with; 1 is the conditional branch alone.
        negative: the default negative prompt, of families that have one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_references: int = Field(ge=1)
    sizes: tuple[Size, ...] = Field(min_length=1)
    only_sizes: bool = False
    min_side: int = Field(default=16, ge=16)
    max_side: int = Field(default=4096, ge=16)
    buckets: tuple[Size, ...] = ()
    reference_crop: float = Field(default=2.2, ge=1)
    steps: int = Field(ge=1)
    guidance: Guidance = CONDITIONAL
    training_guidance: Guidance = CONDITIONAL
    negative: str = ""


class Customizer(Protocol):
    """A base model of one family.

    Pictures are (B, 3, H, W) float in [-1, 1], latents (B, C, h, w) float32; all pictures of a batch have one size.
    Nothing switches the gradient off: the caller does. All weights are frozen after loading.

    Attributes:
        name: of the base, for messages (its folder's name).
        settings: what the base was trained for.
        transformer: the network that training changes.
        lora_targets: full names of the linear layers in `transformer` that a LoRA belongs on (for peft's
            `target_modules`).
        device: of the latents that it takes and gives; a part may lie elsewhere.
        dtype: that the transformer computes in; its latents are float32 all the same.
        mixes_references: whether samples with references of other numbers and sizes share a forward; where they do
            not, batches of the same number save forwards.
    """

    @property
    def name(self) -> str: ...

    @property
    def settings(self) -> Settings: ...

    @property
    def transformer(self) -> nn.Module: ...

    @property
    def lora_targets(self) -> tuple[str, ...]: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def mixes_references(self) -> bool: ...

    def check_size(self, size: Size) -> None:
        """Raises BadInput for a size (height, width) that cannot be drawn, naming the nearest that can."""

    def latents_shape(self, size: Size) -> tuple[int, int, int]:
        """C, h, w of a picture's latents."""

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, C, h, w); differentiable, without randomness."""

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 3, H, W), about in [-1, 1] and not clipped; differentiable."""

    def condition(
        self,
        prompts: Sequence[str],
        references: Sequence[Sequence[Reference]],
        guidance: Guidance | float | None = None,
        negative: str | None = None,
    ) -> Condition:
        """Embed what is asked for, and what is drawn without the prompt where the family is drawn or trained so.

        Args:
            prompts: B.
            references: for each sample its people in the prompt's order, 0 to `max_references`, of any sizes: tensors
                (3, H, W) in [-1, 1] or arrays (H, W, 3) uint8.
            guidance: None takes the settings' default for drawing, a number is another `text` in it.
            negative: the prompt of the branch that is drawn away from, or that training puts in place of a dropped
                one; None takes the settings', and in a family without such a branch nothing.

        Raises BadInput for too many references, or one that is not an image of that form.
        """

    def velocity(self, latents: Tensor, sigma: Tensor | float, condition: Condition) -> Tensor:
        """The predicted `noise - x0`, (B, C, h, w), at `x_sigma = (1 - sigma) x0 + sigma noise` (see `umo.flow`).

        A sample's result does not depend on the others of its batch. Guidance is within: with `CONDITIONAL` a family
        that is guided by further branches computes the conditional one alone.

        Args:
            latents: (B, C, h, w) at sigma.
            sigma: scalar or (B,) in [0, 1]; shifted, as `sigmas` gives it.
            condition: B samples, made by this family's `condition`.
        """

    def sigmas(self, steps: int, size: Size) -> Tensor:
        """(steps + 1,) float32 from 1 down to 0, already shifted as the family's scheduler does for this size."""

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move the weights; returns itself."""

    def to_encode(self, device: torch.device | str) -> Self:
        """Move what embeds and encodes, and leave the transformer; returns itself."""

    def add_lora(self, rank: int) -> None:
        """Put a LoRA (alpha = rank, its effect 0) on `lora_targets`, or take the one that is there, to be trained.

        Its weights are float32 and the only ones with a gradient. One of another rank raises BadInput.
        """

    def save_lora(self, folder: Path) -> Path:
        """Write the LoRA as diffusers' `load_lora_weights` takes it; returns the file."""

    def checkpoint_gradients(self) -> None:
        """Recompute the activations of transformer and decoder in the backward pass instead of keeping them."""

    def compile_blocks(self) -> None:
        """Compile the transformer's blocks where they lie: minutes at the first forward of every shape, faster then.

        Raises BadInput where the transformer does not say which blocks repeat.
        """

    def merged(self) -> AbstractContextManager[None]:
        """A context without gradient in which the LoRA is part of the weights (see `umo.customizers.merging`)."""

    def without_lora(self) -> AbstractContextManager[None]:
        """A context in which the transformer computes as if it had no LoRA."""

    def drop_encoders(self) -> None:
        """Free the text encoders: everything that will be asked for is embedded already."""


@dataclass(frozen=True)
class Drawing:
    """How a picture is drawn; None takes the base's default."""

    size: Size | None = None
    steps: int | None = None
    guidance: Guidance | float | None = None
    negative: str | None = None


def default_size(settings: Settings, references: int) -> Size:
    """Height and width for so many references."""
    return settings.sizes[min(max(references, 1), len(settings.sizes)) - 1]


def seed_of(*key: str | int) -> int:
    """A seed of 48 bits for every key, the same on every machine."""
    return int(hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12], 16)


def seeded_noise(customizer: Customizer, seeds: Sequence[int], size: Size) -> Tensor:
    """(B, C, h, w) on the customizer's device; a sample's noise depends on its seed alone, not on device or batch."""
    shape = customizer.latents_shape(size)
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(noise).to(customizer.device)


@torch.no_grad()
def draw(
    customizer: Customizer,
    prompts: Sequence[str],
    references: Sequence[Sequence[Reference]],
    seeds: Sequence[int],
    how: Drawing = Drawing(),
) -> Tensor:
    """Draw a batch from noise by Euler steps.

    Args:
        prompts, references: as `Customizer.condition` takes them; the same prompt with the same list of references,
            as several seeds of one case have them, is embedded once.
        seeds: one a sample; the same seed gives the same picture.

    Returns:
        (B, 3, H, W) float32 in [-1, 1].

    Raises BadInput for a size that cannot be drawn, or references that cannot be taken.
    """
    size = how.size or default_size(customizer.settings, max(map(len, references), default=1))
    customizer.check_size(size)
    asked = list(zip(prompts, map(id, references), strict=True))
    once = list(dict.fromkeys(asked))
    rows = [asked.index(what) for what in once]
    people = [references[k] for k in rows]
    condition = customizer.condition([prompts[k] for k in rows], people, how.guidance, how.negative)
    condition = condition.take([once.index(what) for what in asked])
    return draw_embedded(customizer, condition, seeds, size, how.steps)


@torch.no_grad()
def draw_embedded(
    customizer: Customizer,
    condition: Condition,
    seeds: Sequence[int],
    size: Size,
    steps: int | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """`draw` of what is embedded already; `on_step` is called after each of the steps."""

    def velocity(latents: Tensor, sigma: Tensor) -> Tensor:
        predicted = customizer.velocity(latents, sigma, condition)
        on_step()
        return predicted

    sigmas = customizer.sigmas(steps or customizer.settings.steps, size).to(customizer.device)
    latents = flow.rollout(velocity, seeded_noise(customizer, seeds, size), sigmas)
    return customizer.decode(latents).float().clamp(-1, 1)
