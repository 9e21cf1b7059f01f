"""Who is compared with whom, and the reward of drawn pictures by one face model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from umo.errors import BadInput
from umo.faces.base import Face, FaceModel
from umo.rewards.mimr import mimr
from umo.rewards.sir import sir

Anchor = Literal["references", "target", "pool"]
Kind = Literal["sir", "mimr"]


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
        reward: (B,), differentiable to the pixels.
        cosines: a (M_i, N_i) matrix a sample, without gradient.
        n_faces: (B,) int, faces found.
        no_face: (B,) bool: nothing was found, so the reward is 0 and has no gradient.
        faces: the faces used, found or given.
    """

    reward: torch.Tensor
    cosines: list[torch.Tensor]
    n_faces: torch.Tensor
    no_face: torch.Tensor
    faces: list[list[Face]]


class MatchingReward:
    """SIR or MIMR of drawn pictures by one face model; `anchors` say what a drawn face is compared with."""

    def __init__(
        self, faces: FaceModel, kind: Kind = "mimr", lambda_match: float = 1.0, lambda_mismatch: float = -1.0
    ) -> None:
        """`lambda_match` and `lambda_mismatch` are lambda1 and lambda2 of the paper; SIR does not use them.

        An unknown kind or a face model without gradient raises ValueError.
        """
        if kind not in get_args(Kind):
            raise ValueError(f"reward {kind!r} is unknown: choose {' or '.join(get_args(Kind))}")
        if not faces.differentiable:
            raise ValueError(f"{faces.name} has no gradient: choose a differentiable face model for the reward")
        self.faces, self.kind = faces, kind
        self.lambda_match, self.lambda_mismatch = lambda_match, lambda_mismatch

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
        self, images: torch.Tensor, anchors: Sequence[torch.Tensor], faces: Sequence[Sequence[Face]] | None = None
    ) -> Reward:
        """Reward a batch with one call of the detector and one of the embedder.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            anchors: (M_i, d) a sample, from `embed_anchors`.
            faces: where the faces are, if known; the detector is then not asked.

        Raises ValueError where B differs, a sample has no anchor, or an embedding is not finite.
        """
        if len(images) != len(anchors) or not all(len(anchor) for anchor in anchors):
            raise ValueError(f"{len(images)} pictures need as many sets of anchors, none empty; got {len(anchors)}")
        if faces is not None and len(faces) != len(images):
            raise ValueError(f"{len(images)} pictures need as many lists of faces; got {len(faces)}")
        found = self.faces.detect(images.detach()) if faces is None else [list(seen) for seen in faces]
        sizes = [len(seen) for seen in found]
        embeddings = self.faces.embed(images, found)
        cosines, valid = padded_cosines([anchor.to(embeddings) for anchor in anchors], embeddings.split(sizes))
        weights = (self.lambda_match, self.lambda_mismatch)
        return Reward(
            reward=sir(cosines, valid) if self.kind == "sir" else mimr(cosines, valid, *weights),
            cosines=[cosines[i, : len(anchors[i]), : sizes[i]].detach() for i in range(len(sizes))],
            n_faces=torch.tensor(sizes),
            no_face=torch.tensor(sizes) == 0,
            faces=found,
        )
