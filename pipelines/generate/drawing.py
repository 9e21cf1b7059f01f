"""A model at work for the stage `generate`: it draws cases, and is asked for its loss on what it was not trained on."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.core import products
from pipelines.core.bases import Base
from pipelines.core.shards import scratch
from umo import records
from umo.evaluation.cases import Case, read_cases, write_cases

if TYPE_CHECKING:
    from umo.customizers import Customizer

ASKED = "asked.jsonl"


@dataclass(frozen=True)
class Drawer:
    """A base with a LoRA or without, loaded when it is first needed.

    Attributes:
        lora: a .safetensors file or the folder of one.
        device: cpu, cuda, ...
    """

    base: Base
    lora: Path | None
    device: str

    @cached_property
    def customizer(self) -> "Customizer":
        from umo import customizers  # with torch and transformers it takes seconds

        return customizers.load(self.base.folder, self.lora, self.device, self.base.dtype)

    def draw(
        self, asked: Sequence[Case], judged: Sequence[Case], seeds: int, folder: Path, to: Path, loss_draws: int = 0
    ) -> int:
        """Draw what is `asked`, and hand over the pictures under the cases as they will be judged.

        All is made in a folder of its own, where a killed run finds pictures again by the key inside each, and moved
        at the end.

        Args:
            asked, judged: as many, of the same ids; paths as in runs/cases.
            seeds: pictures a case.
            folder: the temporary folder of a shard, which is filled.
            to: where it will be published.
            loss_draws: if not 0, a table of held-out losses is made too (see `umo.evaluation.held_out`).

        Returns:
            The number of pictures.
        """
        from umo.generate import generate_cases

        kept = scratch(folder)
        kept.mkdir(parents=True, exist_ok=True)
        write_cases(kept / ASKED, [moved(case, kept) for case in asked])
        counts = generate_cases(
            self.base.folder,
            kept / ASKED,
            kept,
            seeds,
            steps=self.base.steps,
            guidance=self.base.guidance,
            lora=self.lora,
            customizer=self.customizer,
        )
        if loss_draws:
            self._write_losses(judged, loss_draws, kept / products.LOSSES_TABLE)
            shutil.move(kept / products.LOSSES_TABLE, folder / products.LOSSES_TABLE)
        images = {case.case_id: case.images for case in read_cases(kept / products.CASES_FILE)}
        (folder / "images").mkdir()
        for name in (name for names in images.values() for name in names):
            shutil.move(kept / name, folder / name)
        drawn = [moved(replace(case, images=images[case.case_id]), to) for case in judged]
        write_cases(folder / products.CASES_FILE, drawn)
        shutil.rmtree(kept)
        return counts.drawn + counts.kept

    def _write_losses(self, cases: Sequence[Case], draws: int, path: Path) -> None:
        from umo.evaluation.held_out import held_out_losses

        losses = held_out_losses(self.customizer, cases, products.CASES, draws)
        rows = [{"case_id": case_id, "diffusion_loss": loss} for case_id, loss in losses.items()]
        records.write(path, rows, records.LOSSES)


def moved(case: Case, to: Path) -> Case:
    """A case of runs/cases with the paths of its references and its target as seen from the folder `to`."""
    back = Path(os.path.relpath(products.CASES, to))
    references = tuple(tuple(str(back / path) for path in photos) for photos in case.references)
    return replace(case, references=references, target=case.target and str(back / case.target))
