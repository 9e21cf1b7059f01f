"""Kept sets -> their prompts: the template's, or a sentence of a vision-language model before who stands where.

Sharded by the target's image, so that sets that come or go caption those of their own shards again and no others.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import polars as pl
from pydantic import Field, model_validator

from pipelines.core import products, store
from pipelines.core.params import Section
from pipelines.core.shards import Counts, Machine, Shard, digest, scratch, tree_digest
from pipelines.core.shards import run as run_shards
from pipelines.core.sources import read_sources
from pipelines.core.store import PLACE
from umo import records
from umo.files import write_text
from umo.scenes import captions
from umo.scenes.prompts import read_places

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
        who stands where, if that prompt says it. A sentence that could hold a name is refused
        (umo/scenes/captions.py), and the template stays.
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
        sets = sets.join(_pictures(sets), on="set_id", how="left", maintain_order="left")
        columns += ["n", "target_kind", *PLACE, "sha256", "centres", "names"]
    bucket = pl.col("target_image_id").str.head(8).str.to_integer(base=16) % params.shards
    parts = sets.with_columns(bucket=bucket).partition_by("bucket", as_dict=True)
    shards = []
    for number in range(params.shards):
        rows = parts.get((number,), sets.clear()).select(columns).to_dicts()
        seen = {row["set_id"]: digest({key: row[key] for key in row.keys() - PLACE}, common) for row in rows}
        shards.append(Shard(f"{number:04d}", seen, rows))
    own = params.model_copy(update={"vlm": None}) if params.captioner == TEMPLATE else params
    work = partial(_caption, params, machine.device)
    run_shards("caption", work, shards, products.CAPTIONED, params=own, machine=machine)


def _caption(params: Params, device: str, shard: Shard, folder: Path) -> Counts:
    """A model is asked about those that the shard did not hold before."""
    assert isinstance(shard.task, list)
    written: list[dict] = []
    counts = Counts({"captions": len(shard.task)}, pieces=shard.inputs)
    if kept := shard.kept_pieces(shard.inputs):
        assert shard.before
        earlier = records.read(shard.before / products.CAPTIONS_TABLE, records.CAPTIONS).to_pylist()
        written += [caption for caption in earlier if caption["set_id"] in kept]
    rows = [row for row in shard.task if row["set_id"] not in kept]
    new = [{"set_id": row["set_id"], "prompt": row["prompt"], "captioner": TEMPLATE} for row in rows]
    if params.captioner == "vlm" and rows:
        assert params.vlm
        answered = scratch(folder)
        for row, caption, text in zip(rows, new, _answers(params.vlm, device, rows, answered), strict=True):
            sentence = captions.first_sentence(text)
            if reason := captions.fault(sentence, row["names"]):
                counts.rejects[reason] = counts.rejects.get(reason, 0) + 1
            else:
                centres = row["centres"] if read_places(row["prompt"], row["n"]) else None
                caption |= {"prompt": captions.caption(sentence, centres), "captioner": params.vlm.model.name}
        shutil.rmtree(answered)
    written = sorted(written + new, key=lambda caption: caption["set_id"])
    by_models = Counter(caption["captioner"] for caption in written if caption["captioner"] != TEMPLATE)
    counts.made |= {f"by {name}": count for name, count in by_models.items()}
    records.write(folder / products.CAPTIONS_TABLE, written, records.CAPTIONS)
    return counts


def _answers(vlm: VisionLanguage, device: str, rows: Sequence[Mapping], kept: Path) -> Iterator[str]:
    """What the model says of each picture; finished batches are found in `kept`."""
    kept.mkdir(parents=True, exist_ok=True)
    archives = {kind: store.Pictures(product, keep=0) for kind, product in PRODUCTS.items()}
    for start in range(0, len(rows), vlm.batch):
        batch = rows[start : start + vlm.batch]
        file = kept / f"{digest([row['set_id'] for row in batch])}.json"
        if not file.exists():
            pictures = [archives[row["target_kind"]].read(row) for row in batch]
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
    """Of each set: where its target is stored and its checksum, where its people stand, words that could name them."""
    columns = ("image_id", "sha256", "width", "label", "path", "source", *PLACE)
    images = pl.concat(products.images(of).filter(status="ok").select(columns) for of in PRODUCTS.values())
    targets = sets.select("set_id", image_id="target_image_id")
    references = sets.select("set_id", "pool").explode("pool").explode("pool").unnest("pool")
    made_from = sets.select("set_id", image_id="target_sources").explode("image_id")
    shown = pl.concat([targets, references.select("set_id", "image_id"), made_from]).unique()
    credit = {name: source.credit for name, source in read_sources().items()}
    named = images.join(shown, on="image_id", how="semi").select("image_id", "label", "path", "source")
    words = [sorted(captions.name_words(label, path, credit.get(of))) for _, label, path, of in named.iter_rows()]
    named = named.select("image_id", names=pl.Series(words, dtype=pl.List(pl.String))).explode("names").drop_nulls()
    names = shown.join(named, on="image_id").group_by("set_id").agg(pl.col("names").unique().sort())
    box = pl.col("target_boxes").cast(pl.Array(pl.Float64, 4)).arr
    boxes = sets.select("set_id", "target_boxes", image_id="target_image_id").explode("target_boxes")
    middle = boxes.join(images, on="image_id", maintain_order="left").with_columns(
        centres=(box.get(0) + box.get(2)) / 2 / pl.col("width")
    )
    centres = middle.group_by("set_id", maintain_order=True).agg("centres")
    found = targets.join(images.select("image_id", "sha256", *PLACE), on="image_id").drop("image_id")
    found = found.join(centres, on="set_id").join(names, on="set_id", how="left")
    return found.with_columns(pl.col("names").fill_null([]))
