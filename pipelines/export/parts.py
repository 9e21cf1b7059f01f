"""Parts of a data set: which sets become one file, and the writing of it with their pictures."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import polars as pl

from pipelines.core import products, store
from pipelines.core.ledger import SPLITS
from pipelines.core.shards import Counts, Shard, digest, file_digest
from pipelines.export.formats import parquet, uno, webdataset
from pipelines.export.references import References, crops_name
from umo.errors import BadInput

Writer = parquet.Writer | webdataset.Writer | uno.Writer
_OPEN_TARS = 64


@dataclass(frozen=True)
class Part:
    """What is written as one file.

    Attributes:
        name: SPLIT-NUMBER.
        sets: rows of records.SETS, and what `place` adds.
        crops: face_id -> name of its crops, of the references.
        suffixes: number of people -> suffix of the targets in tars.
    """

    name: str
    sets: pl.DataFrame
    crops: dict[str, str]
    suffixes: dict[int, str]


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
    pictures = _usable_pictures()
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
    shown = pl.concat(
        [
            sets.select("set_id", image_id="target_image_id"),
            sets.select("set_id", image_id="target_sources").explode("image_id"),
            entries.select("set_id", "image_id"),
        ]
    )
    sources = (
        shown.unique().join(pictures, on="image_id").group_by("set_id").agg(sources=pl.col("source").unique().sort())
    )
    return placed.join(sources, on="set_id", how="left", maintain_order="left"), references


def _usable_pictures() -> pl.DataFrame:
    """image_id, product (its folder's name), shard, key, source of all pictures, ingested and synthesised."""
    columns = ("shard", "key", "source")
    found = [
        products.images(product)
        .filter(pl.col("status") == "ok")
        .select("image_id", pl.lit(product.name).alias("product"), *columns)
        for product in (products.INGESTED, products.SYNTHESISED)
    ]
    return pl.concat(found)


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
    suffixes = _suffixes(sets)
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
            parts.append(Shard(name, inputs, Part(name, part, mine, suffixes)))
    return parts


def _suffixes(sets: pl.DataFrame) -> dict[int, str]:
    """Number of people -> suffix of the targets in tars."""
    found: dict[int, set[str]] = {}
    for n, suffix in sets.select("n", pl.col("target_key").str.extract(r"(\.\w+)$")).unique().iter_rows():
        found.setdefault(n, set()).add(suffix)
    return webdataset.target_suffixes(found)


def write_part(formats: Sequence[str], crops: Path, shard: Shard, folder: Path) -> Counts:
    """A file of each form; `crops` is where the references were published."""
    part = shard.task
    assert isinstance(part, Part)
    references, targets = References(crops, part.crops), _Targets()
    with ExitStack() as stack:
        writers: list[Writer] = [parquet.Writer(folder, part.name)]
        if "webdataset" in formats:
            writers.append(webdataset.Writer(folder, part.name, part.suffixes))
        if "uno" in formats:
            writers.append(uno.Writer(folder))
        for writer in writers:
            stack.enter_context(writer)
        # While a row group is written, the next is put together; two are held.
        pool = stack.enter_context(ThreadPoolExecutor(1))
        written: Future[None] | None = None
        for rows in part.sets.iter_slices(parquet.ROW_GROUP):
            sets = [_set(row, references, targets) for row in rows.to_dicts()]
            if written:
                written.result()
            written = pool.submit(_write, writers, sets)
        if written:
            written.result()
    return Counts({part.name.split("-")[0]: part.sets.height})


def _write(writers: Sequence[Writer], sets: Sequence[dict]) -> None:
    for writer in writers:
        writer.write(sets)


class _Targets:
    """Stored bytes of targets; some tars stay open."""

    def __init__(self) -> None:
        self._open = lru_cache(_OPEN_TARS)(lambda product, shard: _tar(product, shard).open("rb"))

    def __call__(self, row: dict) -> dict:
        """The target as an Image of `datasets`."""
        place, key, size = (row["target_product"], row["target_shard"]), row["target_key"], row["target_size"]
        if size is None:
            path = _tar(*place)
            raise BadInput(f"{path}: {key} is not in it; remove {path.parent} and run dvc repro")
        return {"bytes": os.pread(self._open(*place).fileno(), size, row["target_offset"]), "path": key}


def _tar(product: str, shard: str) -> Path:
    return products.DATASETS / product / shard / products.PICTURES


def _set(row: dict, references: References, targets: _Targets) -> dict:
    """A set with its pictures: a row of parquet.COLUMNS."""
    pools = [[references[entry["face_id"]] for entry in pool] for pool in row["pool"]]
    recall = [[entry["recall"] for entry in pool] for pool in row["pool"]]
    return {name: row[name] for name in parquet.COLUMNS if name in row} | {
        "target": targets(row),
        "references": [pool[0][0] for pool in pools],
        "reference_landmarks": [pool[0][1] for pool in pools],
        "reference_recall": [pool[0] for pool in recall],
        "pool": [[image for image, _ in pool[1:]] for pool in pools],
        "pool_landmarks": [[landmarks for _, landmarks in pool[1:]] for pool in pools],
        "pool_recall": [pool[1:] for pool in recall],
    }
