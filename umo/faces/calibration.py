"""What a cosine means: strangers and the same person at the face sizes in use, measured and shipped.

A clean photo is the reference; another photo, scaled down as a whole until its face's box has the wanted side, is
the drawn face. It is detected again in the small photo, as a drawn face would be; where it is not found it is left
out and counted. Fitted on people outside the test split only: the CSV that the command reads decides who.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from umo.errors import BadInput
from umo.faces.base import Face, FaceModel
from umo.faces.pixels import unit
from umo.faces.weights import sha256
from umo.files import replacing
from umo.images import ImageError, read_image

SIDES = (112, 64, 48, 32)
SIDE_IN_USE = 64
FALSE_ACCEPT = 0.01
PERCENTILES = (1, 5, 50, 95, 99)
SHIPPED = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Calibration:
    """A model's calibration, and how many people and photos it was fitted on."""

    people: int
    photos: int
    files: dict[str, str]  # sha256 of each weight file by name
    mean: np.ndarray | None  # (d,) mean face vector in float64, to be subtracted before unit length, where needed
    sides: dict[int, dict[str, Any]]  # by face side in px, what `measure` returns

    @property
    def same_person_cosine(self) -> float:
        """At 64 px."""
        return self.same_person_cosine_at(SIDE_IN_USE)

    def same_person_cosine_at(self, side: float) -> float:
        """The threshold for drawn faces of this side in px; linear between the sides, constant outside them."""
        known = sorted(self.sides)
        return float(np.interp(side, known, [self.sides[px]["same_person_cosine"] for px in known]))


def load_calibration(path: Path) -> Calibration:
    """Read what `calibrate_command` wrote; BadInput where it is missing or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Calibration(
            people=content["people"],
            photos=content["photos"],
            files=content["files"],
            mean=None if content["mean"] is None else np.array(content["mean"], np.float64),
            sides={int(side): values for side, values in content["sides"].items()},
        )
    except OSError as error:
        raise BadInput(f"{path}: no calibration ({error.strerror}): run umo calibrate and name its file") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{path}: not a calibration ({error}): run umo calibrate again") from error


def find_calibration(name: str, path: Path | None = None, folder: Path = SHIPPED) -> Calibration:
    """The calibration at `path`, or the one of an adapter in a folder (those of this package are shipped)."""
    return load_calibration(path or folder / f"{name}.calibration.json")


def calibrate(model: FaceModel, photos: Sequence[tuple[np.ndarray, str]]) -> dict[str, Any]:
    """Measure a model on labelled photos with one main face each (the largest counts).

    Args:
        model: gives raw embeddings; one with `centred = True` gets a mean face vector.
        photos: (H, W, 3) uint8 RGB and the person; at least two photos of each of three people.

    Returns:
        What the JSON file holds, numbers rounded to 6 digits, the same for the same input.

    Raises BadInput where a face is found in too few photos.
    """
    clean = [(image, person, face) for image, person in photos if (face := _main_face(model, image)) is not None]
    people = np.array([person for _, person, _ in clean])
    names, counts = np.unique(people, return_counts=True)
    if len(names) < 3 or counts.max() < 2:
        raise BadInput(f"{len(clean)} photos of {len(names)} people have a face: 3 people, 2 photos each, are needed")
    reference = model.embed([image for image, _, _ in clean], [[face] for _, _, face in clean]).astype(np.float64)
    centred = bool(getattr(model, "centred", False))

    def at_side(side: int) -> dict[str, Any]:
        found, vectors = [], []
        for row, (image, _, face) in enumerate(clean):
            small = shrink(image, min(1.0, side / face.side))
            again = _main_face(model, small)
            if again is not None:
                found.append(row)
                vectors.append(model.embed([small], [[again]])[0])
        drawn = np.array(vectors, np.float64).reshape(-1, reference.shape[1])
        return measure(*cosines(people, reference, np.array(found, int), drawn, centred), found=len(found) / len(clean))

    mean = np.mean([reference[people == name].mean(0) for name in names], axis=0)
    return {
        "faces": model.name,
        "people": len(names),
        "photos": len(clean),
        "without_face": len(photos) - len(clean),
        "files": {path.name: sha256(path) for path in model.files},
        "false_accept": FALSE_ACCEPT,
        "mean": [round(float(value), 6) for value in mean] if centred else None,
        "sides": {str(side): at_side(side) for side in SIDES},
    }


def _main_face(model: FaceModel, image: np.ndarray) -> Face | None:
    (faces,) = model.detect([image])
    return max(faces, key=lambda face: face.side, default=None)


def shrink(image: np.ndarray, factor: float) -> np.ndarray:
    """The whole photo scaled by a factor of at most 1, each pixel the mean of those it covers."""
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def cosines(
    people: np.ndarray, reference: np.ndarray, rows: np.ndarray, drawn: np.ndarray, centred: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of strangers and of the same person, never of a photo with itself.

    A mean that holds a pair's own faces would push strangers below 0 (24 people: by .04), so each pair of people is
    centred on the mean of all others; the shipped mean is of all.

    Args:
        people: (n,) of each clean photo.
        reference: (n, d) unit vectors of the clean photos.
        rows: (m,) the clean photo of each drawn face.
        drawn: (m, d) unit vectors.
        centred: whether to subtract a mean.
    """
    names = np.unique(people)
    means = np.array([reference[people == name].mean(0) for name in names])
    strangers, same = [], []
    for a, first in enumerate(names):
        for b, second in enumerate(names):
            left, right = np.flatnonzero(people == first), np.flatnonzero(people[rows] == second)
            others = np.setdiff1d(np.arange(len(names)), [a, b])
            mean = means[others].mean(0) if centred else np.zeros(reference.shape[1])
            values = unit(reference[left] - mean) @ unit(drawn[right] - mean).T
            if a != b:
                strangers.append(values.ravel())
            else:
                same.append(values[left[:, None] != rows[right][None]])
    return np.concatenate(strangers), np.concatenate(same)


def measure(strangers: np.ndarray, same: np.ndarray, found: float) -> dict[str, Any]:
    """Two sets of cosines -> mean, std and percentiles of each, the threshold, its true accepts, and the AUC."""
    if not len(strangers) or not len(same):
        raise BadInput("no pair of faces is left at this size: give larger photos, or more of them")
    threshold = round(float(np.quantile(strangers, 1 - FALSE_ACCEPT)), 6)
    both = np.concatenate([strangers, same])
    _, inverse, counts = np.unique(both, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # equal cosines share their mean rank
    auc = (ranks[len(strangers) :].mean() - (len(same) + 1) / 2) / len(strangers)
    return {
        "found": round(found, 6),
        "strangers": _spread(strangers),
        "same": _spread(same),
        "same_person_cosine": threshold,
        "true_accept": round(float(np.mean(same >= threshold)), 6),
        "auc": round(float(auc), 6),
    }


def _spread(values: np.ndarray) -> dict[str, float]:
    spread = {"n": len(values), "mean": round(float(values.mean()), 6), "std": round(float(values.std()), 6)}
    return spread | {f"p{p}": round(float(np.percentile(values, p)), 6) for p in PERCENTILES}


def calibrate_command(photos_csv: Path, faces: str, out: Path) -> None:
    """Calibrate a face model on the photos of a CSV (columns path, person; paths relative to it) and write JSON.

    Photos should show some surroundings: a crop as tight as the face must be padded before. What cannot be used raises
    BadInput with its line.
    """
    from umo.faces import load

    photos = list(_read_photos(photos_csv))
    print(f"{photos_csv}: {len(photos)} photos of {len({person for _, person in photos})} people, {faces}", flush=True)
    result = calibrate(load(faces, calibrated=False), photos)
    print("  side  found  strangers      same           same_person_cosine  true accept  AUC")
    for side, row in result["sides"].items():
        spreads = "  ".join(f"{row[key]['mean']:+.3f} ±{row[key]['std']:.3f}" for key in ("strangers", "same"))
        numbers = f"{row['same_person_cosine']:18.3f}  {row['true_accept']:11.4f}  {row['auc']:.5f}"
        print(f"  {side:>4}  {row['found']:5.3f}  {spreads}  {numbers}")
    write_calibration(result, out)
    print(f"wrote {out}")


def write_calibration(result: dict[str, Any], out: Path) -> None:
    """Write the JSON in one step: a reader sees the old file or the whole new one."""
    with replacing(out, several=True) as temporary:
        temporary.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _read_photos(path: Path) -> Iterator[tuple[np.ndarray, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({error}): give a CSV with columns path,person") from error
    for line, row in enumerate(rows, start=2):
        if not row.get("path") or not row.get("person"):
            raise BadInput(f"{path}: line {line}: path and person are needed: give a CSV with columns path,person")
        try:
            yield read_image(path.parent / row["path"]), row["person"]
        except ImageError as error:
            raise BadInput(f"{path}: line {line}: {row['path']}: {error}") from error
