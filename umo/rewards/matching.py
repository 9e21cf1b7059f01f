"""Who is compared with whom, and the reward of drawn pictures by one face model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from umo.errors import BadInput
from umo.faces.base import Face, FaceModel
from umo.reward_settings import Anchor, Ours
from umo.rewards.mimr import mimr
from umo.rewards.ours import ours
from umo.rewards.places import absent_at, face_at, free_places
from umo.rewards.sir import sir

Kind = Literal["sir", "mimr", "ours"]


def padded_cosines(
    anchors: Sequence[torch.Tensor], embeddings: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Anchors, (M_i, d) a sample, and drawn faces, (N_i, d) a sample -> cosines and valid, both (B, M, N).

    Padding stands last in a row and in a column; M and N are at least 1.
    """
    references = pad_sequence([_at_least_one(anchor) for anchor in anchors], batch_first=True)
    faces = pad_sequence([_at_least_one(embedding) for embedding in embeddings], batch_first=True)
    rows = _mask([len(anchor) for anchor in anchors], references)
    columns = _mask([len(embedding) for embedding in embeddings], faces)
    return references @ faces.transpose(1, 2), rows[:, :, None] & columns[:, None, :]


def _at_least_one(vectors: torch.Tensor) -> torch.Tensor:
    return vectors if len(vectors) else vectors.new_zeros(1, vectors.shape[1])


def _mask(lengths: list[int], padded: torch.Tensor) -> torch.Tensor:
    return torch.arange(padded.shape[1], device=padded.device) < torch.tensor(lengths, device=padded.device)[:, None]


@dataclass(frozen=True, slots=True)
class Reward:
    """What a batch of drawn pictures earned, and why.

    Attributes:
        reward: (B,), differentiable to the pixels where the face model is.
        cosines: a (M_i, N_i) matrix a sample, without gradient.
        n_faces: (B,) int, faces found.
        no_face: (B,) bool: nothing was found; the reward of SIR and MIMR is then 0.
        faces: the faces used, found or given.
        same_person_cosine: of the face model; NaN where it has none.
        placed: of each picture, absent people who pull at a place of the target.
    """

    reward: torch.Tensor
    cosines: list[torch.Tensor]
    n_faces: torch.Tensor
    no_face: torch.Tensor
    faces: list[list[Face]]
    same_person_cosine: float = math.nan
    placed: tuple[int, ...] = ()


class MatchingReward:
    """SIR, MIMR or ours of drawn pictures by one face model; `anchors` say what a drawn face is compared with."""

    def __init__(
        self,
        faces: FaceModel,
        kind: Kind = "mimr",
        lambda_match: float = 1.0,
        lambda_mismatch: float = -1.0,
        settings: Ours | None = None,
    ) -> None:
        """`lambda_match` and `lambda_mismatch` are lambda1 and lambda2 of the paper, for MIMR; `settings` are for ours.

        Raises:
            BadInput: a setting is to be measured, and the face model has no calibration.
            ValueError: an unknown kind.
        """
        if kind not in get_args(Kind):
            raise ValueError(f"reward {kind!r} is unknown: choose one of {', '.join(get_args(Kind))}")
        self.faces, self.kind = faces, kind
        self.lambda_match, self.lambda_mismatch = lambda_match, lambda_mismatch
        self.settings = settings or Ours()
        if kind == "ours":
            self.stranger = self._bound("stranger", self.settings.stranger, "strangers", 95)
            self.ceiling = self._bound("ceiling", self.settings.ceiling, "same", 50)
            if self.settings.doubled and math.isnan(faces.same_person_cosine):
                raise BadInput(f"{faces.name} has no calibration, which ours.doubled needs: set it to 0")

    @property
    def differentiable(self) -> bool:
        """Whether a reward of a tensor has a gradient."""
        return self.faces.differentiable

    def _bound(
        self, key: str, given: float | str | None, pairs: Literal["strangers", "same"], percent: int
    ) -> float | None:
        if not isinstance(given, str):
            return given
        if self.faces.calibration is None:
            raise BadInput(f"{self.faces.name} has no calibration, which ours.{key}: measured needs: give a number")
        return self.faces.calibration.percentile(pairs, percent)

    def embed_anchors(
        self,
        anchor: Anchor,
        photos: Sequence[Sequence[np.ndarray]] | Sequence[np.ndarray],
        faces: Sequence[Face] | None = None,
    ) -> torch.Tensor:
        """The anchors of one sample, computed once and kept.

        Args:
            anchor: `references` (paper, Eq. 4): `photos[k]` is the photograph of person k, (H, W, 3) uint8.
                `pool`: `photos[k]` holds other photographs of person k. The anchor is the mean of their unit vectors,
                *not* normalised again, so that the cosine matrix holds the mean over the pool of the cosines.
                `target` (released code): `photos` is `[the target picture]` and `faces` are its people in order.
            faces: only for `target`.

        Returns:
            (M, d) float32 on the CPU.

        Raises:
            BadInput: a photograph shows no face; the message says whose.
            ValueError: the arguments do not fit the anchor.
        """
        if anchor not in get_args(Anchor):
            raise ValueError(f"anchor {anchor!r} is unknown: choose {' or '.join(get_args(Anchor))}")
        if anchor == "target":
            if not faces or len(photos) != 1:
                raise ValueError("the target anchor takes one picture and the faces of its people")
            return torch.from_numpy(self.faces.embed([np.asarray(photos[0])], [list(faces)]))
        if faces is not None:
            raise ValueError(f"the {anchor} anchor finds the faces itself: give faces to the target anchor only")
        groups = [[np.asarray(photo)] if anchor == "references" else list(photo) for photo in photos]
        if not groups or not all(groups):
            raise ValueError(f"the {anchor} anchor takes at least one person and at least one photograph a person")
        names = [(person, rank) for person, group in enumerate(groups) for rank in range(len(group))]
        single = [photo for group in groups for photo in group]
        found = self.faces.detect(single)
        for (person, rank), seen in zip(names, found, strict=True):
            if not seen:
                raise BadInput(
                    f"{anchor} anchor of person {person}: no face in photograph {rank}; choose another photograph"
                )
        embeddings = self.faces.embed(single, [[max(seen, key=lambda face: face.side)] for seen in found])
        parts = torch.from_numpy(embeddings).split([len(group) for group in groups])
        return torch.stack([part.mean(dim=0) for part in parts])

    def __call__(
        self,
        images: torch.Tensor,
        anchors: Sequence[torch.Tensor],
        faces: Sequence[Sequence[Face]] | None = None,
        places: Sequence[torch.Tensor] | None = None,
    ) -> Reward:
        """Reward a batch with one call of the detector and one of the embedder.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            anchors: (M_i, d) a sample, from `embed_anchors`.
            faces: where the faces are, if known; the detector is then not asked.
            places: (M_i, 5, 2) a sample, landmarks x, y in pixels of `images` where the target has its people; (0, 5,
                2) where that is not known. Only for ours, and of no effect on the value.

        Raises ValueError where B differs, a sample has no anchor, or an embedding is not finite.
        """
        if len(images) != len(anchors) or not all(len(anchor) for anchor in anchors):
            raise ValueError(f"{len(images)} pictures need as many sets of anchors, none empty; got {len(anchors)}")
        if faces is not None and len(faces) != len(images):
            raise ValueError(f"{len(images)} pictures need as many lists of faces; got {len(faces)}")
        found = self.faces.detect(images.detach()) if faces is None else [list(seen) for seen in faces]
        free: list[dict[int, Face]] = [{} for _ in found]
        if places is not None:
            free = [self._free(*pair) for pair in zip(found, places, strict=True)]
        sizes = [len(seen) for seen in found]
        embeddings = self.faces.embed(images, [[*seen, *left.values()] for seen, left in zip(found, free, strict=True)])
        split = embeddings.split([count for size, left in zip(sizes, free, strict=True) for count in (size, len(left))])
        theirs = [anchor.to(embeddings) for anchor in anchors]
        cosines, valid = padded_cosines(theirs, split[::2])
        own = [cosines[i, : len(anchors[i]), : sizes[i]].detach() for i in range(len(sizes))]
        reward = self._value(cosines, valid)
        if any(free):
            reward = reward + torch.stack(
                [self._pull(*one) for one in zip(theirs, own, free, split[1::2], strict=True)]
            )
        return Reward(
            reward=reward,
            cosines=own,
            n_faces=torch.tensor(sizes),
            no_face=torch.tensor(sizes) == 0,
            faces=found,
            same_person_cosine=self.faces.same_person_cosine,
            placed=tuple(map(len, free)),
        )

    def _value(self, cosines: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        if self.kind == "sir":
            return sir(cosines, valid)
        if self.kind == "mimr":
            return mimr(cosines, valid, self.lambda_match, self.lambda_mismatch)
        return ours(cosines, valid, self.settings, self.stranger, self.ceiling, self.faces.same_person_cosine)

    def _free(self, found: Sequence[Face], places: torch.Tensor) -> dict[int, Face]:
        """The target's places, (M, 5, 2), without a face, where faces are too few and ours looks there."""
        if self.kind != "ours" or not self.settings.place_absent or len(found) >= len(places):
            return {}
        points = places.cpu().numpy()
        return {place: face_at(points[place]) for place in free_places(points, found)}

    def _pull(
        self, anchors: torch.Tensor, cosines: torch.Tensor, free: dict[int, Face], embeddings: torch.Tensor
    ) -> torch.Tensor:
        """0, with the gradient of absent people's cosines, weighted as anybody's, at free places, (K, d)."""
        if not free:
            return embeddings.new_zeros(())
        people = absent_at(cosines.cpu().numpy(), list(free))
        alike = (anchors[[people[place] for place in free]] * embeddings).sum(dim=1)
        pull = (alike if self.ceiling is None else alike.clamp(max=self.ceiling)).sum()
        return (pull - pull.detach()) / (len(anchors) * (1 if self.settings.per_person else max(1, cosines.shape[1])))
