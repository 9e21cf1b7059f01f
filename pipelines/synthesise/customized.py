"""Scenes that a customizer draws of people of one split, from a photograph of each."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from pipelines.core import products, store
from pipelines.core.bases import Base, refuse_seen, weights_digest
from pipelines.core.ledger import SPLITS, Split
from pipelines.core.params import load
from pipelines.core.shards import digest
from pipelines.synthesise import templates
from pipelines.synthesise.base import numbers, photos, require_people, terms
from pipelines.synthesise.drawn import Asked, Shown
from pipelines.synthesise.params import Diffusion, Params, Strict
from pipelines.synthesise.strict import Panel, group_fault, pair
from umo.evaluation.cases import Case, write_cases
from umo.images import encode_jpeg, read_image
from umo.quality import clear_factor, square_crop
from umo.scenes.prompts import scene_prompt

if TYPE_CHECKING:
    import torch

    from umo.customizers import Customizer

ASKED = "asked.jsonl"


@dataclass(frozen=True)
class Customized:
    """Draws with a base of params.yaml."""

    params: Params
    diffusion: Diffusion
    base: Base
    device: str
    halves: tuple[str, ...] = ("target",)

    def asked(self) -> dict[str, list[Asked]]:
        """Of every split; nobody of validation or test may have been seen by the base.

        Raises:
            BadInput: too few people, or the base has seen some of them in training.
        """
        found = _people()
        of_split = {split: _Photographs(found.filter(pl.col("split") == split)) for split in SPLITS}
        texts = templates.read(self.diffusion.templates) if self.diffusion.templates else None
        for split in SPLITS:
            require_people(self.params, split, len(of_split[split].people))
            if split != "train" and self.params.scenes.get(split, 0):
                refuse_seen(self.base, of_split[split].people)
        return {
            name: [self._ask(split, number, of_split[split], texts) for number in which]
            for name, split, which in numbers(self.params)
        }

    def _ask(self, split: Split, number: int, of_split: "_Photographs", texts: templates.Templates | None) -> Asked:
        n = self.params.people[number % len(self.params.people)]
        rng = np.random.default_rng([self.params.seed, SPLITS.index(split), number])
        described = templates.describe(texts, rng)[0]
        # One person stands left, in the middle or right; several side by side.
        centres = [float(rng.choice([1 / 6, 1 / 2, 5 / 6]))] if n == 1 else [(k + 0.5) / n for k in range(n)]
        prompt = scene_prompt(described.style, described.scene, centres)
        chosen = of_split.choose(n, f"{self.params.seed}/{split}/{number}")
        return Asked(f"{split}/{number}", split, n, prompt, (described,), tuple(chosen))

    def model_inputs(self) -> dict[str, str]:
        own = self.base.model_dump_json(exclude={"train"})
        return {"base": own, "precision": self.base.precision, "weights": weights_digest(self.base)}

    def inputs(self, asked: Sequence[Asked]) -> dict[str, str]:
        pictures = store.Pictures(products.INGESTED)
        places = sorted({(person["shard"], person["key"]) for case in asked for person in case.people})
        stored = [hashlib.sha256(pictures.bytes(*place)).hexdigest() for place in places]
        return {"pictures": digest(stored), "references": digest(_export())}

    def draw(self, asked: Sequence[Asked], kept: Path) -> Iterator[list[tuple[np.ndarray, ...]]]:
        from umo.generate import generate_cases  # with torch and transformers it takes seconds

        write_cases(kept / ASKED, [_case(case, _write_references(case, kept)) for case in asked])
        generate_cases(
            self.base.folder,
            kept / ASKED,
            kept,
            self.diffusion.seeds,
            size=self.diffusion.size,
            steps=self.diffusion.steps or self.base.steps,
            guidance=self.base.guidance if self.diffusion.guidance is None else self.diffusion.guidance,
            lora=self.base.lora,
            customizer=_load(self.base.folder, self.base.lora, self.device, self.base.dtype),
        )
        for case in asked:
            files = [kept / f"images/{_id(case)}-{rank}.png" for rank in range(self.diffusion.seeds)]
            yield [(read_image(file),) for file in files]

    def judge(self, asked: Asked, panels: Sequence[Panel], strict: Strict) -> list[list[Shown]] | str:
        (panel,) = panels
        if fault := group_fault(panel, asked.n, strict):
            return fault
        centres, references = (
            np.array([person[key] for person in asked.people], np.float32) for key in ("centre", "embedding")
        )
        order = pair(centres, references, panel, strict)
        if isinstance(order, str):
            return order
        return [[_shown(int(face), person) for face, person in zip(order, asked.people, strict=True)]]

    def terms(self, asked: Asked) -> dict[str, str | None]:
        return {**terms(asked.people)}


def _shown(face: int, person: dict) -> Shown:
    sources = {"source_face_id": person["face_id"], "source_image_id": person["image_id"]}
    return Shown(face, person["person_id"], sources)


def _people() -> pl.DataFrame:
    """`photos` with the faces' embeddings, their people's centres, and how much around a face shows nobody else."""
    measured = products.faces(products.MEASURED_PHOTOS, ["face_id", "image_id", "box", "embedding"])
    kind = measured.schema["embedding"]
    assert isinstance(kind, pl.Array)
    measured = measured.with_columns(pl.col("embedding").cast(pl.Array(pl.Float32, kind.shape[0])))
    boxes = measured.group_by("image_id").agg(boxes=pl.col("box"))
    centres = products.people().select("person_id", "centre")
    found = photos().join(measured.select("face_id", "embedding"), on="face_id").join(boxes, on="image_id")
    return found.join(centres, on="person_id").drop("landmarks").sort("face_id")


class _Photographs:
    """The people of a split, of whom some are drawn so that a new photograph changes few of the scenes."""

    def __init__(self, rows: pl.DataFrame) -> None:
        self._photos: dict[str, list[dict]] = {}
        for row in rows.to_dicts():
            self._photos.setdefault(row["person_id"], []).append(row)
        self.people = sorted(self._photos)
        self._numbers = np.array([_number(person) for person in self.people], np.uint64)

    def choose(self, n: int, scene: str) -> list[dict]:
        """n people and a photograph of each: those with the smallest hash of scene and person, scene and face."""
        ranks = _mixed(self._numbers ^ np.uint64(_number(scene)))
        chosen = [self.people[k] for k in np.argsort(ranks, kind="stable")[:n]]
        return [min(self._photos[person], key=lambda face: _number(scene + face["face_id"])) for person in chosen]


def _number(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:16], 16)


def _mixed(values: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser: uint64 -> uint64, every bit of the input moves every bit of the output."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
    return values ^ (values >> np.uint64(31))


def _export() -> tuple[float, int]:
    params = load("export").model_dump()
    return params["reference_crop"], params["reference_side"]


def _write_references(case: Asked, kept: Path) -> list[str]:
    """Cut the references as `export` does; names below `kept`."""
    factor, side = _export()
    pictures = store.Pictures(products.INGESTED)
    names = []
    for person in case.people:
        box = np.asarray(person["box"])
        clear = min(factor, clear_factor(box, [np.asarray(other) for other in person["boxes"]]))
        cut, _ = square_crop(pictures.read(person["shard"], person["key"]), box, clear, side)
        names.append(f"{person['face_id']}.jpg")
        (kept / names[-1]).write_bytes(encode_jpeg(cut))
    return names


def _id(case: Asked) -> str:
    return case.name.replace("/", "-")


def _case(case: Asked, references: Sequence[str]) -> Case:
    people = tuple(person["person_id"] for person in case.people)
    return Case(_id(case), case.prompt, tuple((name,) for name in references), (), None, people)


@lru_cache(maxsize=1)
def _load(folder: Path, lora: Path | None, device: str, dtype: "torch.dtype") -> "Customizer":
    """A process's own, kept for its next shard."""
    from umo import customizers

    return customizers.load(folder, lora, device, dtype)
