"""A model at work for the stage `generate`: it draws cases, and is asked for its loss on what it was not trained on."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.core import products
from pipelines.core.bases import Base
from pipelines.core.shards import Counts, Shard, scratch
from umo.evaluation.cases import Case, read_cases, write_cases

if TYPE_CHECKING:
    import torch

    from umo.customizers import Customizer

ASKED, DRAWN_FILE = "asked.jsonl", "drawn.json"


@dataclass(frozen=True)
class Piece:
    """Cases that one worker draws at a stretch.

    Attributes:
        asked, judged: as they are drawn and as they will be judged: as many, of the same ids; paths as in runs/cases.
        seeds: pictures a case.
        loss_draws: noises a case that the held-out loss is averaged over (`umo.evaluation.held_out`); 0 measures none.
    """

    asked: Sequence[Case]
    judged: Sequence[Case]
    seeds: int
    loss_draws: int


def draw(base: Base, lora: Path | None, device: str, shard: Shard, folder: Path) -> Counts:
    """Draw a `Piece`: images/, and which are whose in drawn.json, with the losses.

    All is made in a folder of its own, where a killed run finds pictures again by the key inside each, and moved at
    the end.
    """
    from umo.drawing.cases import generate_cases
    from umo.evaluation.held_out import held_out_losses

    piece = shard.task
    assert isinstance(piece, Piece)
    weights = shard.inputs["weights"], shard.inputs.get("lora")
    customizer = _customizer(base.folder, lora, device, base.dtype, weights)
    kept = scratch(folder)
    kept.mkdir(parents=True, exist_ok=True)
    write_cases(kept / ASKED, [moved(case, kept) for case in piece.asked])
    counts = generate_cases(
        base.folder,
        kept / ASKED,
        kept,
        piece.seeds,
        steps=base.steps,
        guidance=base.guidance,
        lora=lora,
        customizer=customizer,
    )
    losses = piece.loss_draws and held_out_losses(customizer, piece.judged, products.CASES, piece.loss_draws)
    images = {case.case_id: case.images for case in read_cases(kept / products.CASES_FILE)}
    shutil.move(kept / "images", folder / "images")
    (folder / DRAWN_FILE).write_text(json.dumps({"images": images, "losses": losses or {}}))
    shutil.rmtree(kept)
    return Counts({"pictures": counts.drawn + counts.kept})


@lru_cache(maxsize=1)
def _customizer(
    folder: Path, lora: Path | None, device: str, dtype: "torch.dtype", weights: tuple[str, str | None]
) -> "Customizer":
    """Loaded once a worker; `weights` are the digests of the files, which may be others the next time."""
    from umo import customizers  # with torch and transformers it takes seconds

    return customizers.load(folder, lora, device, dtype)


def moved(case: Case, to: Path) -> Case:
    """A case of runs/cases with the paths of its references and its target as seen from the folder `to`."""
    back = Path(os.path.relpath(products.CASES, to))
    references = tuple(tuple(str(back / path) for path in photos) for photos in case.references)
    return replace(case, references=references, target=case.target and str(back / case.target))
