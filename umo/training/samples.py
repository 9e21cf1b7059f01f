"""What is trained on: samples as a data set gives them, encoded once and kept on disk; unfit ones are left out."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from umo.customizers.base import Customizer, Size
from umo.customizers.condition import Condition
from umo.errors import BadInput
from umo.files import replacing
from umo.rewards import Anchor, MatchingReward
from umo.training.encoding import Encoder, Sample, Unusable

__all__ = ["Batch", "Entry", "Sample", "Samples"]

BESIDE = ("target", "anchors", "places")  # what is kept of a sample beside its condition


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of a sample without its pictures.

    Attributes:
        row: of the sample in what was given.
        digest: of the whole sample.
        size: height and width at which it is drawn.
    """

    row: int
    name: str
    digest: str
    people: tuple[str, ...]
    size: Size


@dataclass(frozen=True)
class Batch:
    """Encoded samples of one size.

    Attributes:
        names: of the samples, B.
        size: height and width of their pictures.
        condition: of the family, with the training guidance.
        target: (B, C, h, w) latents.
        anchors: (M_i, d) a sample.
        places: (M_i, 5, 2) a sample, landmarks x, y of the target's people in pixels of `size`; (0, 5, 2) where they
            are not known.
    """

    names: tuple[str, ...]
    size: Size
    condition: Condition
    target: Tensor
    anchors: list[Tensor]
    places: list[Tensor]


class Samples:
    """Samples encoded by a base: conditions, target latents, anchors.

    A sample is encoded the first time that it is needed and then read from `folder`; `prepare` does all of them. Its
    pictures are taken from where it was given only then, and not kept.

    Attributes:
        entries: of the samples that can be used; all that is asked of samples goes by their places here.
        by_size: those that may share a batch: of one size, and where the base has several and its family takes
            samples of another number of references one after the other, of one number.
        unusable: the other samples, by reason: what is wrong with each.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        customizer: Customizer,
        reward: MatchingReward,
        anchor: Anchor,
        folder: Path,
        droppable: bool = False,
    ) -> None:
        """
        Args:
            samples: gone through once, for their `entries`; may read each of them when it is asked for.
            folder: where encoded samples are kept; the caller keeps a folder for each base, face model and precision.
            droppable: a prompt may be dropped (`Recipe.text_dropout`): conditions hold the negative one as well.

        Raises BadInput: there is no sample, or none that can be used.
        """
        if not len(samples):
            raise BadInput("no samples to train on: choose a split that has some")
        self.samples, self.customizer, self.anchor, self.folder = samples, customizer, anchor, folder
        self.droppable = droppable
        self.encoder = Encoder(customizer, reward, anchor, droppable)
        self.unusable: dict[str, list[str]] = {}
        entries = []
        for row, sample in enumerate(samples):
            try:
                entries.append(Entry(row, sample.name, sample.digest, sample.people, self.encoder.size(sample)))
            except Unusable as error:
                self.unusable.setdefault(error.reason, []).append(str(error))
        self._take(entries)

    def _take(self, entries: list[Entry]) -> None:
        if not entries:
            raise BadInput(f"nothing to train on: {self.left_out}")
        self.entries = entries
        settings = self.customizer.settings
        by_number = bool(settings.buckets) and not settings.only_sizes and not self.customizer.mixes_references
        self.by_size: dict[tuple[Size, int | None], list[int]] = {}
        for index, entry in enumerate(entries):
            self.by_size.setdefault((entry.size, len(entry.people) if by_number else None), []).append(index)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def people(self) -> set[str]:
        """Everybody who is in them."""
        return {person for entry in self.entries for person in entry.people}

    @property
    def left_out(self) -> str:
        """How many samples cannot be used, and why, in a line; the first of each reason by name."""
        count = sum(map(len, self.unusable.values()))
        parts = [f"{len(faults)} {reason} (first {faults[0]})" for reason, faults in self.unusable.items()]
        return f"{count} of {len(self.samples)} samples cannot be used: {'; '.join(parts)}"

    def prepare(self, desc: str, share: int = 0, shares: int = 1) -> None:
        """Encode every sample that is not encoded yet, with a progress bar; leave out what proves unusable.

        Of several processes each does its share; then all wait for each other and call `leave_out`.

        Raises BadInput: no sample can be used.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        own = self.entries[share::shares]
        missing = [one for one in own if not (_whole(self._path(one)) or self._mark(one).exists())]
        for entry in tqdm(missing, desc=desc, unit="sample", disable=not missing or share > 0):
            try:
                self._encode(entry)
            except Unusable as error:
                with replacing(self._mark(entry), several=True) as temporary:
                    temporary.write_text(json.dumps([error.reason, str(error)]))
        if shares == 1:
            self.leave_out()

    def leave_out(self) -> None:
        """Forget the samples that `prepare` found unusable, in this process, another or an earlier run.

        Raises BadInput: no sample is left.
        """
        left = []
        for entry in self.entries:
            if self._mark(entry).exists():
                reason, fault = json.loads(self._mark(entry).read_text())
                self.unusable.setdefault(reason, []).append(fault)
            else:
                left.append(entry)
        self._take(left)

    def batch(self, indices: Sequence[int]) -> Batch:
        """Some samples of one size, on the base's device."""
        chosen = [self.entries[index] for index in indices]
        device = self.customizer.device
        stored = [{key: value.to(device) for key, value in self._read(entry).items()} for entry in chosen]
        return Batch(
            names=tuple(entry.name for entry in chosen),
            size=chosen[0].size,
            condition=Condition.join([Condition.from_state(state, ignored=BESIDE) for state in stored]),
            target=torch.stack([state["target"] for state in stored]),
            anchors=[state["anchors"] for state in stored],
            places=[state["places"] for state in stored],
        )

    def _path(self, entry: Entry) -> Path:
        also = "-droppable" if self.droppable else ""
        return self.folder / f"{entry.digest[:40]}-{self.anchor}{also}.safetensors"

    def _mark(self, entry: Entry) -> Path:
        """Stands where a sample is unusable, and says why."""
        return self._path(entry).with_suffix(".unusable")

    def _read(self, entry: Entry) -> dict[str, Tensor]:
        try:
            return load_file(self._path(entry))
        except (FileNotFoundError, SafetensorError):  # not there yet, or damaged
            self.folder.mkdir(parents=True, exist_ok=True)
            return self._encode(entry)

    def _encode(self, entry: Entry) -> dict[str, Tensor]:
        state = self.encoder(self.samples[entry.row], entry.size)
        with replacing(self._path(entry), several=True) as temporary:
            save_file(state, temporary)
        return state


def _whole(path: Path) -> bool:
    """A header tells how long its file must be."""
    try:
        with safe_open(path, "pt"):
            return True
    except (FileNotFoundError, SafetensorError):
        return False
