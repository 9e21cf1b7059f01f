"""Judges: which face models they are, and what each sees in the pictures of the cases.

A judge is a face model that neither curated the training data nor rewarded the training. It looks at a picture once,
however many cases name it; what it saw is kept beside the results, so that a killed evaluation goes on where it was.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from tqdm import tqdm

from umo import faces
from umo.errors import BadInput
from umo.faces.base import FaceModel
from umo.faces.weights import sha256
from umo.files import replacing
from umo.images import MAX_PIXELS, ImageError, read_image

PICTURES_AT_ONCE = 16
A_SHARD = 32  # pictures that a process looks at between two reports
NO_FACE = "no face found: choose a photograph with a visible face"


@dataclass(frozen=True, slots=True)
class Spec:
    """A judge by its name, for processes to load: a key of `umo.faces.MODELS`, an insightface folder, or a recogniser.

    Attributes:
        judge: as `umo evaluate --judge` takes it.
        device: cpu, cuda, cuda:1, ...
        calibration: a file of `umo calibrate` instead of the judge's own.
    """

    judge: str
    device: str = "cpu"
    calibration: Path | None = None

    def load(self, device: str | None = None) -> FaceModel:
        return faces.load_named(self.judge, device or self.device, calibration=self.calibration)


def refuse_shared(judge: FaceModel, others: Iterable[str]) -> None:
    """Refuse a judge whose embedder rewarded or curated, under whatever name.

    Raises:
        BadInput: it did.
    """
    for name in others:
        if sha256(faces.load_named(name).embedder) == sha256(judge.embedder):
            raise BadInput(
                f"judge {judge.name}: its network is that of {name}, which rewarded or curated; choose another"
            )


def identity(judge: FaceModel) -> dict[str, Any]:
    """What makes two evaluations comparable: the judge's name, weight files, threshold and mean face; its licence, and
    on whom it was calibrated."""
    mean = getattr(judge, "mean", None)
    return {
        "name": judge.name,
        "files": {path.name: sha256(path) for path in judge.files},
        "same_person_cosine": judge.same_person_cosine,
        "mean_face": None if mean is None else hashlib.sha256(np.ascontiguousarray(mean).tobytes()).hexdigest(),
        "licence": judge.licence,
        "calibration": judge.calibration and judge.calibration.described(),
    }


@dataclass(frozen=True, slots=True)
class Seen:
    """What a judge saw in one picture: N faces, their embeddings (N, d), or why the picture cannot be used."""

    boxes: np.ndarray
    sides: np.ndarray
    embeddings: np.ndarray
    error: str | None = None

    def main(self) -> np.ndarray:
        """(d,) embedding of the largest face, as OmniContext takes it from a reference.

        Raises:
            ImageError: the picture is unreadable or shows no face.
        """
        if self.error or not len(self.sides):
            raise ImageError(self.error or NO_FACE)
        return self.embeddings[int(self.sides.argmax())]


class Gallery:
    """Pictures as one judge sees them, each looked at once however often it is named.

    Args:
        root: what paths are relative to.
        seen: by the pictures' sha256, what this judge saw earlier.
        kept: a folder where it writes down what it sees, and looks first.
        max_pixels: a larger picture is refused before it is decoded.
    """

    def __init__(
        self,
        judge: FaceModel,
        root: Path,
        seen: Mapping[str, Seen] = MappingProxyType({}),
        kept: Path | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.judge, self.root, self.kept, self.max_pixels = judge, root, kept, max_pixels
        self.seen = dict(seen)
        self._digests: dict[str, str] = {}

    def source(self, path: str) -> Path | bytes:
        """The picture's file, or its bytes."""
        return self.root / path

    def digest(self, path: str) -> str:
        """sha256 of the picture's bytes; a name of its own where it cannot be read."""
        if path not in self._digests:
            source = self.source(path)
            try:
                data = source if isinstance(source, bytes) else source.read_bytes()
                self._digests[path] = hashlib.sha256(data).hexdigest()
            except OSError:
                self._digests[path] = hashlib.sha256(os.fsencode(f"unreadable {path}")).hexdigest()
        return self._digests[path]

    def new(self, paths: Iterable[str]) -> dict[str, str]:
        """Those of the paths, by digest, at which it has not looked."""
        return {
            digest: path
            for path in paths
            if (digest := self.digest(path)) not in self.seen and not self._recall(digest)
        }

    def look(self, paths: Iterable[str]) -> None:
        """Detect and embed those not seen before, a few pictures at a time; the next are decoded meanwhile."""
        parts = in_parts(list(self.new(paths).items()), PICTURES_AT_ONCE)
        if not parts:
            return
        with ThreadPoolExecutor(1) as decoder:
            coming = decoder.submit(self._read, parts[0])
            for following in [*parts[1:], []]:
                pictures, coming = coming.result(), decoder.submit(self._read, following)
                if pictures:
                    self._embed(pictures)

    def _read(self, part: Sequence[tuple[str, str]]) -> dict[str, np.ndarray]:
        pictures = {}
        for digest, path in part:
            try:
                pictures[digest] = read_image(self.source(path), self.max_pixels)
            except ImageError as error:
                self.seen[digest] = self._nothing(str(error))
        return pictures

    def _embed(self, pictures: Mapping[str, np.ndarray]) -> None:
        images = list(pictures.values())
        found = self.judge.detect(images)
        parts = np.split(self.judge.embed(images, found), np.cumsum([len(row) for row in found])[:-1])
        for digest, row, part in zip(pictures, found, parts, strict=True):
            boxes = np.array([face.box for face in row], dtype=np.float32).reshape(-1, 4)
            self.seen[digest] = Seen(boxes, np.array([face.side for face in row]), part)
            if self.kept:
                with replacing(self.kept / f"{digest}.npz", several=True) as file, file.open("wb") as opened:
                    np.savez(opened, boxes=boxes, sides=self.seen[digest].sides, embeddings=part)

    def _recall(self, digest: str) -> bool:
        file = self.kept / f"{digest}.npz" if self.kept else None
        if file is None or not file.exists():
            return False
        try:
            self.seen[digest] = Seen(**np.load(file))
        except (ValueError, OSError, EOFError):
            return False  # cut short by a power failure: look again
        return True

    def _nothing(self, error: str) -> Seen:
        return Seen(np.zeros((0, 4), np.float32), np.zeros(0), np.zeros((0, self.judge.dimension), np.float32), error)

    def __getitem__(self, path: str) -> Seen:
        self.look([path])
        return self.seen[self.digest(path)]


def in_parts(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def look_in_processes(spec: Spec, workers: int, gallery: Gallery, paths: Iterable[str]) -> None:
    """Let several processes look at what is new, a shard of pictures each, and write it into the gallery's folder.

    Args:
        workers: processes; on CUDA they take the GPUs in turn. One, or pictures for one: nothing is done.
        gallery: with a folder to keep what is seen.
    """
    assert gallery.kept is not None
    new = sorted(gallery.new(paths).values())
    shards = in_parts(new, A_SHARD)
    if workers < 2 or len(shards) < 2:
        return
    workers = min(workers, len(shards))
    context = get_context("spawn")
    ranks = context.SimpleQueue()
    for rank in range(workers):
        ranks.put(rank)
    with ProcessPoolExecutor(workers, context, _start, (spec, ranks, workers)) as pool:
        look = partial(_look, gallery.root, gallery.kept)
        with tqdm(total=len(new), unit="picture", desc=f"{spec.judge} looks", disable=None) as progress:
            for count in pool.map(look, shards):
                progress.update(count)


_judge: FaceModel


def _start(spec: Spec, ranks: Any, workers: int) -> None:
    """Load the judge once a process; cores are shared evenly, GPUs taken in turn."""
    global _judge
    import torch

    rank = ranks.get()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // workers))
    device = f"cuda:{rank % torch.cuda.device_count()}" if spec.device == "cuda" else spec.device
    _judge = spec.load(device)


def _look(root: Path, kept: Path, paths: Sequence[str]) -> int:
    Gallery(_judge, root, kept=kept).look(paths)
    return len(paths)


def agreement(scores: Mapping[str, Sequence[Mapping[str, Any]]], name: str) -> Iterator[dict[str, Any]]:
    """How far judges rank the pictures alike: Spearman's correlation of a metric, a pair of judges each.

    Args:
        scores: by judge, rows of `records.SCORES` of the same cases.
        name: of the metric.
    """
    from scipy.stats import spearmanr

    from umo.evaluation.metrics import of_row

    for a, b in combinations(scores, 2):
        values = [(of_row(x, name), of_row(y, name)) for x, y in zip(scores[a], scores[b], strict=True)]
        both = np.array([pair for pair in values if None not in pair], dtype=float).reshape(-1, 2)
        spread = len(both) > 1 and (both.std(axis=0) > 0).all()
        found = float(spearmanr(*both.T).statistic) if spread else None
        yield {"judges": [a, b], "metric": name, "spearman": found, "n": len(both)}
