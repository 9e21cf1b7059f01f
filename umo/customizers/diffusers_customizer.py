"""What the adapters of all families have in common: components of a diffusers folder, and a LoRA on one of them."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from peft import get_peft_model_state_dict
from torch import Tensor

from umo import devices
from umo.customizers import lora_file
from umo.customizers.base import Reference, Settings, Size
from umo.customizers.condition import REFERENCE, Condition
from umo.customizers.folder import check_weights, empty_model, no_bars
from umo.customizers.lora_file import Naming
from umo.customizers.merging import merged
from umo.customizers.references import to_tensor
from umo.errors import BadInput, WorkFailed

Forward = Callable[[Tensor, Tensor, Condition], Tensor]


@dataclass
class DiffusersCustomizer:
    """Most of `umo.customizers.base.Customizer`; a family adds its load, pixels, condition, velocity and sigmas.

    Attributes:
        network: diffusers' class of the transformer.
        naming: of the family's LoRA files.
        encoders: the names of the fields that hold networks for text.
    """

    network: ClassVar[Any]
    naming: ClassVar[Naming]
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    mixes_references: ClassVar[bool] = False

    name: str
    settings: Settings
    transformer: Any
    vae: Any
    scheduler: Any

    @classmethod
    def check(cls, folder: Path, lora: Path | None, rank: int | None) -> None:
        """What can be known of a folder and a LoRA before minutes of loading.

        Raises BadInput: weights are missing or cut short, or the LoRA is unfit or has another rank than is given.
        """
        check_weights(folder, "transformer", "vae", *cls.encoders)
        if lora is not None:
            cls.naming.fitting(empty_model(folder, "transformer", cls.network), lora, folder.resolve().name, rank)

    def encode(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    @property
    def multiple(self) -> int:
        """Pixels a token covers, in each direction."""
        raise NotImplementedError

    @property
    def lora_targets(self) -> tuple[str, ...]:
        raise NotImplementedError

    def pipeline(self) -> Any:
        """The family's own pipeline on the same weights."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        return self.vae.device

    @cached_property
    def dtype(self) -> torch.dtype:
        """That the transformer computes in, asked of it once: it walks through all its modules to say so."""
        return self.transformer.dtype

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        if device is not None:
            devices.prepare(device)
        where = {key: value for key, value in (("device", device), ("dtype", dtype)) if value is not None}
        for module in (self.transformer, self.vae, *(getattr(self, name) for name in self.encoders)):
            if module is not None:
                module.to(**where)
        vars(self).pop("dtype", None)
        return self

    def to_encode(self, device: torch.device | str) -> Self:
        for module in (self.vae, *(getattr(self, name) for name in self.encoders)):
            module.to(device)
        return self

    def save(self, folder: Path) -> None:
        """Write the diffusers folder and `customizer.json`; a LoRA is saved by itself (`save_lora`)."""
        if getattr(self.transformer, "peft_config", None):
            raise ValueError("a base with a LoRA on it is not saved: load it without")
        with no_bars():
            self.pipeline().save_pretrained(folder)
        (folder / "customizer.json").write_text(json.dumps(self.settings.model_dump(), indent=2) + "\n")

    def add_lora(self, rank: int) -> None:
        lora_file.add(self.transformer, self.lora_targets, rank, self.name)

    def save_lora(self, folder: Path) -> Path:
        return self.naming.save(get_peft_model_state_dict(self.transformer), folder, self.name)

    def checkpoint_gradients(self) -> None:
        self.transformer.enable_gradient_checkpointing()
        if getattr(self.vae, "_supports_gradient_checkpointing", False):
            self.vae.enable_gradient_checkpointing()

    def compile_blocks(self) -> None:
        try:
            self.transformer.compile_repeated_blocks()
        except ValueError as error:  # of diffusers: it names none
            raise BadInput(f"compile_blocks: {self.name} does not say which blocks repeat; set it to false") from error

    def merged(self) -> AbstractContextManager[None]:
        return merged(self.transformer)

    @contextmanager
    def without_lora(self) -> Iterator[None]:
        self.transformer.disable_adapters()
        try:
            yield
        finally:
            self.transformer.enable_adapters()

    def drop_encoders(self) -> None:
        for name in self.encoders:
            setattr(self, name, None)

    def by_group(self, forward: Forward, latents: Tensor, sigma: Tensor, condition: Condition, *names: str) -> Tensor:
        """What `forward` gives for each group of samples that may share one (`Condition.groups`), in their order."""
        groups = condition.groups(*names)
        if len(groups) == 1:
            return forward(latents, sigma, condition)
        parts = [forward(latents[rows], sigma[rows], condition.take(rows)) for rows in groups]
        order = torch.tensor([row for rows in groups for row in rows], device=latents.device).argsort()
        return torch.cat(parts)[order]

    def check_encoders(self) -> None:
        """Raises WorkFailed once they are dropped."""
        if any(getattr(self, name) is None for name in self.encoders):
            raise WorkFailed(f"{self.name}: a prompt is to be embedded, and the text encoders are freed; run again")

    def check_size(self, size: Size) -> None:
        height, width = size
        settings, multiple = self.settings, self.multiple
        if settings.only_sizes:
            if tuple(size) not in settings.sizes:
                known = ", ".join(f"{h}x{w}" for h, w in dict.fromkeys(settings.sizes))
                raise BadInput(f"size {height}x{width} (height x width): {self.name} draws {known} only; choose one")
        elif any(side % multiple or not settings.min_side <= side <= settings.max_side for side in size):
            near = [min(max(round(s / multiple) * multiple, settings.min_side), settings.max_side) for s in size]
            raise BadInput(
                f"size {height}x{width} (height x width): {self.name} draws multiples of {multiple} from "
                f"{settings.min_side} to {settings.max_side}; the nearest is {near[0]}x{near[1]}"
            )

    def checked_references(
        self, prompts: Sequence[str], references: Sequence[Sequence[Reference]]
    ) -> list[list[Tensor]]:
        """Each sample's references as tensors (3, H, W) in [-1, 1]; BadInput for too many, or for no picture."""
        if len(prompts) != len(references):
            raise ValueError(f"{len(prompts)} prompts, {len(references)} lists of references")
        most = self.settings.max_references
        if (many := max(map(len, references), default=0)) > most:
            raise BadInput(f"{many} references: {self.name} takes at most {most}; leave some out")
        return [[to_tensor(reference) for reference in sample] for sample in references]

    def encode_references(self, fitted: Sequence[Tensor]) -> dict[str, Tensor]:
        """A sample's references (3, h, w) in [-1, 1] -> their latents (C, h, w), under their names in a condition."""
        return {f"{REFERENCE}{k}": self.encode(one[None].to(self.device))[0] for k, one in enumerate(fitted)}
