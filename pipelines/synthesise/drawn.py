"""Drawings of a shard, measured once and judged by nobody: what the strict filter reads, whatever its thresholds."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import polars as pl

from pipelines.core import products, store
from pipelines.core.ledger import Split
from pipelines.core.shards import WORK, Counts, Shard, digest, scratch
from pipelines.synthesise.base import layout_row
from pipelines.synthesise.params import Strict
from pipelines.synthesise.strict import Panel
from pipelines.synthesise.templates import Described
from umo import faces, records
from umo.images import encode_png
from umo.scenes.prompts import scene_prompt

DRAWN = WORK / "drawn"
NOT_DRAWN = ("centre", "embedding", "licence", "consent")  # of a person: no drawing depends on them


@dataclass(frozen=True)
class Asked:
    """A scene that is asked for.

    Attributes:
        name: SPLIT/NUMBER.
        described: of the scene, or of a diptych's left and right half.
        people: n photographs to draw from, with whose they are; empty where the people are invented.
    """

    name: str
    split: Split
    n: int
    prompt: str
    described: tuple[Described, ...]
    people: tuple[dict, ...] = ()

    def what(self) -> dict:
        """All that its drawings depend on."""
        people = [{key: value for key, value in person.items() if key not in NOT_DRAWN} for person in self.people]
        return asdict(self) | {"people": people}

    def prompt_at(self, centres: Sequence[float]) -> str:
        """The prompt of what was drawn: its last described scene, and who stands where from left to right."""
        described = self.described[-1]
        return scene_prompt(described.style, described.scene, centres)


@dataclass(frozen=True)
class Shown:
    """Somebody in an accepted picture: the face's rank in its panel, the person, the columns of its layout row."""

    face: int
    person_id: str
    source: dict


class Drawer(Protocol):
    """A model that draws what is asked; picklable, loads its weights when it first draws."""

    @property
    def halves(self) -> tuple[str, ...]:
        """The role of each panel of a drawing."""
        ...

    def asked(self) -> dict[str, list[Asked]]:
        """What is to be drawn, by shard."""
        ...

    def model_inputs(self) -> dict[str, str]:
        """By name, digests of the model.

        Raises:
            BadInput: it is not there.
        """
        ...

    def inputs(self, asked: Sequence[Asked]) -> dict[str, str]:
        """By name, digests of what the drawings depend on beside the model and `Asked.what`."""
        ...

    def draw(self, asked: Sequence[Asked], kept: Path) -> Iterator[list[tuple[np.ndarray, ...]]]:
        """For each that is asked, a drawing a seed, as panels (H, W, 3) uint8; finished ones are found in `kept`."""
        ...

    def judge(self, asked: Asked, panels: Sequence[Panel], strict: Strict) -> list[list[Shown]] | str:
        """Who is in each panel, or the first reason to turn the drawing away."""
        ...

    def terms(self, asked: Asked) -> dict[str, str | None]:
        """Licence and consent of what is drawn."""
        ...


@dataclass(frozen=True)
class Measure:
    """The face network that looks at drawings, as the stage `measure` does (measure.faces, min_score, min_side)."""

    faces: str
    min_score: float
    min_side: float


def draw_and_measure(drawer: Drawer, measure: Measure, shard: Shard, folder: Path) -> Counts:
    """Draw all seeds of a shard's cases, find the faces, decide nothing."""
    asked = shard.task
    assert isinstance(asked, list)
    kept = scratch(folder)
    kept.mkdir(parents=True, exist_ok=True)
    model = faces.load(measure.faces)
    images, found, wanted, encoded = [], [], [], {}
    for case, drawings in zip(asked, drawer.draw(asked, kept), strict=True):
        for rank, panels in enumerate(drawings):
            for role, picture in zip(drawer.halves, panels, strict=True):
                path = f"{case.name}/{rank}/{role}"
                # Not of the bytes: a row here is a drawing, also where two seeds give the same one.
                image_id, key = digest(path), f"{path.replace('/', '-')}.png"
                encoded[key] = encode_png(picture)
                images.append(_image_row(image_id, shard.name, key, picture, path))
                found += _faces(model, measure, image_id, picture)
                wanted += [_wanted(image_id, k, person) for k, person in enumerate(case.people)]
    store.write(folder, images, encoded)
    schema = records.measured_faces(model.dimension)
    records.write(folder / products.FACES_TABLE, found, schema)
    records.write(folder / products.LAYOUT_TABLE, wanted, records.LAYOUT)  # whose likeness this is, to be found by
    shutil.rmtree(kept)
    return Counts({"drawings": len(images) // len(drawer.halves), "faces": len(found)})


def read(folder: Path) -> dict[str, list[list[Panel]]]:
    """Name of a case -> panels of each drawing, in the order of the seeds."""
    measured = pl.read_parquet(folder / products.FACES_TABLE).partition_by("image_id", as_dict=True)
    pictures = store.Pictures(folder.parent, keep=0)
    found: dict[str, list[list[Panel]]] = {}
    for row in records.read(folder / products.IMAGES_TABLE, records.IMAGES).to_pylist():
        name, rank, _ = row["path"].rsplit("/", 2)
        seen = measured.get((row["image_id"],))
        boxes = np.zeros((0, 4)) if seen is None else seen["box"].to_numpy()
        vectors = np.zeros((0, 0)) if seen is None else seen["embedding"].to_numpy().astype(np.float32)
        drawings = found.setdefault(name, [])
        if len(drawings) == int(rank):
            drawings.append([])
        data = pictures.bytes(folder.name, row["key"])
        drawings[-1].append(Panel(data, (row["height"], row["width"]), boxes, vectors))
    return found


def _faces(model: faces.FaceModel, measure: Measure, image_id: str, picture: np.ndarray) -> list[dict]:
    seen = [face for face in model.detect([picture])[0] if face.score >= measure.min_score]
    seen = [face for face in seen if face.side >= measure.min_side]
    unmeasured = {"pose": None, "sharpness": None}
    return [
        {
            "face_id": f"{image_id[:16]}-{rank}",
            "image_id": image_id,
            "box": face.box,
            "landmarks": face.landmarks.ravel(),
            "score": face.score,
            "side_px": face.side,
            "embedding": embedding.astype(np.float16),
            "embedder": model.name,
            **unmeasured,
        }
        for rank, (face, embedding) in enumerate(zip(seen, model.embed([picture], [seen]), strict=True))
    ]


def _image_row(image_id: str, shard: str, key: str, picture: np.ndarray, path: str) -> dict:
    row: dict[str, object] = dict.fromkeys(records.IMAGES.names)
    size = {"height": picture.shape[0], "width": picture.shape[1]}
    return row | {"image_id": image_id, "shard": shard, "key": key, "path": path, "status": "ok", **size}


def _wanted(image_id: str, position: int, person: dict) -> dict:
    sources = {"source_face_id": person["face_id"], "source_image_id": person["image_id"]}
    return layout_row(image_id, position, person["person_id"], np.zeros(4, np.float32)) | sources
