"""Kept sets -> their prompts: the template's, or a sentence of a vision-language model before who stands where.

Sharded by the target's image, so that sets that come or go caption those of their own shards again and no others.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from pipelines.core import products, store
from pipelines.core.params import Section
from pipelines.core.shards import Counts, Machine, Shard, digest, scratch, tree_digest
from pipelines.core.shards import run as run_shards
from pipelines.core.sources import read_sources
from umo import records
from umo.files import write_text
from umo.scenes import captions

if TYPE_CHECKING:
    from umo.scenes.captioner import Captioner

TEMPLATE = "template"
PRODUCTS = {"ingested": products.INGESTED, "synthesised": products.SYNTHESISED}


class VisionLanguage(Section):
    """
    model: folder of a vision-language model of transformers, tuned for instructions.
    instruction: what it is asked.
    max_tokens: a longer answer is cut.
    batch: pictures at once.
    precision: of the weights.
    """

    model: Path
    instruction: str = Field(min_length=1)
    max_tokens: int = Field(ge=1)
    batch: int = Field(ge=1)
    precision: Literal["fp32", "bf16"]


class Params(Section):
    """
    captioner: `template`: the prompt from the measured layout as it is; `vlm`: a model's sentence in its place, before
        who stands where. A sentence that could hold a name is refused (umo/scenes/captions.py), and the template stays.
    shards: of the work; with more of them, sets that come or go caption fewer others again.
    vlm: the model; needed only by that captioner.
    """

    captioner: Literal["template", "vlm"]
    shards: int = Field(ge=1)
    vlm: VisionLanguage | None = None

    @model_validator(mode="after")
    def _model_is_named(self) -> "Params":
        if self.captioner == "vlm" and self.vlm is None:
            raise ValueError("captioner vlm needs the section vlm")
        return self


def run(params: Params, machine: Machine) -> None:
    """Caption the kept sets of datasets/curated."""
    sets = products.sets().filter("keep").sort("target_image_id")
    columns, common = ["set_id", "prompt"], {}
    if params.captioner == "vlm":
        assert params.vlm
        common = {"model": tree_digest(params.vlm.model)}
        sets = sets.join(_pictures(sets), on="target_image_id", how="left", maintain_order="left")
        columns += ["kind", "shard", "key", "stored", "centres", "names"]
    bucket = pl.col("target_image_id").map_elements(lambda name: int(name[:8], 16) % params.shards, pl.Int64)
    parts = sets.with_columns(bucket=bucket).partition_by("bucket", as_dict=True)
    shards = []
    for number in range(params.shards):
        rows = parts.get((number,), sets.clear()).select(columns).to_dicts()
        shards.append(Shard(f"{number:04d}", {"sets": digest(rows), **common}, rows))
    own = params.model_copy(update={"vlm": None}) if params.captioner == TEMPLATE else params
    work = partial(_caption, params, machine.device)
    run_shards("caption", work, shards, products.CAPTIONED, params=own, machine=machine)


def _caption(params: Params, device: str, shard: Shard, folder: Path) -> Counts:
    rows = shard.task
    assert isinstance(rows, list)
    written = [{"set_id": row["set_id"], "prompt": row["prompt"], "captioner": TEMPLATE} for row in rows]
    counts = Counts({"captions": len(rows)})
    if params.captioner == "vlm" and rows:
        assert params.vlm
        kept = scratch(folder)
        for row, caption, text in zip(rows, written, _answers(params.vlm, device, rows, kept), strict=True):
            sentence = captions.first_sentence(text)
            if reason := captions.fault(sentence, row["names"]):
                counts.rejects[reason] = counts.rejects.get(reason, 0) + 1
            else:
                caption |= {"prompt": captions.caption(sentence, row["centres"]), "captioner": params.vlm.model.name}
        counts.made[f"by {params.vlm.model.name}"] = len(rows) - sum(counts.rejects.values())
        shutil.rmtree(kept)
    written.sort(key=lambda caption: caption["set_id"])
    records.write(folder / products.CAPTIONS_TABLE, written, records.CAPTIONS)
    return counts


def _answers(vlm: VisionLanguage, device: str, rows: Sequence[Mapping], kept: Path) -> Iterator[str]:
    """What the model says of each picture; finished batches are found in `kept`."""
    kept.mkdir(parents=True, exist_ok=True)
    archives = {kind: store.Pictures(product, keep=0) for kind, product in PRODUCTS.items()}
    for start in range(0, len(rows), vlm.batch):
        file = kept / f"{start}.json"
        if not file.exists():
            batch = rows[start : start + vlm.batch]
            pictures = [archives[row["kind"]].read(row["shard"], row["key"]) for row in batch]
            texts = _load(vlm.model, device, vlm.precision).describe(pictures, vlm.instruction, vlm.max_tokens)
            write_text(file, json.dumps(texts))
        yield from json.loads(file.read_text())


@lru_cache(maxsize=1)
def _load(model: Path, device: str, precision: str) -> "Captioner":
    """A process's own, kept for its next shard."""
    import torch

    from umo.scenes.captioner import Captioner  # with torch and transformers it takes seconds

    return Captioner.load(model, device, torch.bfloat16 if precision == "bf16" else torch.float32)


def _pictures(sets: pl.DataFrame) -> pl.DataFrame:
    """Of each target: where it is stored, a digest of it, where its people stand, and words that could name them."""
    archives = {kind: store.Pictures(product, keep=0) for kind, product in PRODUCTS.items()}
    found = {
        row["image_id"]: row
        for product in PRODUCTS.values()
        for row in products.images(product).filter(pl.col("status") == "ok").to_dicts()
    }
    credits = {name: source.credit for name, source in read_sources().items()}
    rows = []
    for row in sets.to_dicts():
        image = found[row["target_image_id"]]
        others = {entry["image_id"] for pool in row["pool"] for entry in pool} | set(row["target_sources"] or ())
        names: set[str] = set()
        for shown in (image, *(found[image_id] for image_id in others if image_id in found)):
            names |= captions.name_words(shown["label"], shown["path"], credits.get(shown["source"]))
        data = archives[row["target_kind"]].bytes(image["shard"], image["key"])
        rows.append(
            {
                "target_image_id": row["target_image_id"],
                "kind": row["target_kind"],
                "shard": image["shard"],
                "key": image["key"],
                "stored": hashlib.sha256(data).hexdigest(),
                "centres": [float((box[0] + box[2]) / 2 / image["width"]) for box in np.array(row["target_boxes"])],
                "names": sorted(names),
            }
        )
    texts = dict.fromkeys(("target_image_id", "kind", "shard", "key", "stored"), pl.String)
    return pl.DataFrame(rows, {**texts, "centres": pl.List(pl.Float64), "names": pl.List(pl.String)})
