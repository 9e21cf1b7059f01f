"""A training example as a base and a reward see it: its condition, its target's latents, its anchors."""

import hashlib
import io
from collections.abc import Sequence, Sized
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from umo.customizers.base import Customizer, Size
from umo.customizers.buckets import training_size
from umo.customizers.references import fill
from umo.errors import BadInput
from umo.images import ImageError, filled_points, read_image
from umo.rewards import Anchor, MatchingReward
from umo.rewards.places import face_at

JPEG = b"\xff\xd8\xff"


@dataclass(frozen=True)
class Sample:
    """A training example; pictures are encoded (JPEG, PNG, ...).

    Attributes:
        name: unique in its data set.
        references: a photograph of each person, in the prompt's order.
        target: the picture of all of them.
        people: an id of each.
        target_landmarks: (5, 2) of each person in the target's pixels: the anchor `target` needs them, and where they
            are given, a target that would be cut through somebody's face is not used, and our reward looks there for
            people whom no face was found of.
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


class Unusable(BadInput):
    """A sample that cannot be trained on; `reason` is one for all samples with the same fault."""

    def __init__(self, sample: Sample, reason: str, fault: str) -> None:
        super().__init__(f"sample {sample.name}: {fault}")
        self.reason = reason


class Encoder:
    """Encodes samples for a base, a reward and an anchor; `droppable` as in `Samples`."""

    def __init__(self, customizer: Customizer, reward: MatchingReward, anchor: Anchor, droppable: bool) -> None:
        self.customizer, self.reward, self.anchor, self.droppable = customizer, reward, anchor, droppable
        self._anchors: dict[bytes, Tensor] = {}

    def size(self, sample: Sample) -> Size:
        """Height and width at which a sample is drawn.

        Raises Unusable: it has more people than the base takes, or not what the anchor needs; or its target, where its
        shape decides, cannot be read.
        """
        settings, name = self.customizer.settings, self.customizer.name
        if (many := len(sample.references)) > settings.max_references:
            fault = f"{many} people, and {name} takes at most {settings.max_references}"
            raise Unusable(sample, "too many people", fault)
        kinds: dict[Anchor, Sequence[Sized]]
        kinds = {"references": sample.references, "target": sample.target_landmarks, "pool": sample.pool}
        if [len(one) > 0 for one in kinds[self.anchor]] != [True] * many:
            reason = f"nothing for the anchor '{self.anchor}'"
            raise Unusable(sample, reason, f"somebody has {reason}")
        return training_size(settings, many, lambda: self._shape(sample))

    @torch.no_grad()
    def __call__(self, sample: Sample, size: Size) -> dict[str, Tensor]:
        """The condition's state, `target` (C, h, w), `anchors` (M, d) and `places` (M, 5, 2), on the CPU.

        Places are the target's landmarks in pixels of `size`; (0, 5, 2) where they are not known of everybody.

        Raises Unusable: a picture cannot be read, a photograph shows no face, or the target loses one.
        """
        references = [self._picture(data, sample, f"reference {k}") for k, data in enumerate(sample.references)]
        (target, places), anchors = self._target(sample, size), self._embed(sample)
        settings = self.customizer.settings
        # An empty prompt stands for a dropped one, also where a base is drawn away from something else.
        negative = (settings.negative if settings.negative.isspace() else "") if self.droppable else None
        condition = self.customizer.condition([sample.prompt], [references], settings.training_guidance, negative)
        latents = self.customizer.encode(target.to(self.customizer.device))[0]
        state = condition.state() | {"target": latents, "anchors": anchors, "places": places}
        return {key: value.detach().cpu().contiguous() for key, value in state.items()}

    def _picture(self, data: bytes, sample: Sample, what: str) -> np.ndarray:
        try:
            return read_image(data)
        except ImageError as error:
            raise Unusable(sample, "a picture that cannot be read", f"{what}: {error}") from error

    def _shape(self, sample: Sample) -> Size:
        """Height and width of the target, upright; of a JPEG, by far the most frequent, without decoding it."""
        if sample.target.startswith(JPEG):
            with suppress(Exception), Image.open(io.BytesIO(sample.target), formats=["JPEG"]) as image:
                turned = image.getexif().get(ExifTags.Base.Orientation, 1) > 4
                return image.size if turned else image.size[::-1]
        height, width = self._picture(sample.target, sample, "target").shape[:2]
        return height, width

    def _target(self, sample: Sample, size: Size) -> tuple[Tensor, Tensor]:
        """(1, 3, H, W) in [-1, 1], and everybody's landmarks in it, (M, 5, 2)."""
        picture = self._picture(sample.target, sample, "target")
        places = np.zeros((len(sample.target_landmarks), 5, 2), np.float32)
        for person, landmarks in enumerate(sample.target_landmarks):
            points = filled_points(np.reshape(landmarks, (5, 2)), picture.shape[:2], size)
            if (points < 0).any() or (points > np.array(size[::-1]) - 1).any():
                cut = f"cut to the {size[0]}x{size[1]} (height x width) of {self.customizer.name}"
                raise Unusable(sample, "a face lost in the cut", f"{cut}, its target loses the face of person {person}")
            places[person] = points
        known = len(places) == len(sample.references)
        return fill(picture, size)[None], torch.from_numpy(places if known else places[:0])

    def _embed(self, sample: Sample) -> Tensor:
        """(M, d) anchors; every reference must show a face, whatever the anchor."""
        references = [self._anchor([photo], sample, k) for k, photo in enumerate(sample.references)]
        if self.anchor == "references":
            return torch.cat(references)
        if self.anchor == "pool":
            return torch.cat([self._anchor(photos, sample, k) for k, photos in enumerate(sample.pool)])
        target = self._picture(sample.target, sample, "target")
        faces = [face_at(landmarks) for landmarks in sample.target_landmarks]
        return self.reward.embed_anchors("target", [target], faces)

    def _anchor(self, photos: Sequence[bytes], sample: Sample, person: int) -> Tensor:
        """(1, d), the mean over the photographs of a person; what many samples share is embedded once."""
        key = hashlib.sha256(b"".join(hashlib.sha256(photo).digest() for photo in photos)).digest()
        if key not in self._anchors:
            pictures = [self._picture(photo, sample, f"photograph of person {person}") for photo in photos]
            try:
                self._anchors[key] = self.reward.embed_anchors("pool", [pictures])
            except BadInput as error:
                reason = "no face in a photograph"
                raise Unusable(sample, reason, f"{reason} of person {person}") from error
        return self._anchors[key]
