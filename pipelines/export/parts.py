"""Parts of a data set: which sets become one file, and the writing of it with their pictures."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import lru_cache, partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import polars as pl

from pipelines.core import products, store
from pipelines.core.ledger import SPLITS
from pipelines.core.shards import Counts, Shard, digest, file_digest
from pipelines.export.formats import parquet, uno, webdataset
from pipelines.export.references import References, crops_name
from umo.errors import BadInput

_OPEN_TARS = 64


class Part(NamedTuple):
    """What is written as one file."""

    sets: pl.DataFrame  # rows of records.SETS, and what `place` adds
    crops: dict[str, str]  # face_id -> name of its crops, of the references
    suffixes: dict[int, str]  # number of people -> suffix of the targets in tars


def place(sets: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Where the pictures of sets lie.

    Returns:
        The sets with `target_product`, `target_shard`, `target_key` and `sources`; and their references, each once:
        face_id, image_id, product, shard, key, source.

    Raises:
        BadInput: there are no sets, or a picture of theirs is not among the pictures.
    """
    if not sets.height:
        remedy = f"see {products.CURATED / products.FUNNEL} for the reasons"
        raise BadInput(f"{products.CURATED / products.SETS_TABLE}: no set was kept; {remedy}")
    pictures = pl.concat(
        products.images(product)
        .filter(pl.col("status") == "ok")
        .select("image_id", "shard", "key", "source", product=pl.lit(product.name))
        for product in (products.INGESTED, products.SYNTHESISED)
    )
    entries = sets.select("set_id", "pool").explode("pool").explode("pool").unnest("pool")
    references = entries.select("face_id", "image_id").unique("face_id").join(pictures, on="image_id", how="left")
    where = pictures.rename({name: f"target_{name}" for name in ("image_id", "product", "shard", "key")})
    placed = sets.join(where.drop("source"), on="target_image_id", how="left", maintain_order="left")
    for frame, shard, image in ((references, "shard", "image_id"), (placed, "target_shard", "target_image_id")):
        lost = frame.filter(pl.col(shard).is_null())[image].sort()
        if len(lost):
            raise BadInput(
                f"{products.CURATED / products.SETS_TABLE}: {len(lost)} pictures of sets are not in "
                f"{products.INGESTED} or {products.SYNTHESISED} (first: {lost[0]}); run dvc repro"
            )
    targets = sets.select("set_id", image_id="target_image_id")
    made_from = sets.select("set_id", image_id="target_sources").explode("image_id")
    shown = pl.concat([targets, made_from, entries.select("set_id", "image_id")]).join(pictures, on="image_id")
    sources = shown.group_by("set_id").agg(sources=pl.col("source").unique().sort())
    return placed.join(sources, on="set_id", how="left", maintain_order="left"), references


def plan(rows_per_file: int, sets: pl.DataFrame, references: pl.DataFrame, crops: Mapping[str, str]) -> list[Shard]:
    """The files to write; a part's key holds what its sets say, and the pictures that they show.

    Args:
        crops: name -> digest of what decides how its crops look.
    """
    tars: dict[str, str] = {}
    offsets = []
    for product, shard in sets.select("target_product", "target_shard").unique().sort(pl.all()).iter_rows():
        folder = products.DATASETS / product
        tars[f"{product}/{shard}"] = file_digest(folder / shard / products.PICTURES)
        offsets += [(product, shard, key, *where) for key, where in store.places(folder, shard).items()]
    names = ["target_product", "target_shard", "target_key", "target_offset", "target_size"]
    sets = sets.join(pl.DataFrame(offsets, names, orient="row"), on=names[:3], how="left", maintain_order="left")
    jpegs = sets.group_by("n").agg(pl.col("target_key").str.ends_with(".jpg").all()).sort("n")
    suffixes = {n: ".jpg" if alone else ".png" for n, alone in jpegs.iter_rows()}
    names_of_crops = {row["face_id"]: crops_name(row["product"], row["shard"]) for row in references.to_dicts()}
    parts = []
    for split in SPLITS:
        rows = sets.filter(pl.col("split") == split)
        for start in range(0, rows.height, rows_per_file):
            part = rows[start : start + rows_per_file]
            faces = part["pool"].explode().explode().struct.field("face_id").unique().sort().to_list()
            mine = {face: names_of_crops[face] for face in faces}
            shown = (part["target_product"] + "/" + part["target_shard"]).unique().sort()
            inputs = {
                "sets": digest(part.write_json(), suffixes),
                "targets": digest([(name, tars[name]) for name in shown]),
                "references": digest([(name, crops[name]) for name in sorted(set(mine.values()))]),
            }
            name = f"{split}-{start // rows_per_file:05d}"
            parts.append(Shard(name, inputs, Part(part, mine, suffixes)))
    return parts


def write_part(formats: Sequence[str], crops: Path, shard: Shard, folder: Path) -> Counts:
    """A file of each form; `crops` is where the references were published."""
    part = shard.task
    assert isinstance(part, Part)
    references = References(crops, part.crops)
    opened = lru_cache(_OPEN_TARS)(lambda product, shard: _tar(product, shard).open("rb"))
    with ExitStack() as stack:
        writers = [stack.enter_context(parquet.writing(folder, shard.name))]
        if "webdataset" in formats:
            writers.append(stack.enter_context(webdataset.writing(folder, shard.name, part.suffixes)))
        if "uno" in formats:
            writers.append(partial(uno.write, folder))
        # While a row group is written, the next is put together; two are held.
        pool = stack.enter_context(ThreadPoolExecutor(1))
        written: list[Future[None]] = []
        for rows in part.sets.iter_slices(parquet.ROW_GROUP):
            sets = [_set(row, references, opened) for row in rows.to_dicts()]
            for writing in written:
                writing.result()
            written = [pool.submit(write, sets) for write in writers]
        for writing in written:
            writing.result()
    return Counts({shard.name.split("-")[0]: part.sets.height})


def _tar(product: str, shard: str) -> Path:
    return products.DATASETS / product / shard / products.PICTURES


def _set(row: dict, references: References, opened: Callable[[str, str], BinaryIO]) -> dict:
    """A set with its pictures: a row of parquet.COLUMNS; `opened` gives the tar of a product and shard."""
    place, key, size = (row["target_product"], row["target_shard"]), row["target_key"], row["target_size"]
    if size is None:
        path = _tar(*place)
        raise BadInput(f"{path}: {key} is not in it; remove {path.parent} and run dvc repro")
    pools = [[references.get(entry["face_id"]) for entry in pool] for pool in row["pool"]]
    recall = [[entry["recall"] for entry in pool] for pool in row["pool"]]
    return {name: row[name] for name in parquet.COLUMNS if name in row} | {
        "target": {"bytes": os.pread(opened(*place).fileno(), size, row["target_offset"]), "path": key},
        "references": [pool[0][0] for pool in pools],
        "reference_landmarks": [pool[0][1] for pool in pools],
        "reference_recall": [pool[0] for pool in recall],
        "pool": [[image for image, _ in pool[1:]] for pool in pools],
        "pool_landmarks": [[landmarks for _, landmarks in pool[1:]] for pool in pools],
        "pool_recall": [pool[1:] for pool in recall],
    }
