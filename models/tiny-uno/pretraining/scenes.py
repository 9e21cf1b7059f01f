"""Training scenes without end: the exported photographs of the train split, morphed in pairs, composited on the fly.

The compositor is that of `pipelines/synthesise`; what differs is that an identity may be a morph of two people, and
that scenes begin easy: a face drawn at the scale of its reference and on the same patch grid is a copy of patches,
which is learned first. Nothing here reads another split's photographs.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from umo.errors import BadInput
from umo.scenes import compositing
from umo.scenes.compositing import Light
from umo.scenes.prompts import COLOURS, TEXTURES, prompt

PATCH = 8  # pixels a token covers
_SWAPPED = [1, 0, 2, 4, 3]  # landmarks of a mirrored face


@dataclass(frozen=True)
class Photo:
    """A person's square crop (S, S, 3) uint8 and its landmarks (5, 2) in pixels."""

    image: np.ndarray
    landmarks: np.ndarray

    def mirrored(self) -> "Photo":
        flipped = self.landmarks[_SWAPPED].copy()
        flipped[:, 0] = self.image.shape[1] - 1 - flipped[:, 0]
        return Photo(self.image[:, ::-1], flipped)


@dataclass(frozen=True)
class Scene:
    """One training example.

    Attributes:
        target: (H, W, 3) uint8.
        references: (H, H, 3) uint8 each, in the prompt's order.
        heads: (H, W) float32 in [0, 1]: where the people are.
    """

    prompt: str
    target: np.ndarray
    references: list[np.ndarray]
    heads: np.ndarray


@dataclass(frozen=True)
class Ease:
    """How near to a plain copy scenes are.

    Attributes:
        freedom: 0 draws a face at its reference's scale, upright as there, on its patch grid; 1 anywhere.
        same_photo: share of people whose reference is the very photograph in the scene.
    """

    freedom: float
    same_photo: float


def exported(folder: Path, split: str) -> list[dict[str, Any]]:
    """The exported sets of a split.

    Raises:
        BadInput: there are none.
    """
    files = sorted(folder.glob(f"{split}-*.parquet"))
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    if not rows:
        raise BadInput(f"{folder}: no {split} sets; run dvc repro export")
    return rows


def photos_of_people(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Photo]]:
    """person_id -> photograph's name -> photograph, references and pools alike, in a fixed order."""
    people: dict[str, dict[str, Photo]] = {}
    for row in rows:
        for k, person in enumerate(row["person_ids"]):
            images = [row["references"][k], *row["pool"][k]]
            places = [row["reference_landmarks"][k], *row["pool_landmarks"][k]]
            for image, place in zip(images, places, strict=True):
                known = people.setdefault(person, {})
                if image["path"] not in known:
                    known[image["path"]] = Photo(decode(image["bytes"]), np.reshape(place, (5, 2)))
    return {person: dict(sorted(people[person].items())) for person in sorted(people)}


def decode(data: bytes) -> np.ndarray:
    """(H, W, 3) uint8."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def shrink(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """To (height, width), as a customizer scales its references."""
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS))


def morphed(a: Photo, b: Photo, share: float) -> Photo:
    """A person between two: b laid on a by the landmarks, `share` of it."""
    centre, scale, roll = compositing.head_frame(a.landmarks)
    turn = float(np.degrees(roll - compositing.head_frame(b.landmarks)[2]))
    matrix = compositing.placement(b.landmarks, (float(centre[0]), float(centre[1])), scale, turn)
    size = a.image.shape[1::-1]
    laid = cv2.warpAffine(b.image, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    landmarks = (1 - share) * a.landmarks + share * compositing.transform(b.landmarks, matrix)
    return Photo(cv2.addWeighted(a.image, 1 - share, laid, share, 0), landmarks)


class Scenes:
    """Draws scenes of the people given to it, each from its own random generator."""

    def __init__(self, people: Sequence[Sequence[Photo]], params: Any) -> None:
        self.people, self.params = people, params

    def draw(self, n: int, width: int, ease: Ease, rng: np.random.Generator) -> Scene:
        """A scene of n people, left to right (see `reorder`)."""
        height = self.params.height
        ground = f"{rng.choice(TEXTURES)} {rng.choice(list(COLOURS))}"
        scene = compositing.background(ground, (height, width), rng)
        heads = np.zeros((height, width), np.float32)
        references, centres = [], []
        for position, person in enumerate(self._identities(n, ease, rng)):
            reference, photo = person
            small = height / reference.image.shape[0]
            matrix, centre = self._place(reference.landmarks * small, photo, position, n, width, ease, rng)
            scene = compositing.place_face(scene, photo.image, photo.landmarks, matrix, self._light(rng))
            mask = compositing.head_mask(compositing.transform(photo.landmarks, matrix), (height, width))
            heads = np.maximum(heads, mask[..., 0])
            references.append(shrink(reference.image, (height, height)))
            centres.append(centre / width)
        order = list(rng.permutation(n)) if rng.random() < self.params.reorder else list(range(n))
        words = prompt([centres[k] for k in order], ground)
        return Scene(words, scene.round().astype(np.uint8), [references[k] for k in order], heads)

    def _identities(self, n: int, ease: Ease, rng: np.random.Generator) -> Iterator[tuple[Photo, Photo]]:
        """(reference, photograph in the scene) of n people who share nobody."""
        chosen = rng.permutation(len(self.people))[: 2 * n]
        for first, second in zip(chosen[0::2], chosen[1::2], strict=True):
            share = rng.uniform(0.15, 0.5) if rng.random() < self.params.morph else 0.0
            mirror = rng.random() < 0.5
            a, b = (self._two(self.people[k], rng.random() < ease.same_photo, rng) for k in (first, second))
            pair = [morphed(x, y, share) if share else x for x, y in zip(a, b, strict=True)]
            reference, photo = (one.mirrored() for one in pair) if mirror else pair
            yield reference, photo

    @staticmethod
    def _two(photos: Sequence[Photo], same: bool, rng: np.random.Generator) -> tuple[Photo, Photo]:
        first, second = rng.permutation(len(photos))[:2] if len(photos) > 1 else (0, 0)
        return photos[first], photos[first if same else second]

    def _place(
        self, there: np.ndarray, photo: Photo, position: int, n: int, width: int, ease: Ease, rng: np.random.Generator
    ) -> tuple[np.ndarray, float]:
        """Where a head goes: at freedom 0 exactly where its reference would copy to, in the person's slot.

        A slot is as wide as a reference (its side is the scene's height), so that, with UNO's diagonal position ids,
        every person's patches lie at the same horizontal distance from their reference's: one rule to learn for all.

        Args:
            there: the reference's landmarks at the size the base sees it.
        """
        params, free = self.params, ease.freedom
        origin, own_scale, own_roll = compositing.head_frame(there)
        scale = free * rng.uniform(params.min_scale, params.max_scale) * params.height + (1 - free) * own_scale
        x_low, x_high = width * position / n + 1.35 * scale, width * (position + 1) / n - 1.35 * scale
        y_low, y_high = 1.9 * scale, params.height - 1.35 * scale
        centre = np.array([rng.uniform(x_low, max(x_low, x_high)), rng.uniform(min(y_low, y_high), y_high)])
        slots = width // params.height
        first = rng.integers(2 * (slots - 1) + 1) / 2 if n == 1 else position * (slots - 1) / (n - 1)
        in_slot = origin + np.array([first * params.height // PATCH * PATCH, 0])
        centre = free * centre + (1 - free) * in_slot
        upright = float(np.degrees(own_roll - compositing.head_frame(photo.landmarks)[2]))
        roll = free * rng.uniform(-params.max_roll, params.max_roll) + (1 - free) * upright
        matrix = compositing.placement(photo.landmarks, (float(centre[0]), float(centre[1])), float(scale), roll)
        return matrix, float(centre[0])

    def _light(self, rng: np.random.Generator) -> Light:
        most = self.params.max_light
        red, green, blue = 1 + rng.uniform(-most, most, 3) / 2
        return Light(1 + rng.uniform(-most, most), (red, green, blue), rng.uniform(-most, most))
