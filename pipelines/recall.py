"""A pool of references for every face of a target: photographs of its person from other clips.

First from the target's own album or long video, then from others; inside a band of similarity; in varied poses.
"""

from typing import Annotated, Literal

import numpy as np
import polars as pl
from pydantic import Field

from pipelines.appearances import Appearances, cosines
from pipelines.params import Section

RECALL = ("group", "corpus")
TARGETS_AT_ONCE = 100_000

Degrees = Annotated[float, Field(ge=0, le=180)]


class Bounds(Section):
    """What decides about a pool; pipelines/curate.py, whose params these are, says what each key means."""

    min_cosine: float = Field(ge=-1, le=1)
    max_cosine: float = Field(ge=-1, le=1)
    max_source_cosine: float = Field(ge=-1, le=1)
    max_candidates: int = Field(ge=1)
    pose_bin: dict[Literal["ingested", "synthesised"], Degrees]
    pool: int = Field(ge=1)
    seed: int = Field(ge=0)


def pools(bounds: Bounds, found: Appearances) -> pl.DataFrame:
    """row, reference (a row), cosine, recall: the references of each shown face, the best first.

    Before all others the face that guided where a composited head stands, if the bounds let it in; then those of the
    target's group; among these in turn from each bin of pose; then as drawn.
    """
    candidates = _candidates(bounds, found)
    targets = (
        found.shown.filter(pl.col("row").is_not_null() & pl.col("person").is_not_null())
        .join(found.images.select("image", "group"), on="image")
        .select("row", "image", "person", "group", "source_row", "guide_row")
        .sort("person", "row")
    )
    parts = [
        _chosen(bounds, found, _inside(bounds, found, _paired(bounds, part, candidates)))
        for part in list(targets.iter_slices(TARGETS_AT_ONCE)) or [targets]
    ]
    recall = pl.col("recall").replace_strict(dict(enumerate(RECALL)), return_dtype=pl.String)
    return pl.concat(parts).with_columns(recall=recall)


def _candidates(bounds: Bounds, found: Appearances) -> pl.DataFrame:
    """References with their rank among those of the person in their group, and among all of the person.

    Ranks go round the clips of a group, and round the groups: of somebody with thousands of photographs, those that
    are looked at come from as many clips and groups as there are.
    """

    def count_up(*inside: str) -> pl.Expr:
        return pl.int_range(pl.len(), dtype=pl.UInt32).over(inside)

    return (
        found.faces.lazy()
        .filter("reference")
        .join(found.images.lazy().select("image", "group", "clip"), on="image")
        .select("person", "group", "clip", reference="row", drawn=pl.col("face_id").hash(bounds.seed))
        .sort("person", "group", "clip", "drawn", "reference")
        .with_columns(lap=count_up("person", "group", "clip"))
        .sort("person", "group", "lap", "drawn", "reference")
        .with_columns(rank_in_group=count_up("person", "group"))
        .sort("person", "rank_in_group", "drawn", "reference")
        .with_columns(rank=count_up("person"))
        .drop("lap", "drawn")
        .collect()
    )


def _paired(bounds: Bounds, targets: pl.DataFrame, candidates: pl.DataFrame) -> pl.LazyFrame:
    """Each target with its candidates: of its group (recall 0), of others (recall 1), and its guide in any case."""
    own = candidates.lazy().filter(pl.col("rank_in_group") < bounds.max_candidates)
    any_group = candidates.lazy().filter(pl.col("rank") < bounds.max_candidates).rename({"group": "its_group"})
    guide = candidates.lazy().rename({"reference": "guide_row", "group": "its_group"})
    elsewhere = pl.col("group").ne_missing(pl.col("its_group")) | pl.col("group").is_null()
    columns = ("row", "image", "source_row", "guide_row", "reference", "clip", "recall")
    parts = (
        targets.lazy().join(own, on=["person", "group"]).with_columns(recall=pl.lit(0, pl.UInt8)),
        targets.lazy().join(any_group, on="person").filter(elsewhere).with_columns(recall=pl.lit(1, pl.UInt8)),
        targets.lazy()
        .join(guide, on=["person", "guide_row"])
        .filter(pl.when(elsewhere).then("rank").otherwise("rank_in_group") >= bounds.max_candidates)
        .with_columns(reference="guide_row", recall=elsewhere.cast(pl.UInt8)),
    )
    return pl.concat(part.select(columns) for part in parts)


def _inside(bounds: Bounds, found: Appearances, paired: pl.LazyFrame) -> pl.DataFrame:
    """The pairs from other clips and inside the band, with their cosine."""
    pairs = paired.join(found.taken.lazy(), on=["image", "clip"], how="anti").collect().drop("image", "clip")

    def to_reference(column: str) -> np.ndarray:
        return cosines(found.embeddings, pairs[column].to_numpy(), found.embeddings, pairs["reference"].to_numpy())

    pairs = pairs.with_columns(cosine=to_reference("row"))
    pairs = pairs.filter(pl.col("cosine").is_between(bounds.min_cosine, bounds.max_cosine))
    itself = pairs["source_row"].null_count() == len(pairs)
    pairs = pairs.with_columns(
        source_row=pl.coalesce("source_row", "row"),
    )
    source_cosine = pl.col("cosine") if itself else to_reference("source_row")
    return pairs.filter(source_cosine <= bounds.max_source_cosine).drop("source_row")


def _chosen(bounds: Bounds, found: Appearances, pairs: pl.DataFrame) -> pl.DataFrame:
    """The first of each pool. The pose of the target itself counts as chosen, so that its bin comes a turn later."""
    width = pl.col("kind").replace_strict(bounds.pose_bin, return_dtype=pl.Float32)
    target = found.faces.lazy().select("row", "face_id", "yaw", "pitch", width=pl.when(width > 0).then(width))
    reference = found.faces.lazy().select(reference="row", its_face="face_id", its_yaw="yaw", its_pitch="pitch")
    turned, tilted = (
        ((pl.col(f"its_{axis}") - pl.col(axis)) / pl.col("width")).round().cast(pl.Int16, strict=False)
        for axis in ("yaw", "pitch")
    )
    in_bin = pl.int_range(pl.len(), dtype=pl.UInt32).over("row", "turned", "tilted")
    like_target = ((pl.col("turned") == 0) & (pl.col("tilted") == 0)).fill_null(False)
    return (
        pairs.lazy()
        .join(target, on="row")
        .join(reference, on="reference")
        .select(
            "row",
            "reference",
            "cosine",
            "recall",
            other=pl.col("reference").ne_missing(pl.col("guide_row")),
            order=pl.concat_str("face_id", "its_face").hash(bounds.seed),
            turned=turned,
            tilted=tilted,
        )
        .sort("row", "other", "recall", "order", "reference")
        .with_columns(turn=in_bin + like_target)
        .sort("row", "other", "recall", "turn", "order", "reference")
        .filter(pl.int_range(pl.len()).over("row") < bounds.pool)
        .select("row", "reference", "cosine", "recall")
        .collect()
    )
