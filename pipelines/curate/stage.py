"""Measured pictures -> reference sets: who is in which picture, then which photographs may stand for them.

Every picture that is turned away keeps its row and its first reason.
"""

import json
from functools import partial
from pathlib import Path

import polars as pl

from pipelines.core import products
from pipelines.core.ledger import SPLITS
from pipelines.core.shards import Counts, Machine, Shard, tree_digest
from pipelines.core.shards import run as run_shards
from pipelines.curate import appearances
from pipelines.curate.assembly import sets_table
from pipelines.curate.balance import balanced
from pipelines.curate.params import Params
from pipelines.curate.recall import pools
from pipelines.curate.targets import targets
from umo import records


def run(params: Params, machine: Machine) -> None:
    """Make the sets of datasets/ingested and datasets/synthesised."""
    shard = Shard("", {str(product): tree_digest(product) for product in products.SOURCES_OF_SETS})
    run_shards("curate", partial(_curate, params), [shard], products.CURATED, params=params, machine=machine)


def _curate(params: Params, shard: Shard, folder: Path) -> Counts:
    found = appearances.read(params.min_overlap)
    pictures, faces = targets(params, found)
    standing = pictures.filter(pl.col("reason").is_null()).select("image")
    chosen = pools(params, found, faces.join(standing, on="image", how="semi"))
    # Pictures with a face that no reference was found for are turned away.
    without = faces.join(chosen, on="row", how="anti").select("image", without=pl.lit(True)).unique()
    reason = pl.when("without").then(pl.lit(f"no reference between {params.min_cosine:g} and {params.max_cosine:g}"))
    set_id = pl.concat_str(pl.lit("s"), found.images["image_id"].gather(pictures["image"]).str.head(16))
    pictures = pictures.join(without, on="image", how="left", maintain_order="left")
    pictures = pictures.with_columns(reason=pl.coalesce("reason", reason), set_id=set_id).drop("without")
    pictures = balanced(params, pictures).with_columns(keep=pl.col("reason").is_null())
    records.write(folder / products.SETS_TABLE, sets_table(found, pictures, faces, chosen), records.SETS)
    funnel = _funnel(pictures, chosen)
    (folder / products.FUNNEL).write_text(json.dumps(funnel, indent=1) + "\n")
    return Counts({"sets": funnel["kept"]}, funnel["reasons"])


def _funnel(pictures: pl.DataFrame, chosen: pl.DataFrame) -> dict:
    """How many pictures became sets, by split and number of people, and why the others did not."""

    def reasons(some: pl.DataFrame) -> dict[str, int]:
        return dict(sorted(_counts(some["reason"]).items(), key=lambda item: (-item[1], item[0])))

    kept = pictures.filter("keep")
    recalled = _counts(chosen.join(kept, on="image", how="semi")["recall"])
    both = {split: _counts(kept.filter(split=split)["n"]) for split in SPLITS}
    return {
        "pictures": pictures.height,
        "kept": kept.height,
        "reasons": reasons(pictures),
        "reasons_by_kind": {kind: reasons(pictures.filter(kind=kind)) for kind in appearances.KINDS},
        "by_split": {split: sum(counts.values()) for split, counts in both.items()},
        "by_n": _counts(kept["n"]),
        "by_split_and_n": both,
        "references_by_recall": {recall: recalled.get(recall, 0) for recall in records.RECALL},
    }


def _counts(values: pl.Series) -> dict[str, int]:
    counts = values.drop_nulls().alias("value").value_counts().sort("value")
    return {str(value): count for value, count in counts.iter_rows()}
