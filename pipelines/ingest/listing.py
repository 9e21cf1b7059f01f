"""What all sources hold, known by content before anything is decoded: which copies are kept, what was forgotten."""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import polars as pl

from pipelines.core.params import Section
from pipelines.core.shards import WORK, Counts, Machine, Shard, digest
from pipelines.core.shards import run as run_shards
from pipelines.core.sources import Source
from pipelines.ingest import readers
from pipelines.ingest.readers import forms
from pipelines.ingest.readers.base import Container, Found, Limits, image_id

REMEDY = (
    "convert pictures among them to JPEG, PNG or WebP; other kinds want a source of their own, archives to be unpacked"
)
LISTED = WORK / "ingest-listed"
TABLE, OTHERS = "listing.parquet", "not_read.json"
COLUMNS = {"image_id": pl.String, "source": pl.String, "path": pl.String, "licensed": pl.Boolean, "error": pl.Boolean}


def listings(
    everything: Mapping[str, list[Found] | Container],
    sources: Mapping[str, Source],
    limits: Limits,
    machine: Machine,
    others: Mapping[str, Counter[str]],
) -> dict[str, pl.DataFrame]:
    """By shard, COLUMNS of what it holds, in its order; tars and tables are not read again until they change.

    A video is one entry, by the file's own digest: its frames are known only once it is decoded.

    Args:
        others: by source, the files that are not read; they are told with what is in containers and not read.
    """
    found, shards = {}, []
    for name, of in everything.items():
        if isinstance(of, Container) and of.kind != "video":
            inputs = {"file": of.sha256, "source": sources[of.source].digest_input(), "limits": digest(limits)}
            shards.append(Shard(name, inputs, of))
        else:
            files = [Found(of.sha256, of.source, of.path, of.file)] if isinstance(of, Container) else of
            found[name] = _frame(
                (one.image_id, one.source, one.path, bool(sources[one.source].licence), one.error) for one in files
            )
    if shards:
        run_shards("ingest", partial(_list, sources, limits), shards, LISTED, params=Section(), machine=machine)
    _tell(shards, others)
    return found | {shard.name: pl.read_parquet(LISTED / shard.name / TABLE) for shard in shards}


def _list(sources: Mapping[str, Source], limits: Limits, shard: Shard, folder: Path) -> Counts:
    of = shard.task
    assert isinstance(of, Container)
    source, others = sources[of.source], Counter[str]()
    listing = _frame(
        (image_id(of, rank, one), of.source, one.path, bool(source.licence_of(one.fields)), one.error)
        for rank, one in enumerate(readers.members(of, source, limits, others=others))
    )
    listing.write_parquet(folder / TABLE)
    (folder / OTHERS).write_text(json.dumps(others))
    return Counts({"members listed": len(listing)})


def _tell(shards: Sequence[Shard], others: Mapping[str, Counter[str]]) -> None:
    """A line a source of what is neither a picture nor a row."""
    told = {name: Counter(found) for name, found in others.items()}
    for shard in shards:
        assert isinstance(shard.task, Container)
        found = json.loads((LISTED / shard.name / OTHERS).read_text())
        told.setdefault(shard.task.source, Counter()).update(found)
    for name, found in told.items():
        if found:
            print(f"ingest: {name}: not read: {forms.told(found)}: {REMEDY}", flush=True)


def _frame(rows: Iterable[tuple]) -> pl.DataFrame:
    return pl.DataFrame([(*row, error is not None) for *row, error in rows], COLUMNS, orient="row")


def copies(listings: Mapping[str, pl.DataFrame], without_licence: bool) -> dict[str, dict[int, str]]:
    """Which entries are not kept because another has the same bytes: the least by source and path, then by place.

    Args:
        listings: by shard.
        without_licence: whether what has no licence can be kept.

    Returns:
        For each shard, rank in its listing -> "source/path" of the entry that is kept.
    """
    entries = pl.concat(
        listing.with_row_index("rank").with_columns(shard=pl.lit(shard)) for shard, listing in listings.items()
    )
    usable = entries.filter(~pl.col("error") & (pl.col("licensed") | without_licence))
    order = ("image_id", "source", "path", "shard", "rank")
    kept = pl.format("{}/{}", pl.col("source").first(), pl.col("path").first())
    repeated = usable.filter(pl.col("image_id").is_duplicated()).sort(order)
    dropped = repeated.with_columns(kept=kept.over("image_id")).filter(~pl.col("image_id").is_first_distinct())
    found: dict[str, dict[int, str]] = {shard: {} for shard in listings}
    for row in dropped.iter_rows(named=True):
        found[row["shard"]][row["rank"]] = row["kept"]
    return found


def forgotten(listing: pl.DataFrame, of: Container | object, image_ids: Collection[str]) -> list[str]:
    """The tombstones that hit a shard, for its key; of a video, those whose frames bear its mark."""
    if isinstance(of, Container) and of.kind == "video":
        return sorted(one for one in image_ids if one.endswith(of.mark))
    return sorted(set(image_ids) & set(listing["image_id"]))
