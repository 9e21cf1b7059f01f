"""Parts of a data set: which sets become one file, and the writing of it with their pictures."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import lru_cache, partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import polars as pl

from pipelines.core import products, store
from pipelines.core.ledger import SPLITS
from pipelines.core.shards import Counts, Shard, digest
from pipelines.export.formats import parquet, uno, webdataset
from pipelines.export.references import References, crops_name
from umo.errors import BadInput
from umo.images import ImageError

_OPEN_TARS = 64
PLACE = tuple(f"target_{name}" for name in store.PLACE)


class Part(NamedTuple):
    """What is written as one file."""

    sets: pl.DataFrame  # rows of records.SETS, and what `place` adds
    crops: dict[str, str]  # face_id -> name of its crops, of the references
    suffixes: dict[int, str]  # number of people -> suffix of the targets in tars


def place(sets: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Where the pictures of sets lie.

    Returns:
        The sets with PLACE, `target_product`, `target_sha256` and `sources`; and their references, each once: face_id,
        image_id, product, shard, key, offset, size, sha256, source.

    Raises:
        BadInput: there are no sets, or a picture of theirs is not among the pictures.
    """
    if not sets.height:
        remedy = f"see {products.CURATED / products.FUNNEL} for the reasons"
        raise BadInput(f"{products.CURATED / products.SETS_TABLE}: no set was kept; {remedy}")
    pictures = pl.concat(
        products.images(product)
        .filter(pl.col("status") == "ok")
        .select("image_id", *store.PLACE, "sha256", "source", product=pl.lit(product.name))
        for product in (products.INGESTED, products.SYNTHESISED)
    )
    entries = sets.select("set_id", "pool").explode("pool").explode("pool").unnest("pool")
    references = entries.select("face_id", "image_id").unique("face_id").join(pictures, on="image_id", how="left")
    where = pictures.select(pl.exclude("source").name.prefix("target_"))
    placed = sets.join(where, on="target_image_id", how="left", maintain_order="left")
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


def numbered(sets: pl.DataFrame, rows_per_file: int) -> pl.DataFrame:
    """The sets with `part`: the first bits of their ids, in each split as few as leave no part with more rows.

    So a set stays in its part whatever comes or goes beside it; once in a doubling of a split, its parts are halved.
    """
    head = pl.col("set_id").str.slice(1, 8).str.to_integer(base=16)  # ids are hexadecimal digits of a hash, after an s
    found = []
    for of_split in sets.partition_by("split", maintain_order=True):
        for bits in range(33):
            parted = of_split.with_columns(part=head // 2 ** (32 - bits))
            if parted["part"].value_counts()["count"].to_numpy().max() <= rows_per_file:
                break
        found.append(parted)
    return pl.concat(found)


def plan(sets: pl.DataFrame, references: pl.DataFrame) -> list[Shard]:
    """The files to write; a part's key holds what its sets say, and the pictures that they show.

    Args:
        sets: with `part`.
        references: with `look`.
    """
    jpegs = sets.group_by("n").agg(pl.col("target_key").str.ends_with(".jpg").all()).sort("n")
    suffixes = {n: ".jpg" if alone else ".png" for n, alone in jpegs.iter_rows()}
    shown = sets.select("split", "part", "pool").explode("pool").explode("pool").unnest("pool")
    looks = references.select("face_id", "look", crops=crops_name())
    shown = shown.select("split", "part", "face_id").unique().join(looks, on="face_id").sort("face_id")
    faces = shown.partition_by("split", "part", as_dict=True, include_key=False)
    parts = []
    for key, rows in sorted(sets.partition_by("split", "part", as_dict=True).items(), key=_in_order):
        (split, number), theirs = key, faces[key]
        inputs = {
            "sets": digest(frame_digest(rows.drop("part", *PLACE)), suffixes),
            "references": frame_digest(theirs.select("face_id", "look")),
        }
        mine = dict(theirs.select("face_id", "crops").iter_rows())
        parts.append(Shard(f"{split}-{number:05d}", inputs, Part(rows, mine, suffixes)))
    return parts


def _in_order(item: tuple[tuple, pl.DataFrame]) -> tuple[int, int]:
    (split, number), _ = item
    return SPLITS.index(split), number


def frame_digest(frame: pl.DataFrame) -> str:
    """sha256 of a table's rows, in whatever chunks they lie in memory."""
    return hashlib.sha256(frame.write_ndjson().encode()).hexdigest()


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
    place, key = (row["target_product"], row["target_shard"]), row["target_key"]
    try:
        target = store.picture_bytes(opened(*place), row, "target_")
    except ImageError as error:
        path = _tar(*place)
        raise BadInput(f"{path}: {key}: {error}; remove {path.parent} and run dvc repro") from error
    pools = [[references.get(entry["face_id"]) for entry in pool] for pool in row["pool"]]
    recall = [[entry["recall"] for entry in pool] for pool in row["pool"]]
    return {name: row[name] for name in parquet.COLUMNS if name in row} | {
        "target": {"bytes": target, "path": key},
        "references": [pool[0][0] for pool in pools],
        "reference_landmarks": [pool[0][1] for pool in pools],
        "reference_recall": [pool[0] for pool in recall],
        "pool": [[image for image, _ in pool[1:]] for pool in pools],
        "pool_landmarks": [[landmarks for _, landmarks in pool[1:]] for pool in pools],
        "pool_recall": [pool[1:] for pool in recall],
    }
