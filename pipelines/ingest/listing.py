"""What all sources hold, known by content before anything is decoded: which copies are kept, what was forgotten."""

from collections.abc import Collection, Iterable, Mapping
from functools import partial
from pathlib import Path

import polars as pl

from pipelines.core.params import Section
from pipelines.core.shards import WORK, Counts, Machine, Shard, digest
from pipelines.core.shards import run as run_shards
from pipelines.core.sources import Source
from pipelines.ingest import readers
from pipelines.ingest.readers.base import Container, Found, Limits, image_id

LISTED = WORK / "ingest-listed"
TABLE = "listing.parquet"
COLUMNS = {"image_id": pl.String, "source": pl.String, "path": pl.String, "licensed": pl.Boolean, "error": pl.Boolean}


def of_files(files: Iterable[Found], sources: Mapping[str, Source]) -> pl.DataFrame:
    """Files as a listing: COLUMNS, in their order."""
    return _frame((one.image_id, one.source, one.path, bool(sources[one.source].licence), one.error) for one in files)


def of_containers(
    containers: Mapping[str, Container], sources: Mapping[str, Source], limits: Limits, machine: Machine
) -> dict[str, pl.DataFrame]:
    """The listings of tars and tables by shard: each file is read once, and not again until it changes.

    A video is one entry, by the file's own digest: its frames are known only once it is decoded.
    """
    videos = {name: one for name, one in containers.items() if one.kind == "video"}
    shards = [
        Shard(name, {"file": one.sha256, "source": sources[one.source].digest_input(), "limits": digest(limits)}, one)
        for name, one in containers.items()
        if name not in videos
    ]
    if shards:
        run_shards("ingest", partial(_list, sources, limits), shards, LISTED, params=Section(), machine=machine)
    found = {shard.name: pl.read_parquet(LISTED / shard.name / TABLE) for shard in shards}
    for name, one in videos.items():
        found[name] = _frame([(one.sha256, one.source, one.path, bool(sources[one.source].licence), None)])
    return found


def _list(sources: Mapping[str, Source], limits: Limits, shard: Shard, folder: Path) -> Counts:
    container = shard.task
    assert isinstance(container, Container)
    source = sources[container.source]
    listing = _frame(
        (
            image_id(container, rank, member),
            container.source,
            member.path,
            bool(source.licence_of(member.fields)),
            member.error,
        )
        for rank, member in enumerate(readers.members(container, source, limits))
    )
    listing.write_parquet(folder / TABLE)
    return Counts({"members listed": len(listing)})


def _frame(rows: Iterable[tuple]) -> pl.DataFrame:
    found = ((*row[:4], row[4] is not None) for row in rows)
    return pl.DataFrame(list(found), COLUMNS, orient="row")


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
