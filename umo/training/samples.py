"""What is trained on: samples as a data set gives them, encoded once and kept on disk."""

import hashlib
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from umo.customizers.base import Customizer, Size, default_size
from umo.customizers.condition import Condition
from umo.customizers.references import fill
from umo.errors import BadInput
from umo.faces.base import Face
from umo.files import replacing
from umo.images import ImageError, filled_points, read_image
from umo.rewards import Anchor, MatchingReward


@dataclass(frozen=True)
class Sample:
    """A training example; pictures are encoded (JPEG, PNG, ...).

    Attributes:
        name: unique in its data set.
        references: a photograph of each person, in the prompt's order.
        target: the picture of all of them.
        people: an id of each.
        target_landmarks: (5, 2) of each person in the target's pixels: the anchor `target` needs them, and where they
            are given, a target that would be cut through somebody's face is refused.
        pool: further photographs of each; only for the anchor `pool`.
    """

    name: str
    prompt: str
    references: tuple[bytes, ...]
    target: bytes
    people: tuple[str, ...]
    target_landmarks: tuple[np.ndarray, ...] = ()
    pool: tuple[tuple[bytes, ...], ...] = ()

    @cached_property
    def digest(self) -> str:
        """sha256 of everything in it."""
        parts = [self.name.encode(), self.prompt.encode(), *self.references, self.target]
        parts += [photo for photos in self.pool for photo in photos]
        parts += [np.asarray(points, np.float32).tobytes() for points in self.target_landmarks]
        return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of a sample without its pictures.

    Attributes:
        digest: of the whole sample.
        size: height and width at which it is drawn.
    """

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
    """

    names: tuple[str, ...]
    size: Size
    condition: Condition
    target: Tensor
    anchors: list[Tensor]


class Samples:
    """Samples encoded by a base: conditions, target latents, anchors; grouped by the size of their pictures.

    A sample is encoded the first time that it is needed and then read from `folder`; `prepare` does all of them. Its
    pictures are taken from where it was given only then, and not kept.
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

        Raises BadInput: there is no sample, or one has more people than the base takes, or not what the anchor needs.
        """
        if not len(samples):
            raise BadInput("no samples to train on: choose a split that has some")
        self.samples = samples
        self.customizer, self.reward, self.anchor, self.folder = customizer, reward, anchor, folder
        self.droppable = droppable
        self.entries = [self._entry(sample) for sample in samples]
        self.by_size: dict[Size, list[int]] = {}
        for index, entry in enumerate(self.entries):
            self.by_size.setdefault(entry.size, []).append(index)
        self._anchors: dict[bytes, Tensor] = {}

    def _entry(self, sample: Sample) -> Entry:
        most = self.customizer.settings.max_references
        if len(sample.references) > most:
            many = f"{len(sample.references)} people, and {self.customizer.name} takes at most {most}"
            raise BadInput(f"sample {sample.name}: {many}; leave it out")
        kinds: dict[Anchor, Sequence[Sized]]
        kinds = {"references": sample.references, "target": sample.target_landmarks, "pool": sample.pool}
        if [len(one) > 0 for one in kinds[self.anchor]] != [True] * len(sample.references):
            raise BadInput(f"sample {sample.name}: somebody has nothing for the anchor '{self.anchor}'; leave it out")
        return Entry(sample.name, sample.digest, sample.people, self._size(sample))

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def people(self) -> set[str]:
        """Everybody who is in them."""
        return {person for entry in self.entries for person in entry.people}

    def _size(self, sample: Sample) -> Size:
        """The base's default for so many people."""
        return default_size(self.customizer.settings, len(sample.references))

    def prepare(self, desc: str, share: int = 0, shares: int = 1) -> None:
        """Encode every sample that is not encoded yet, with a progress bar; of several processes each its share.

        Raises BadInput: a picture cannot be read, or a photograph shows no face.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        own = range(share, len(self), shares)
        missing = [index for index in own if not _whole(self._path(self.entries[index]))]
        for index in tqdm(missing, desc=desc, unit="sample", disable=not missing or share > 0):
            self._encode(index)

    def batch(self, indices: Sequence[int]) -> Batch:
        """Some samples of one size, on the base's device."""
        chosen = [self.entries[index] for index in indices]
        device = self.customizer.device
        stored = [{key: value.to(device) for key, value in self._read(index).items()} for index in indices]
        return Batch(
            names=tuple(entry.name for entry in chosen),
            size=chosen[0].size,
            condition=Condition.join([Condition.from_state(state, ignored=("target", "anchors")) for state in stored]),
            target=torch.stack([state["target"] for state in stored]),
            anchors=[state["anchors"] for state in stored],
        )

    def _path(self, entry: Entry) -> Path:
        also = "-droppable" if self.droppable else ""
        return self.folder / f"{entry.digest[:40]}-{self.anchor}{also}.safetensors"

    def _read(self, index: int) -> dict[str, Tensor]:
        try:
            return load_file(self._path(self.entries[index]))
        except (FileNotFoundError, SafetensorError):  # not there yet, or damaged
            self.folder.mkdir(parents=True, exist_ok=True)
            return self._encode(index)

    @torch.no_grad()
    def _encode(self, index: int) -> dict[str, Tensor]:
        sample = self.samples[index]
        references = [self._picture(data, sample, f"reference {k}") for k, data in enumerate(sample.references)]
        settings = self.customizer.settings
        negative = settings.negative if self.droppable else None
        condition = self.customizer.condition([sample.prompt], [references], settings.training_guidance, negative)
        target = self._target(sample).to(self.customizer.device)
        state = condition.state() | {"target": self.customizer.encode(target)[0], "anchors": self._embed(sample)}
        state = {key: value.detach().cpu().contiguous() for key, value in state.items()}
        with replacing(self._path(self.entries[index]), several=True) as temporary:
            save_file(state, temporary)
        return state

    def _picture(self, data: bytes, sample: Sample, what: str) -> np.ndarray:
        try:
            return read_image(data)
        except ImageError as error:
            raise BadInput(f"sample {sample.name}: {what}: {error}; leave the sample out") from error

    def _target(self, sample: Sample) -> Tensor:
        """(1, 3, H, W) in [-1, 1]."""
        picture, size = self._picture(sample.target, sample, "target"), self._size(sample)
        for person, landmarks in enumerate(sample.target_landmarks):
            points = filled_points(np.reshape(landmarks, (5, 2)), picture.shape[:2], size)
            if (points < 0).any() or (points > np.array(size[::-1]) - 1).any():
                raise BadInput(
                    f"sample {sample.name}: cut to the {size[0]}x{size[1]} (height x width) of {self.customizer.name}, "
                    f"its target loses the face of person {person}: use targets of that shape"
                )
        return fill(picture, size)[None]

    def _embed(self, sample: Sample) -> Tensor:
        """(M, d) anchors; every reference must show a face, whatever the anchor."""
        references = [self._anchor([photo], sample, k) for k, photo in enumerate(sample.references)]
        if self.anchor == "references":
            return torch.cat(references)
        if self.anchor == "pool":
            return torch.cat([self._anchor(photos, sample, k) for k, photos in enumerate(sample.pool)])
        target = self._picture(sample.target, sample, "target")
        faces = []
        for landmarks in sample.target_landmarks:
            points = np.asarray(landmarks, np.float32).reshape(5, 2)
            faces.append(Face(np.concatenate([points.min(axis=0), points.max(axis=0)]), points, 1.0))
        return self.reward.embed_anchors("target", [target], faces)

    def _anchor(self, photos: Sequence[bytes], sample: Sample, person: int) -> Tensor:
        """(1, d), the mean over the photographs of a person; what many samples share is embedded once."""
        key = hashlib.sha256(b"".join(hashlib.sha256(photo).digest() for photo in photos)).digest()
        if key not in self._anchors:
            pictures = [self._picture(photo, sample, f"photograph of person {person}") for photo in photos]
            try:
                self._anchors[key] = self.reward.embed_anchors("pool", [pictures])
            except BadInput as error:
                where = f"sample {sample.name}: no face in a photograph of person {person}"
                raise BadInput(f"{where}; leave the sample out, or choose another photograph") from error
        return self._anchors[key]


def _whole(path: Path) -> bool:
    """A header tells how long its file must be."""
    try:
        with safe_open(path, "pt"):
            return True
    except (FileNotFoundError, SafetensorError):
        return False
