"""What a batch of pictures is drawn from: embedded prompts, encoded references, guidance; one class for all families.

A sample is tensors by names of its family's own, so samples with references of any number and size share a batch, are
stored and joined alike. Two kinds of names mean the same everywhere: `reference0`, `reference1`, ... are the latents of
the references in the prompt's order, and `negative_X` is what `X` is where the prompt is not heeded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from umo.guidance import Guidance

NEGATIVE, REFERENCE, GUIDANCE = "negative_", "reference", "guidance"


@dataclass(frozen=True)
class Condition:
    """Made by a customizer's `condition`, for a batch of B samples.

    Attributes:
        samples: B times tensors by name.
        guidance: B.
    """

    samples: tuple[Mapping[str, Tensor], ...]
    guidance: tuple[Guidance, ...]

    def __len__(self) -> int:
        return len(self.samples)

    def take(self, rows: Sequence[int]) -> Self:
        """Some samples in the given order; a row may repeat."""
        return type(self)(tuple(self.samples[row] for row in rows), tuple(self.guidance[row] for row in rows))

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """One batch of several."""
        return cls(
            tuple(sample for part in parts for sample in part.samples),
            tuple(one for part in parts for one in part.guidance),
        )

    def guided(self, guidance: Guidance) -> Self:
        """The same with another guidance."""
        return replace(self, guidance=(guidance,) * len(self))

    def unprompted(self, rows: Sequence[int]) -> Self:
        """The same with the prompts of some rows not heeded: their `negative_X` stand for `X`."""
        samples = list(self.samples)
        for row in rows:
            sample = samples[row]
            if not any(name.startswith(NEGATIVE) for name in sample):
                raise ValueError("a prompt is to be dropped, and the negative one was not asked for")
            samples[row] = {name: sample.get(NEGATIVE + name, value) for name, value in sample.items()}
        return replace(self, samples=tuple(samples))

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        samples = [{name: value.to(device) for name, value in sample.items()} for sample in self.samples]
        return replace(self, samples=tuple(samples))

    def state(self) -> dict[str, Tensor]:
        """One sample as named tensors, to be stored."""
        if len(self) != 1:
            raise ValueError(f"one sample is stored at a time, not {len(self)}")
        own = self.guidance[0]
        return {**self.samples[0], GUIDANCE: torch.tensor([own.text, own.image, own.start, own.end])}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], ignored: Sequence[str] = ()) -> Self:
        """The inverse of `state`, without the names in `ignored`, which somebody stored beside it."""
        sample = {name: value for name, value in state.items() if name not in (GUIDANCE, *ignored)}
        text, image, start, end = state[GUIDANCE].tolist()
        return cls((sample,), (Guidance(text=text, image=image, start=start, end=end),))

    def stack(self, name: str) -> Tensor:
        """(B, ...): a tensor that has one shape in all samples."""
        return torch.stack([sample[name] for sample in self.samples])

    def scales(self, name: str, like: Tensor) -> Tensor:
        """(B, 1, ...) of `text` or `image`, with as many axes as `like` and on its device, float32."""
        values = [getattr(one, name) for one in self.guidance]
        return torch.tensor(values, device=like.device).reshape(-1, *[1] * (like.ndim - 1))

    def references(self, row: int) -> list[Tensor]:
        """The latents of a sample's references, in the prompt's order."""
        sample = self.samples[row]
        count = sum(name.startswith(REFERENCE) for name in sample)
        return [sample[f"{REFERENCE}{k}"] for k in range(count)]

    def groups(self, *names: str) -> list[list[int]]:
        """Rows whose references have the same sizes in the same order, and whose tensors `names` have one shape."""
        rows: dict[tuple, list[int]] = {}
        for row, sample in enumerate(self.samples):
            alike = (*self.references(row), *(sample[name] for name in names))
            rows.setdefault(tuple(tuple(one.shape) for one in alike), []).append(row)
        return list(rows.values())
