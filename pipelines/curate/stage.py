"""Measured pictures -> reference sets. First who is in which picture, then which photographs may stand for them.

Decides from measurements alone, in seconds; every picture that is turned away keeps its row and its first reason.
"""

import json
from functools import partial
from pathlib import Path

import polars as pl
from pydantic import Field, model_validator

from pipelines.core import products
from pipelines.core.ledger import SPLITS
from pipelines.core.shards import Counts, Machine, Shard, tree_digest
from pipelines.core.shards import run as run_shards
from pipelines.curate import appearances
from pipelines.curate.appearances import Appearances
from pipelines.curate.assembly import sets_table
from pipelines.curate.balance import Caps, balanced
from pipelines.curate.recall import Bounds, pools
from pipelines.curate.targets import Needs, targets
from umo import records


class Params(Needs, Bounds, Caps):
    """
    min_people, max_people: in a target.
    min_people_ingested: in a target that is a photograph and not a synthesised scene.
    min_side: of every face in a target (pixels).
    min_overlap: intersection over union of a face found in a scene and the box where it was placed.
    min_cosine, max_cosine: between reference and target face; the upper bound guards against copy-paste.
    min_person_cosine: between a target's face and its person's centre.
    max_source_cosine: between a reference and the photographed face that the target's was made from (where there is
        none, the target's own): a near copy of that photograph is no other photograph.
    max_cross_cosine: between two people of a target.
    max_candidates: photographs that are looked at for a face of a target, from its album or long video and from all
        others each. Of somebody with more, a drawn sample that goes round the clips and the albums.
    pose_bin: degrees, by kind of target. References are taken in turn from bins of yaw and pitch so wide around the
        pose of the target, whose own bin comes a turn later; 0 takes them as drawn.
    pool: references a person at most; the first is the reference, the others are spare.
    max_sets_per_person: by split, a person at most.
    max_share_of_n: sets with one number of people, as a part of their split's; 1 lets all pass. A split with too few
        different numbers for that has equal shares.
    seed: of every draw.
    """

    min_overlap: float = Field(gt=0, le=1)

    @model_validator(mode="after")
    def _ranges_fit(self) -> "Params":
        if self.min_cosine >= self.max_cosine:
            raise ValueError("min_cosine must be below max_cosine")
        if self.min_people > self.max_people:
            raise ValueError("min_people must not exceed max_people")
        return self


def run(params: Params, machine: Machine) -> None:
    """Make the sets of datasets/ingested and datasets/synthesised."""
    shard = Shard("", {str(product): tree_digest(product) for product in products.SOURCES_OF_SETS})
    run_shards("curate", partial(_curate, params), [shard], products.CURATED, params=params, machine=machine)


def _curate(params: Params, shard: Shard, folder: Path) -> Counts:
    found = appearances.read(params.min_overlap)
    pictures, faces = targets(params, found)
    standing = pictures.filter(pl.col("reason").is_null()).select("image")
    chosen = pools(params, found, faces.join(standing, on="image", how="semi"))
    pictures = _with_references(params, found, pictures, faces, chosen)
    pictures = balanced(params, pictures).with_columns(keep=pl.col("reason").is_null())
    records.write(folder / products.SETS_TABLE, sets_table(found, pictures, faces, chosen), records.SETS)
    funnel = _funnel(pictures, chosen)
    (folder / products.FUNNEL).write_text(json.dumps(funnel, indent=1) + "\n")
    return Counts({"sets": funnel["kept"]}, funnel["reasons"])


def _with_references(
    params: Params, found: Appearances, pictures: pl.DataFrame, faces: pl.DataFrame, chosen: pl.DataFrame
) -> pl.DataFrame:
    """Turn away the pictures with a face that no reference was found for, and name the others."""
    without = faces.join(chosen, on="row", how="anti").select("image", without=pl.lit(True)).unique()
    reason = pl.when("without").then(pl.lit(f"no reference between {params.min_cosine:g} and {params.max_cosine:g}"))
    return (
        pictures.join(without, on="image", how="left", maintain_order="left")
        .with_columns(
            reason=pl.coalesce("reason", reason),
            set_id=pl.concat_str(pl.lit("s"), found.images["image_id"].gather(pictures["image"]).str.head(16)),
        )
        .drop("without")
    )


def _funnel(pictures: pl.DataFrame, chosen: pl.DataFrame) -> dict:
    """How many pictures became sets, by split and number of people, and why the others did not."""
    kept = pictures.filter("keep")
    recalled = _counts(chosen.join(kept, on="image", how="semi")["recall"])
    both = {split: _counts(kept.filter(split=split)["n"]) for split in SPLITS}
    reasons = {kind: _counts(pictures.filter(kind=kind)["reason"]) for kind in appearances.KINDS}
    return {
        "pictures": pictures.height,
        "kept": kept.height,
        "reasons": _most_first(_counts(pictures["reason"])),
        "reasons_by_kind": {kind: _most_first(counts) for kind, counts in reasons.items()},
        "by_split": {split: sum(counts.values()) for split, counts in both.items()},
        "by_n": _counts(kept["n"]),
        "by_split_and_n": both,
        "references_by_recall": {recall: recalled.get(recall, 0) for recall in records.RECALL},
    }


def _counts(values: pl.Series) -> dict[str, int]:
    counts = values.drop_nulls().alias("value").value_counts().sort("value")
    return {str(value): count for value, count in counts.iter_rows()}


def _most_first(counts: dict[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
