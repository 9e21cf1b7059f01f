"""Batches of pictures to be drawn: what each is drawn from is embedded once, and what is there already is kept."""

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import EllipsisType

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from umo.customizers import Condition, Customizer, Drawing
from umo.customizers.base import default_size, draw_embedded, seed_of
from umo.customizers.words import unknown_words
from umo.drawing.files import read_key, write_picture
from umo.errors import WorkFailed
from umo.evaluation.cases import Case
from umo.images import require_image

BATCH = 4  # more at once leave a core's cache and are no faster
LARGE = 10**9  # weights of a transformer that one picture keeps busy; several would only cost memory
NAMED = 8  # unknown words that a warning names

Progress = Callable[[int, int], None]
Cut = Callable[[np.ndarray, float, str], tuple[slice, slice]]  # see `photographs.face_square`


@dataclass(frozen=True)
class Photo:
    """A photograph of a case: the digest of its file, the shape that batches go by, the part that is used."""

    digest: str
    shape: tuple[int, ...]
    part: tuple[slice, slice] | EllipsisType = ...


@dataclass(frozen=True)
class Asked:
    """A picture to be drawn: a case's `rank`-th, its people's photographs, and what tells it from another drawing."""

    case: Case
    photos: tuple[Path, ...]
    rank: int
    path: Path
    key: str

    @property
    def given(self) -> tuple[str, tuple[Path, ...]]:
        """What is embedded."""
        return self.case.prompt, self.photos


class Batches:
    """Pictures to be drawn, some of one shape at a time; a case that goes over several batches is embedded once."""

    def __init__(
        self,
        customizer: Customizer,
        how: Drawing,
        batches: Sequence[Sequence[Asked]],
        known: Mapping[Path, Photo],
    ) -> None:
        self.customizer, self.how, self.batches, self.known = customizer, how, batches, known
        # Where what is drawn in a batch is embedded: there, or with the batch before where it was begun. So it does not
        # hang on what is missing, and a resumed run gives the same bytes as a whole one.
        self.begun: list[dict[tuple, int]] = []
        for number, batch in enumerate(batches):
            before = self.begun[-1] if self.begun else {}
            self.begun.append({one.given: before.get(one.given, number) for one in batch})
        self.embedded = lru_cache(maxsize=2)(self._embed)

    def draw(self, progress: Progress | None) -> int:
        """Draw what is missing; how many those were."""
        drawn, done, of = 0, 0, sum(map(len, self.batches))
        for number in tqdm(range(len(self.batches)), desc=f"draw with {self.customizer.name}", unit="batch"):
            drawn += self._draw(number)
            done += len(self.batches[number])
            if progress:
                progress(done, of)
        return drawn

    def _draw(self, number: int) -> int:
        batch, begun = self.batches[number], self.begun[number]
        missing = [one for one in batch if read_key(one.path) != one.key]
        if missing:
            # The whole batch, whichever are missing: beside others a picture may be rounded otherwise.
            condition = Condition.join([self.embedded(begun[one.given])[one.given] for one in batch])
            size = self.how.size or default_size(self.customizer.settings, len(batch[0].photos))
            seeds = [seed_of(one.case.case_id, one.rank) for one in batch]
            pictures = pixels(self.customizer, draw_embedded(self.customizer, condition, seeds, size, self.how.steps))
            for one, picture in zip(batch, pictures, strict=True):
                if one in missing:
                    write_picture(one.path, picture, one.key)
        return len(missing)

    @torch.no_grad()
    def _embed(self, number: int) -> dict[tuple, Condition]:
        """What is begun in a batch."""
        new = [given for given, begun in self.begun[number].items() if begun == number]
        prompts, photos = zip(*new, strict=True)
        read = {path: require_image(path, str(path))[self.known[path].part] for paths in photos for path in paths}
        references = [[read[path] for path in paths] for paths in photos]
        condition = self.customizer.condition(prompts, references, self.how.guidance, self.how.negative)
        return {given: condition.take([row]) for row, given in enumerate(new)}


def find_references(cases: Path, people: Mapping[str, Sequence[Path]]) -> dict[Path, Photo]:
    """Every reference that will be used, by case, each of which can be read."""
    known: dict[Path, Photo] = {}
    for case_id, paths in people.items():
        for path in paths:
            if path not in known:
                shape = require_image(path, f"{cases}: case {case_id}: reference {path}").shape
                known[path] = Photo(hashlib.sha256(path.read_bytes()).hexdigest(), shape)
    return known


def cropped(known: Mapping[Path, Photo], factor: float, cut: Cut) -> dict[Path, Photo]:
    """The same, each cut around its face; squares count as of one shape, for a base takes them at one size."""
    return {
        path: replace(one, shape=(), part=cut(require_image(path, str(path)), factor, f"reference {path}"))
        for path, one in known.items()
    }


def warn_of_unknown_words(customizer: Customizer, prompts: dict[str, str]) -> None:
    """One line on stderr where a base does not know most words of a prompt, or of some."""
    found = zip(prompts, unknown_words(customizer, list(prompts.values())), strict=True)
    unknown = [(which, words) for which, words in found if words]
    if unknown:
        which, words = unknown[0]
        others = f" (and of {len(unknown) - 1} other prompts)" if len(unknown) > 1 else ""
        named = ", ".join(list(dict.fromkeys(words))[:NAMED])
        said = f"{customizer.name} does not know most words of {which}{others}: {named}"
        print(f"{said}; it cannot draw what they say", file=sys.stderr)


def at_once(customizer: Customizer) -> int:
    return 1 if sum(map(torch.numel, customizer.transformer.parameters())) > LARGE else BATCH


def pixels(customizer: Customizer, pictures: Tensor) -> list[np.ndarray]:
    """(B, 3, H, W) in [-1, 1] -> B times (H, W, 3) uint8."""
    if not torch.isfinite(pictures).all():
        raise WorkFailed(
            f"{customizer.name}: a picture came out as not finite; check the base's and the LoRA's weights"
        )
    return list(((pictures + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy())
