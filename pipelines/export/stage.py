"""Reference sets -> a data set that others can take away: Parquet and other forms, card, checksums, contact sheets.

Three steps, each in shards of its own, so that a killed run goes on where it stopped and none holds more than a few
pictures: references are cut, a shard of pictures at a time; parts of splits are written, a file of each form at a time;
then what describes the whole. The first two lie in .work and are laid out as one folder, with links, at the end.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal

import polars as pl
import pyarrow.parquet as pq
from pydantic import Field, field_validator

from pipelines.core import products
from pipelines.core.ledger import SPLITS
from pipelines.core.params import Section
from pipelines.core.publish import publish, writing
from pipelines.core.shards import WORK, Counts, Machine, Shard, digest, file_digest, published_last, read_marker
from pipelines.core.shards import run as run_shards
from pipelines.core.sources import SOURCES, read_sources
from pipelines.export.card import data_set_card
from pipelines.export.formats import croissant, uno, webdataset
from pipelines.export.parts import numbered, place, plan, write_part
from pipelines.export.references import Cut, crop_shards, cut_references, with_looks
from pipelines.export.sheets import contact_sheet
from umo.images import encode_jpeg, read_image

Format = Literal["parquet", "webdataset", "uno", "croissant"]
CROPS, PARTS, WHOLE = (WORK / "export" / name for name in ("crops", "parts", "whole"))
SUMS = "SHA256SUMS"
SHEET_ROWS = 6


class Params(Section):
    """
    formats: parquet (always; the rest of the graph reads it), webdataset (tars, a folder for each number of people),
        uno (UNO's training JSON with files beside it), croissant (a description that loaders read).
    reference_crop: side of the square cut around a reference's face, in sides of its box.
    reference_side: a larger crop is scaled down to it (pixels).
    rows_per_file: at most so many sets a Parquet file, and a tar; a set's file is chosen by its id.
    """

    formats: tuple[Format, ...]
    reference_crop: float = Field(ge=1, le=10)
    reference_side: int = Field(ge=64)
    rows_per_file: int = Field(ge=1)

    @field_validator("formats")
    @classmethod
    def _parquet_is_among_them(cls, formats: tuple[Format, ...]) -> tuple[Format, ...]:
        if "parquet" not in formats:
            raise ValueError("parquet must be among them: the rest of the graph reads it")
        return formats


def run(params: Params, machine: Machine) -> None:
    """Write the kept sets of datasets/curated with their pictures."""
    with writing("export"):
        sets, found = place(products.captioned_sets().sort("set_id"))
        references = with_looks(found)
        # A worker of several leaves the other cores to the others.
        threads = (os.cpu_count() or 1) if machine.executor == "serial" else 1
        cut = Cut(factor=params.reference_crop, max_side=params.reference_side)
        crops = crop_shards(references)
        run_shards("export", partial(cut_references, cut, threads), crops, CROPS, params=cut, machine=machine)
        parts = plan(numbered(sets, params.rows_per_file), references)
        write = partial(write_part, params.formats, CROPS)
        run_shards("export", write, parts, PARTS, params=params, machine=machine, threads=threads)
        described = {"parts": digest([(part.name, part.inputs) for part in parts])}
        described |= {path.name: file_digest(path) for path in (products.CURATED / products.FUNNEL, SOURCES)}
        whole = Shard("", described)
        run_shards("export", partial(_write_whole, params, sets), [whole], WHOLE, params=params, machine=machine)
        publish(dict.fromkeys([*(PARTS / part.name for part in parts), WHOLE], ""), products.EXPORTED)


def _write_whole(params: Params, sets: pl.DataFrame, shard: Shard, folder: Path) -> Counts:
    """What describes all parts: contact sheets, lists of the other forms, card, checksums."""
    funnel = json.loads((products.CURATED / products.FUNNEL).read_text())
    present = set(sets["sources"].explode())
    sources = {name: source for name, source in read_sources().items() if name in present}
    # By name in the data set; a picture that several parts hold is there once.
    parts = published_last("export", PARTS).values()
    sums = {name: value for part in parts for name, value in read_marker(part)["sha256"].items()}
    contents = digest(sorted(sums.items()))[:16]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(partial(_write_sheet, folder), SPLITS))
    if "webdataset" in params.formats:
        (folder / webdataset.FOLDER).mkdir()
        (folder / webdataset.FOLDER / "README.md").write_text(webdataset.card(sums, contents))
    if "uno" in params.formats:
        (folder / uno.FOLDER).mkdir()
        for split in sorted(set(sets["split"])):
            rows = sets.filter(pl.col("split") == split).iter_rows(named=True)
            uno.write_records(folder / uno.FOLDER / f"{split}.json", rows)
    if "croissant" in params.formats:
        found = sorted(PARTS.glob("*/*.parquet"))
        tables = {path.name: (path.stat().st_size, sums[path.name]) for path in found}
        (folder / croissant.FILE).write_text(croissant.describe(sets.height, tables, sources))
    (folder / "README.md").write_text(data_set_card(sets, funnel, sources, params.formats, contents))
    sums |= {str(path.relative_to(folder)): file_digest(path) for path in folder.rglob("*") if path.is_file()}
    (folder / SUMS).write_text("".join(f"{value}  {name}\n" for name, value in sorted(sums.items())))
    return Counts({"files": len(sums)})


def _write_sheet(folder: Path, split: str) -> None:
    """The first sets of a split: references, and last the target."""
    first = min(PARTS.glob(f"*/{split}-*.parquet"), default=None)
    if not first:
        return
    rows = next(pq.ParquetFile(first).iter_batches(SHEET_ROWS, columns=["references", "target"])).to_pylist()
    lines = [[read_image(image["bytes"]) for image in (*row["references"], row["target"])] for row in rows]
    (folder / f"contact_sheet_{split}.jpg").write_bytes(encode_jpeg(contact_sheet(lines), 90))
