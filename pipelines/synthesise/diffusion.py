"""Scenes drawn by a diffusion model. All is drawn and measured; then, in seconds, the strict filter keeps some."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import polars as pl

from pipelines.core import products, store
from pipelines.core.bases import Params as Bases
from pipelines.core.params import Section, load
from pipelines.core.shards import ONE_PROCESS, WORK, Counts, Machine, Shard, digest, scratch, tree_digest
from pipelines.core.shards import run as run_shards
from pipelines.synthesise.base import Earlier, Scenes, image_row, layout_row
from pipelines.synthesise.customized import Customized
from pipelines.synthesise.diptychs import Diptychs
from pipelines.synthesise.params import Diffusion, Params, Strict
from pipelines.synthesise.strict import Panel, Shown
from pipelines.synthesise.templates import Asked
from umo import faces, records
from umo.images import encode_png

DRAWN = WORK / "drawn"


class Drawer(Protocol):
    """A model that draws what is asked; picklable, loads its weights when it first draws."""

    halves: ClassVar[tuple[str, ...]]  # the role of each panel of a drawing

    def asked(self) -> dict[str, list[Asked]]:
        """What is to be drawn, by shard."""

    def model_inputs(self) -> dict[str, str]:
        """By name, digests of the model and of what all drawings depend on; raises BadInput where it is missing."""

    def draw(self, asked: Sequence[Asked], kept: Path) -> Iterator[list[tuple[np.ndarray, ...]]]:
        """For each that is asked, a drawing a seed, as panels (H, W, 3) uint8; finished ones are found in `kept`."""

    def judge(self, asked: Asked, panels: Sequence[Panel], strict: Strict) -> list[list[Shown]] | str:
        """Who is in each panel, or the first reason to turn the drawing away."""

    def terms(self, asked: Asked) -> dict[str, str | None]:
        """Licence and consent of what is drawn."""


@dataclass(frozen=True)
class Diffused:
    """The generator `diffusion`."""

    params: Diffusion
    drawer: Drawer
    machine: Machine = field(default=ONE_PROCESS, compare=False)

    @classmethod
    def of(cls, params: Params, machine: Machine) -> "Diffused":
        """With the customizer or the text-to-image pipeline that params.yaml names; raises BadInput for neither."""
        bases = load("bases")
        assert isinstance(bases, Bases) and params.diffusion
        drawer: Drawer
        if base := bases.root.get(params.diffusion.model):
            drawer = Customized(params, params.diffusion, base, machine.device)
        else:
            drawer = Diptychs.of(params, params.diffusion, machine.device, list(bases.root))
        return cls(params.diffusion, drawer, machine)

    def shards(self) -> list[Shard]:
        """Draws and measures what is not drawn yet; the drawings are the shards' inputs."""
        asked = self.drawer.asked()
        measure = load("measure").model_dump(include={"faces", "min_score", "min_side"})
        how = self.params.model_dump(mode="json", include={"seeds", "size", "steps", "guidance", "precision"})
        common = {"how": digest(how), "measure": digest(measure), **self.drawer.model_inputs()}
        pieces = {name: {case.name: digest(case.what(), common) for case in cases} for name, cases in asked.items()}
        run_shards(
            "synthesise",
            partial(_draw_and_measure, self.drawer, measure),
            [Shard(name, pieces[name], cases) for name, cases in asked.items()],
            DRAWN,
            params=Section(),  # what drawing depends on is in its shards: a changed threshold must not draw anew
            files=faces.load(measure["faces"]).files,
            machine=self.machine,
        )
        return [
            Shard(name, {"drawn": tree_digest(DRAWN / name), "asked": digest([asdict(case) for case in cases])}, cases)
            for name, cases in asked.items()
        ]

    def scenes(self, shard: Shard) -> Scenes:
        """The scenes of a shard."""
        made, strict = Scenes(), self.params.strict
        drawings = _read(DRAWN / shard.name)
        assert isinstance(shard.task, list)
        for asked in shard.task:
            taken = 0
            for rank, panels in enumerate(drawings[asked.name]):
                path = f"{asked.name}/{rank}"
                verdict = self.drawer.judge(asked, panels, strict)
                if isinstance(verdict, list) and taken == strict.max_scenes:
                    verdict = f"over {strict.max_scenes} of its case"
                origin = {"source": "diffusion", "group": f"diffusion/{asked.name}", **self.drawer.terms(asked)}
                if isinstance(verdict, str):
                    image_id = digest("rejected", self.params.model, asked.what(), rank)
                    made.reject(shard.name, image_id, verdict, path=path, **origin)
                    continue
                taken += 1
                for role, panel, shown in zip(self.drawer.halves, panels, verdict, strict=True):
                    origin["path"] = f"{path}/{role}" if len(panels) > 1 else path
                    image_id = made.add(shard.name, panel.data, panel.size, **origin)
                    _describe(made, image_id, asked, role, panel, shown)
        return made


def _describe(made: Scenes, image_id: str, asked: Asked, role: str, panel: Panel, shown: Sequence[Shown]) -> None:
    """Layout and scene of an accepted panel, people from left to right."""
    ordered = sorted(shown, key=lambda one: panel.centres[one.face])
    made.layout += [
        layout_row(image_id, position, one.person_id, panel.boxes[one.face], role, one.source)
        for position, one in enumerate(ordered)
    ]
    if role == "target":
        text = asked.prompt_at([float(panel.centres[one.face]) for one in ordered])
        described = {"generator": "diffusion", "background": asked.described[-1].background, "prompt": text}
        made.scenes.append({"image_id": image_id, "n": asked.n, "split": asked.split, **described})


def _draw_and_measure(drawer: Drawer, measure: dict[str, Any], shard: Shard, folder: Path) -> Counts:
    """Draw all seeds of a shard's cases, but for those it had before, find the faces, decide nothing."""
    asked = shard.task
    assert isinstance(asked, list)
    kept = scratch(folder)
    kept.mkdir(parents=True, exist_ok=True)
    model = faces.load(measure["faces"])
    tables = {
        products.FACES_TABLE: records.measured_faces(model.dimension),
        products.LAYOUT_TABLE: records.LAYOUT,
    }
    earlier = Earlier(shard, shard.inputs, tables)
    images, found, wanted = [], [], []
    encoded: dict[str, bytes] = {}
    drawn = drawer.draw([case for case in asked if not earlier.of(case.name)], kept)
    for case in asked:
        if taken := earlier.of(case.name):
            images += taken.images
            encoded |= taken.pictures
            found += taken.rows[products.FACES_TABLE]
            wanted += taken.rows[products.LAYOUT_TABLE]
            continue
        for rank, panels in enumerate(next(drawn)):
            for role, picture in zip(drawer.halves, panels, strict=True):
                path = f"{case.name}/{rank}/{role}"
                # Not of the bytes: a row here is a drawing, also where two seeds give the same one.
                image_id, key = digest(path), f"{path.replace('/', '-')}.png"
                encoded[key] = encode_png(picture)
                images.append(image_row(image_id, shard.name, key, picture.shape, {"path": path}))
                found += _faces(model, measure, image_id, picture)
                wanted += [  # whose likeness this is, to be found by
                    layout_row(image_id, k, person["person_id"], np.zeros(4, np.float32), source=person)
                    for k, person in enumerate(case.people)
                ]
    store.write(folder, images, encoded)
    for table, rows in ((products.FACES_TABLE, found), (products.LAYOUT_TABLE, wanted)):
        records.write(folder / table, rows, tables[table])
    shutil.rmtree(kept)
    return Counts({"drawings": len(images) // len(drawer.halves), "faces": len(found)}, pieces=shard.inputs)


def _faces(model: faces.FaceModel, measure: dict[str, Any], image_id: str, picture: np.ndarray) -> list[dict]:
    detected = (face for face in model.detect([picture])[0] if face.score >= measure["min_score"])
    seen = [face for face in detected if face.side >= measure["min_side"]]
    return [
        {
            "face_id": f"{image_id[:16]}-{rank}",
            "image_id": image_id,
            "box": face.box,
            "landmarks": face.landmarks.ravel(),
            "score": face.score,
            "side_px": face.side,
            "pose": None,
            "sharpness": None,
            "embedding": embedding.astype(np.float16),
            "embedder": model.name,
        }
        for rank, (face, embedding) in enumerate(zip(seen, model.embed([picture], [seen]), strict=True))
    ]


def _read(folder: Path) -> dict[str, list[list[Panel]]]:
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
        data = pictures.bytes(row)
        drawings[-1].append(Panel(data, (row["height"], row["width"]), boxes, vectors))
    return found
