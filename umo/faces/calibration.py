"""What a cosine means: strangers and the same person at the face sizes in use, measured and shipped.

A clean photo is the reference; another photo, scaled down as a whole until its face's box has the wanted side, is
the drawn face. It is detected again in the small photo, as a drawn face would be; where it is not found it is left
out and counted. Fitted on people outside the test split only: the CSV that the command reads decides who.

No group outweighs another, however many of its people the photographs show: men and women weigh alike, and among each
grey and coloured photographs.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from umo.errors import BadInput
from umo.faces.base import Face, FaceModel
from umo.faces.pixels import unit
from umo.faces.weights import sha256
from umo.files import replacing
from umo.images import ImageError, read_image
from umo.texts import fault, read_json, read_text

SIDES = (112, 64, 48, 32)
SIDE_IN_USE = 64
FALSE_ACCEPT = 0.001
PERCENTILES = (1, 5, 50, 95, 99)
ENOUGH = 10  # people: fewer are no group of their own
RESAMPLES = 500
GREY_LEVELS = 4.0  # a picture whose channels differ by less, on average of 255, is grey
SHIPPED = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Calibration:
    """A model's calibration, and how many people and photos it was fitted on."""

    people: int
    photos: int
    files: dict[str, str]  # sha256 of each weight file by name
    mean: np.ndarray | None  # (d,) mean face vector in float64, to be subtracted before unit length, where needed
    sides: dict[int, dict[str, Any]]  # by face side in px, what `Pairs.summary` returns
    holds_for: dict[str, dict[str, Any]]  # by stratum, what `Pairs.by_stratum` returns; empty in a file of before

    @property
    def same_person_cosine(self) -> float:
        """At 64 px."""
        return self.same_person_cosine_at(SIDE_IN_USE)

    def percentile(self, pairs: Literal["strangers", "same"], percent: int) -> float:
        """The cosine that so many of 100 pairs stay below, of `PERCENTILES`; at 64 px."""
        return float(self.sides[SIDE_IN_USE][pairs][f"p{percent}"])

    def described(self) -> dict[str, Any]:
        """On whom it was fitted, for those who read a score."""
        return {
            "people": self.people,
            "photos": self.photos,
            "same_person_cosine_interval": self.sides.get(SIDE_IN_USE, {}).get("interval"),
            "people_by_kind": {stratum: found["people"] for stratum, found in self.holds_for.items()},
        }

    def same_person_cosine_at(self, side: float) -> float:
        """The threshold for drawn faces of this side in px; linear between the sides, constant outside them."""
        known = sorted(self.sides)
        return float(np.interp(side, known, [self.sides[px]["same_person_cosine"] for px in known]))


def load_calibration(path: Path, files: Sequence[Path] = ()) -> Calibration:
    """Read what `calibrate_command` wrote.

    Raises BadInput where it is missing, something else, or was fitted with other weights than these files.
    """
    try:
        content = read_json(path)
        found = Calibration(
            people=content["people"],
            photos=content["photos"],
            files=content["files"],
            mean=None if content["mean"] is None else np.array(content["mean"], np.float64),
            sides={int(side): values for side, values in content["sides"].items()},
            holds_for=content.get("holds_for", {}),
        )
        found.described(), found.same_person_cosine, found.files.items()  # what will be asked of it
    except OSError as error:
        raise BadInput(f"{path}: no calibration ({error.strerror}): run umo calibrate and name its file") from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise BadInput(f"{path}: not a calibration ({error}): run umo calibrate again") from error
    for file in files:
        if found.files.get(file.name) != sha256(file):
            raise BadInput(f"{path}: a calibration of other weights than {file}: run umo calibrate with these")
    return found


@dataclass(frozen=True, slots=True)
class Photo:
    """(H, W, 3) uint8 RGB with one main face, the largest; who it is, and the sex where it is known."""

    image: np.ndarray
    person: str
    sex: str = ""

    @property
    def stratum(self) -> str:
        """Such as "women, colour"; "grey" where the sex is not known."""
        spread = self.image.max(-1).astype(float) - self.image.min(-1)
        kind = "grey" if spread.mean() < GREY_LEVELS else "colour"
        return f"{self.sex}, {kind}" if self.sex else kind


def calibrate(model: FaceModel, photos: Sequence[Photo], held_out: Sequence[Photo] = ()) -> dict[str, Any]:
    """Measure a model on labelled photos.

    Args:
        model: gives raw embeddings; one with `centred = True` gets a mean face vector.
        photos: at least two of each of three people.
        held_out: of other people, on whom the threshold is tried.

    Returns:
        What the JSON file holds, numbers rounded to 6 digits, the same for the same input.

    Raises BadInput where a face is found in too few photos.
    """
    clean = [(photo, face) for photo in photos if (face := _main_face(model, photo.image)) is not None]
    names, counts = np.unique([photo.person for photo, _ in clean], return_counts=True)
    if len(names) < 3 or counts.max() < 2:
        raise BadInput(f"{len(clean)} photos of {len(names)} people have a face: 3 people, 2 photos each, are needed")
    if both := sorted({photo.person for photo in photos} & {photo.person for photo in held_out}):
        raise BadInput(f"{both[0]} is among the photographs to fit and among those held out: leave one out")
    people = People(model, clean, bool(getattr(model, "centred", False)))
    sides = {side: people.at(side) for side in SIDES}
    threshold = sides[SIDE_IN_USE].threshold()
    mean = people.mean() if people.centred else None
    result = {
        "faces": model.name,
        "people": len(names),
        "photos": len(clean),
        "without_face": len(photos) - len(clean),
        "files": {path.name: sha256(path) for path in model.files},
        "false_accept": FALSE_ACCEPT,
        "mean": None if mean is None else [round(float(value), 6) for value in mean],
        "sides": {str(side): pairs.summary() for side, pairs in sides.items()},
        "holds_for": sides[SIDE_IN_USE].by_stratum(threshold),
    }
    if held_out:
        seen = [(photo, face) for photo in held_out if (face := _main_face(model, photo.image)) is not None]
        others = People(model, seen, people.centred, mean)
        result["held_out"] = others.at(SIDE_IN_USE).by_stratum(threshold) | {"without_face": len(held_out) - len(seen)}
    return result


class People:
    """Embedded photographs of known people, and the groups that they belong to.

    Args:
        clean: photographs with their faces.
        mean: subtracted where the model is centred; without one, each pair of people is centred on the mean of all
            others, since one that holds a pair's own faces would push strangers below 0 (24 people: by .04).
    """

    def __init__(
        self, model: FaceModel, clean: Sequence[tuple[Photo, Face]], centred: bool, mean: np.ndarray | None = None
    ) -> None:
        self.model, self.clean, self.centred, self.given = model, clean, centred, mean
        images, faces = [photo.image for photo, _ in clean], [[face] for _, face in clean]
        self.vectors = model.embed(images, faces).astype(np.float64)
        self.person = np.array([photo.person for photo, _ in clean])
        self.names, self.number = np.unique(self.person, return_inverse=True)
        first = [clean[int(np.argmax(self.number == at))][0] for at in range(len(self.names))]
        self.strata = np.array([photo.stratum for photo in first])
        self.sexes = np.array([photo.sex for photo in first])
        self.groups = self._groups()
        self.own_means = np.array([self.vectors[self.number == at].mean(0) for at in range(len(self.names))])

    def _groups(self) -> np.ndarray:
        """(people,) the stratum of each, or, where that has too few people, only the sex."""
        sizes = dict(zip(*np.unique(self.strata, return_counts=True), strict=True))
        small = {sex for sex, stratum in zip(self.sexes, self.strata, strict=True) if sizes[stratum] < ENOUGH}
        return np.where(np.isin(self.sexes, sorted(small)), self.sexes, self.strata)

    def mean(self, without: Sequence[int] = ()) -> np.ndarray:
        """(d,) the mean face: of people in a group, of groups in a sex, of the sexes; some people left out."""
        kept = np.setdiff1d(np.arange(len(self.names)), without)

        def of(sex: str) -> np.ndarray:
            rows = kept[self.sexes[kept] == sex]
            return np.mean(
                [self.own_means[rows[self.groups[rows] == g]].mean(0) for g in np.unique(self.groups[rows])], 0
            )

        return np.mean([of(sex) for sex in np.unique(self.sexes[kept])], axis=0)

    def at(self, side: int) -> Pairs:
        """Every clean photo against every other with its face scaled down to a side in px."""
        found, vectors = [], []
        for row, (photo, face) in enumerate(self.clean):
            small = shrink(photo.image, min(1.0, side / face.side))
            again = _main_face(self.model, small)
            if again is not None:
                found.append(row)
                vectors.append(self.model.embed([small], [[again]])[0])
        drawn = np.array(vectors, np.float64).reshape(-1, self.vectors.shape[1])
        rows = np.array(found, int)
        parts = []
        for a, b in product(range(len(self.names)), repeat=2):
            left, right = np.flatnonzero(self.number == a), np.flatnonzero(self.number[rows] == b)
            mean = self._centre(a, b)
            values = unit(self.vectors[left] - mean) @ unit(drawn[right] - mean).T
            other = left[:, None] != rows[right][None]  # never a photo with itself
            parts.append((np.full(other.sum(), a), np.full(other.sum(), b), values[other]))
        first, second, cosines = (np.concatenate(part) for part in zip(*parts, strict=True))
        return Pairs(self, first, second, cosines, len(found) / len(self.clean))

    def _centre(self, a: int, b: int) -> np.ndarray:
        if not self.centred:
            return np.zeros(self.vectors.shape[1])
        return self.mean(without=(a, b)) if self.given is None else self.given


class Pairs:
    """Cosines of pairs of photographs: (n,) of `first` and `second`, indices of people."""

    def __init__(
        self, people: People, first: np.ndarray, second: np.ndarray, cosines: np.ndarray, found: float
    ) -> None:
        if not (first == second).any() or not (first != second).any():
            raise BadInput("no pair of faces is left at this size: give larger photos, or more of them")
        self.people, self.first, self.second, self.cosines, self.found = people, first, second, cosines, found
        self.same = first == second
        self.weights = np.empty(len(cosines))
        for kind in (
            self.same,
            ~self.same,
        ):  # groups alike, in them pairs of people alike, in them pairs of photographs
            cells = np.stack([people.groups[first[kind]], people.groups[second[kind]]])
            pairs = first[kind] * len(people.names) + second[kind]
            _, pair, photos = np.unique(pairs, return_inverse=True, return_counts=True)
            _, cell, total = np.unique(cells, axis=1, return_inverse=True, return_counts=True)
            of_pair = 1 / photos[pair]
            self.weights[kind] = of_pair / np.bincount(cell.ravel(), of_pair)[cell.ravel()] / len(total)

    def threshold(self, multiples: np.ndarray | None = None) -> float:
        """The least cosine that at most .1 % of strangers pass, and not below the middle between their 99th and the
        same person's 1st percentile.

        Args:
            multiples: (people,) how often each counts; once without.
        """
        weights = self.weights if multiples is None else self.weights * multiples[self.first] * multiples[self.second]
        strangers, same = ((self.cosines[kind], weights[kind]) for kind in (~self.same, self.same))
        middle = (quantile(*strangers, 0.99) + quantile(*same, 0.01)) / 2
        return max(quantile(*strangers, 1 - FALSE_ACCEPT) + 1e-6, middle)  # one that is as high as this one passes

    def interval(self) -> tuple[float, float]:
        """95 % interval of the threshold: people drawn with replacement."""
        generator, count = np.random.default_rng(0), len(self.people.names)
        drawn = generator.multinomial(count, np.full(count, 1 / count), RESAMPLES)
        low, high = np.percentile([self.threshold(multiples) for multiples in drawn], [2.5, 97.5])
        return round(float(low), 6), round(float(high), 6)

    def summary(self) -> dict[str, Any]:
        """Mean, std and percentiles of strangers and of the same person, the threshold, what passes it, and the AUC."""
        threshold = round(self.threshold(), 6)
        (strangers, others), (same, own) = (
            (self.cosines[kind], self.weights[kind] / self.weights[kind].sum()) for kind in (~self.same, self.same)
        )
        order = np.argsort(strangers, kind="stable")
        below = np.r_[0, np.cumsum(others[order])]
        ranks = [np.searchsorted(strangers[order], same, side=side) for side in ("left", "right")]
        auc = float(own @ (below[ranks[0]] + below[ranks[1]])) / 2
        return {
            "found": round(self.found, 6),
            "strangers": _spread(strangers, others),
            "same": _spread(same, own),
            "same_person_cosine": threshold,
            "interval": self.interval(),
            "false_accept": round(float(others @ (strangers >= threshold)), 6),
            "true_accept": round(float(own @ (same >= threshold)), 6),
            "auc": round(auc, 6),
        }

    def by_stratum(self, threshold: float) -> dict[str, Any]:
        """Of each stratum how many strangers of it pass, and how many of its people's other photographs."""
        return {
            stratum: self._within(self.people.strata == stratum, threshold) for stratum in np.unique(self.people.strata)
        }

    def _within(self, members: np.ndarray, threshold: float) -> dict[str, Any]:
        inside = members[self.first] & members[self.second]
        result: dict[str, Any] = {"people": int(members.sum())}
        for name, kind in (("strangers", inside & ~self.same), ("same", inside & self.same)):
            pairs = np.unique(np.stack([self.first[kind], self.second[kind]]), axis=1).shape[1]
            passed = self.cosines[kind] >= threshold
            result[name] = {
                "people_pairs" if name == "strangers" else "people": pairs // 2 if name == "strangers" else pairs,
                "photo_pairs": int(kind.sum()),
                "accepted": round(float(passed.mean()), 6) if len(passed) else None,
                "interval": self._share(kind, passed),
            }
        return result

    def _share(self, kind: np.ndarray, passed: np.ndarray) -> tuple[float, float] | None:
        """95 % interval of a share, people drawn with replacement; none or all pass: the rule of three on people."""
        if not len(passed):
            return None
        first, second = self.first[kind], self.second[kind]
        members = np.unique(first)
        if passed.all() or not passed.any():
            unseen = min(1.0, 3 / len(members))
            return (round(1 - unseen, 6), 1.0) if passed.all() else (0.0, round(unseen, 6))
        generator = np.random.default_rng(0)
        shares = []
        for drawn in generator.multinomial(len(members), np.full(len(members), 1 / len(members)), RESAMPLES):
            multiples = np.zeros(len(self.people.names))
            multiples[members] = drawn
            weights = multiples[first] * (multiples[second] if (first != second).any() else 1)
            if weights.sum():
                shares.append(weights @ passed / weights.sum())
        low, high = np.percentile(shares, [2.5, 97.5])
        return round(float(low), 6), round(float(high), 6)


def channel_test(model: FaceModel, photos: Sequence[Photo]) -> dict[str, Any] | None:
    """Whether a model tells people apart better with red and blue swapped: then it reads colours in the other order.

    Returns:
        {"people", "as_read", "swapped"}, how many standard deviations apart strangers and the same person are; over
        colour photographs, each against each. None where they show fewer than three people, or nobody twice.
    """
    coloured = [photo for photo in photos if photo.stratum.endswith("colour")]
    clean = [(photo, face) for photo in coloured if (face := _main_face(model, photo.image)) is not None]
    names, number = np.unique([photo.person for photo, _ in clean], return_inverse=True)
    if len(names) < 3 or len(names) == len(clean):
        return None
    first, second = np.triu_indices(len(clean), 1)
    same = number[first] == number[second]
    found: dict[str, Any] = {"people": len(names)}
    for how, order in (("as_read", slice(None)), ("swapped", slice(None, None, -1))):
        images = [np.ascontiguousarray(photo.image[..., order]) for photo, _ in clean]
        vectors = model.embed(images, [[face] for _, face in clean]).astype(np.float64)
        vectors = unit(vectors - vectors.mean(axis=0)) if getattr(model, "centred", False) else vectors
        cosines = (vectors @ vectors.T)[first, second]
        spread = np.sqrt((cosines[same].var() + cosines[~same].var()) / 2)
        found[how] = round(float((cosines[same].mean() - cosines[~same].mean()) / max(spread, 1e-9)), 6)
    return found


def quantile(values: np.ndarray, weights: np.ndarray, share: float) -> float:
    """The least value that at least `share` of the weight does not exceed."""
    order = np.argsort(values, kind="stable")
    total = np.cumsum(weights[order])
    return float(values[order][min(np.searchsorted(total, share * total[-1]), len(values) - 1)])


def _main_face(model: FaceModel, image: np.ndarray) -> Face | None:
    (faces,) = model.detect([image])
    return max(faces, key=lambda face: face.side, default=None)


def shrink(image: np.ndarray, factor: float) -> np.ndarray:
    """The whole photo scaled by a factor of at most 1, each pixel the mean of those it covers."""
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _spread(values: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    mean = float(weights @ values)
    std = float(np.sqrt(weights @ (values - mean) ** 2))
    spread = {"n": len(values), "mean": round(mean, 6), "std": round(std, 6)}
    return spread | {f"p{p}": round(quantile(values, weights, p / 100), 6) for p in PERCENTILES}


def calibrate_command(photos_csv: Path, faces: str, out: Path, held_out_csv: Path | None = None) -> None:
    """Calibrate a face model on the photos of a CSV and write JSON.

    Its columns are path (relative to it), person and, where it is known, sex; the people held out are in another.
    Photos should show some surroundings: a crop as tight as the face must be padded. What cannot be used raises
    BadInput with its line.
    """
    from umo.faces import load_named

    photos = list(_read_photos(photos_csv))
    held_out = list(_read_photos(held_out_csv)) if held_out_csv else []
    print(
        f"{photos_csv}: {len(photos)} photos of {len({photo.person for photo in photos})} people, {faces}", flush=True
    )
    model = load_named(faces, calibrated=False)
    result = calibrate(model, photos, held_out) | {"channels": channel_test(model, photos)}
    print("  side  found  strangers      same           same_person_cosine      accepted: strangers, same  AUC")
    for side, row in result["sides"].items():
        spreads = "  ".join(f"{row[key]['mean']:+.3f} ±{row[key]['std']:.3f}" for key in ("strangers", "same"))
        low, high = row["interval"]
        numbers = f"{row['same_person_cosine']:.3f} [{low:.3f}, {high:.3f}]"
        print(f"  {side:>4}  {row['found']:5.3f}  {spreads}  {numbers:22}", end="")
        print(f"  {row['false_accept']:17.4f}, {row['true_accept']:.4f}  {row['auc']:.5f}")
    for part in ("holds_for", "held_out"):
        for stratum, found in result.get(part, {}).items():
            if stratum != "without_face":
                print(f"  {part.replace('_', ' ')}: {stratum}: {found['people']} people; accepted " + _accepted(found))
    if (channels := result["channels"]) and channels["swapped"] > channels["as_read"]:
        print(
            f"warning: {faces} tells {channels['people']} people in colour apart better with red and blue swapped "
            f"({channels['swapped']:.2f} standard deviations, {channels['as_read']:.2f} as it is): check the file"
        )
    write_calibration(result, out)
    print(f"wrote {out}")


def _accepted(found: dict[str, Any]) -> str:
    def one(name: str) -> str:
        shares = found[name]
        if shares["accepted"] is None:
            return f"{name}: no pair"
        low, high = shares["interval"]
        return f"{name} {shares['accepted']:.4f} [{low:.4f}, {high:.4f}] of {shares['photo_pairs']} pairs"

    return f"{one('strangers')}; {one('same')}"


def write_calibration(result: dict[str, Any], out: Path) -> None:
    """Write the JSON in one step: a reader sees the old file or the whole new one."""
    with replacing(out, several=True) as temporary:
        temporary.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _read_photos(path: Path) -> Iterator[Photo]:
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path), newline="")))
    except (OSError, csv.Error) as error:
        raise BadInput(f"{path}: cannot be read ({error}): give a CSV with columns path,person") from error
    for line, row in enumerate(rows, start=2):
        if not row.get("path") or not row.get("person"):
            raise BadInput(f"{path}: line {line}: path and person are needed: give a CSV with columns path,person")
        if bad := fault(row["path"], name=True) or fault(row["person"], name=True):
            raise BadInput(f"{path}: line {line}: {bad}: correct it")
        try:
            yield Photo(read_image(path.parent / row["path"]), row["person"], row.get("sex") or "")
        except ImageError as error:
            raise BadInput(f"{path}: line {line}: {row['path']}: {error}") from error
