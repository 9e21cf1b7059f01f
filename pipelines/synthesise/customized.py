"""Scenes that a customizer draws of people of one split, from a photograph of each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import polars as pl

from pipelines.core import products, store
from pipelines.core.bases import Base, refuse_seen, weights_digest
from pipelines.core.ledger import SPLITS
from pipelines.core.params import load
from pipelines.core.shards import digest
from pipelines.synthesise import templates
from pipelines.synthesise.base import Photographs, numbers, photos, require_people, scene_of, terms
from pipelines.synthesise.params import Diffusion, Params, Strict
from pipelines.synthesise.strict import Panel, Shown, group_fault, pair
from pipelines.synthesise.templates import Asked
from umo.evaluation.cases import Case, write_cases
from umo.images import encode_jpeg, read_image
from umo.quality import clear_factor, square_crop
from umo.scenes.prompts import scene_prompt

if TYPE_CHECKING:
    import torch

    from umo.customizers import Customizer


@dataclass(frozen=True)
class Customized:
    """Draws with a base of params.yaml."""

    params: Params
    diffusion: Diffusion
    base: Base
    device: str
    halves: ClassVar[tuple[str, ...]] = ("target",)

    def asked(self) -> dict[str, list[Asked]]:
        """Raises BadInput where people are too few, or the base has seen some of validation or test in training."""
        found = _people()
        of_split = {split: Photographs(found.filter(split=split)) for split in SPLITS}
        texts = templates.read(self.diffusion.templates)
        for split in SPLITS:
            require_people(self.params, split, len(of_split[split].people))
            if split != "train" and self.params.scenes.get(split, 0):
                refuse_seen(self.base, of_split[split].people)
        asked: dict[str, list[Asked]] = {}
        for name, split, which in numbers(self.params):
            asked[name] = []
            for number in which:
                n, rng = scene_of(self.params, split, number)
                described = templates.describe(texts, rng)[0]
                # One person stands left, in the middle or right; several side by side.
                centres = [float(rng.choice([1 / 6, 1 / 2, 5 / 6]))] if n == 1 else [(k + 0.5) / n for k in range(n)]
                prompt = scene_prompt(described.style, described.scene, centres)
                chosen = of_split[split].choose(n, f"{self.params.seed}/{split}/{number}")
                people = tuple(photo for photo, *_ in chosen)
                asked[name].append(Asked(f"{split}/{number}", split, n, prompt, (described,), people))
        return asked

    def model_inputs(self) -> dict[str, str]:
        own = self.base.model_dump_json(exclude={"train"})
        weights = weights_digest(self.base)
        return {"base": own, "precision": self.base.precision, "weights": weights, "references": digest(_export())}

    def draw(self, asked: Sequence[Asked], kept: Path) -> Iterator[list[tuple[np.ndarray, ...]]]:
        from umo.drawing.cases import generate_cases  # with torch and transformers it takes seconds

        cases = kept / "asked.jsonl"
        write_cases(cases, [_case(case, kept) for case in asked])
        generate_cases(
            self.base.folder,
            cases,
            kept,
            self.diffusion.seeds,
            size=self.diffusion.size,
            steps=self.diffusion.steps or self.base.steps,
            guidance=self.base.guidance if self.diffusion.guidance is None else self.diffusion.guidance,
            lora=self.base.lora,
            customizer=_load(self.base.folder, self.base.lora, self.device, self.base.dtype),
        )
        for case in asked:
            files = (kept / f"images/{case.file_name}-{rank}.png" for rank in range(self.diffusion.seeds))
            yield [(read_image(file),) for file in files]

    def judge(self, asked: Asked, panels: Sequence[Panel], strict: Strict) -> list[list[Shown]] | str:
        (panel,) = panels
        if fault := group_fault(panel, asked.n, strict):
            return fault
        centres = np.array([person["centre"] for person in asked.people], np.float32)
        references = np.array([person["embedding"] for person in asked.people], np.float32)
        order = pair(centres, references, panel, strict)
        if isinstance(order, str):
            return order
        return [
            [Shown(int(face), person["person_id"], person) for face, person in zip(order, asked.people, strict=True)]
        ]

    def terms(self, asked: Asked) -> dict[str, str | None]:
        return terms(asked.people)


def _people() -> pl.DataFrame:
    """`photos` with the faces' embeddings, their people's centres, and how much around a face shows nobody else."""
    measured = products.faces(products.MEASURED_PHOTOS, ["face_id", "image_id", "box", "embedding"])
    boxes = measured.group_by("image_id").agg(boxes=pl.col("box"))
    centres = products.people().select("person_id", "centre")
    found = photos().join(measured.select("face_id", "embedding"), on="face_id").join(boxes, on="image_id")
    return found.join(centres, on="person_id").drop("landmarks").sort("face_id")


def _export() -> tuple[float, int]:
    params = load("export").model_dump()
    return params["reference_crop"], params["reference_side"]


def _case(asked: Asked, kept: Path) -> Case:
    """What the base is given; the references, cut as `export` does, are written into `kept`."""
    factor, side = _export()
    pictures = store.Pictures(products.INGESTED)
    names = [f"{person['face_id']}.jpg" for person in asked.people]
    for name, person in zip(names, asked.people, strict=True):
        box = np.asarray(person["box"])
        clear = min(factor, clear_factor(box, [np.asarray(other) for other in person["boxes"]]))
        cut, _ = square_crop(pictures.read(person), box, clear, side)
        (kept / name).write_bytes(encode_jpeg(cut))
    people = tuple(person["person_id"] for person in asked.people)
    return Case(asked.file_name, asked.prompt, tuple((name,) for name in names), (), None, people)


@lru_cache(maxsize=1)
def _load(folder: Path, lora: Path | None, device: str, dtype: "torch.dtype") -> "Customizer":
    """A process's own, kept for its next shard."""
    from umo import customizers

    return customizers.load(folder, lora, device, dtype)
