"""A pool of references for every face of a target: photographs of its person from other clips.

First from the target's own album or long video, then from others; inside a band of similarity; in varied poses.
"""

import polars as pl

from pipelines.curate.appearances import Appearances, cosines
from pipelines.curate.params import Params
from umo.records import RECALL


def pools(params: Params, found: Appearances, faces: pl.DataFrame) -> pl.DataFrame:
    """The references of each face, the best first.

    Before all others the face that guided where a composited head stands, if the bounds let it in; then those of the
    target's group; among these in turn from each bin of pose; then as drawn.

    Args:
        faces: image, row, person, source_row, guide_row.

    Returns:
        image, row, reference (a row), cosine, recall.
    """
    candidates = _candidates(params, found)
    places = found.images.select("image", "group", "clip")
    faces = faces.join(places, on="image").sort("person", "row")
    parts = [
        _chosen(params, found, _inside(params, found, _paired(params, part, candidates)))
        for part in list(faces.iter_slices(100_000)) or [faces]
    ]
    recall = pl.col("recall").replace_strict(dict(enumerate(RECALL)), return_dtype=pl.String)
    return pl.concat(parts).with_columns(recall=recall)


def _candidates(params: Params, found: Appearances) -> pl.DataFrame:
    """References with their rank among those of the person in their group, and among all of the person.

    Ranks go round the clips of a group, and round the groups: of somebody with thousands of photographs, those that
    are looked at come from as many clips and groups as there are. All of somebody with few have rank 0.
    """

    def count_up(*inside: str) -> pl.Expr:
        return pl.int_range(pl.len(), dtype=pl.UInt32).over(inside)

    places = found.images.lazy().select("image", its_group="group", its_clip="clip")
    every = found.faces.lazy().filter("reference").join(places, on="image")
    every = every.select("person", "its_group", "its_clip", "face_id", reference="row").with_columns(
        many=pl.len().over("person") > params.max_candidates
    )
    every = every.collect().lazy()
    few = every.filter(~pl.col("many")).with_columns(rank_in_group=pl.lit(0, pl.UInt32), rank=pl.lit(0, pl.UInt32))
    many = (
        every.filter("many")
        .with_columns(drawn=pl.col("face_id").hash(params.seed))
        .sort("person", "its_group", "its_clip", "drawn", "reference")
        .with_columns(lap=count_up("person", "its_group", "its_clip"))
        .sort("person", "its_group", "lap", "drawn", "reference")
        .with_columns(rank_in_group=count_up("person", "its_group"))
        .sort("person", "rank_in_group", "drawn", "reference")
        .with_columns(rank=count_up("person"))
        .drop("drawn", "lap")
    )
    return pl.concat([few, many], how="diagonal").drop("many", "face_id").collect()


def _paired(params: Params, faces: pl.DataFrame, candidates: pl.DataFrame) -> pl.DataFrame:
    """Each face with its candidates: of its group (recall 0), of others (recall 1), and its guide in any case.

    Never from the target's own clip.
    """
    shown = faces.lazy()
    near = candidates.lazy().filter(pl.col("person").is_between(faces["person"].min(), faces["person"].max()))
    own = near.filter(pl.col("rank_in_group") < params.max_candidates).with_columns(group="its_group")
    every = near.filter(pl.col("rank") < params.max_candidates)
    elsewhere = pl.col("group").ne_missing(pl.col("its_group")) | pl.col("group").is_null()
    missed = pl.when(elsewhere).then("rank").otherwise("rank_in_group") >= params.max_candidates
    guides = near.with_columns(guide_row="reference")
    parts = (
        shown.join(own, on=["person", "group"]).with_columns(recall=pl.lit(0, pl.UInt8)),
        shown.join(every, on="person").filter(elsewhere).with_columns(recall=pl.lit(1, pl.UInt8)),
        shown.join(guides, on=["person", "guide_row"]).filter(missed).with_columns(recall=elsewhere.cast(pl.UInt8)),
    )
    columns = ("image", "row", "source_row", "guide_row", "reference", "its_clip", "recall")
    return pl.concat(part.filter(pl.col("clip") != pl.col("its_clip")).select(columns) for part in parts).collect()


def _inside(params: Params, found: Appearances, pairs: pl.DataFrame) -> pl.DataFrame:
    """The pairs inside the band, with their cosine, and from no clip that the target was made from."""
    pairs = pairs.join(found.taken.rename({"clip": "its_clip"}), on=["image", "its_clip"], how="anti")
    cosine = cosines(found.embeddings, pairs["row"], found.embeddings, pairs["reference"])
    pairs = pairs.with_columns(cosine=cosine).filter(pl.col("cosine").is_between(params.min_cosine, params.max_cosine))
    made = pairs.filter(pl.col("source_row").is_not_null())
    itself = pairs.filter(pl.col("source_row").is_null(), pl.col("cosine") <= params.max_source_cosine)
    source_cosine = cosines(found.embeddings, made["source_row"], found.embeddings, made["reference"])
    return pl.concat([made.filter(pl.Series(source_cosine) <= params.max_source_cosine), itself])


def _chosen(params: Params, found: Appearances, pairs: pl.DataFrame) -> pl.DataFrame:
    """The first of each pool. The pose of the target itself counts as chosen, so that its bin comes a turn later."""

    def of(column: str, place: str) -> pl.Series:
        return found.faces[column].gather(pairs[place])

    width = of("kind", "row").replace_strict(params.pose_bin, return_dtype=pl.Float32)
    bins = {
        axis: ((of(axis, "reference") - of(axis, "row")) / width).round().cast(pl.Int16, strict=False)
        for axis in ("yaw", "pitch")
    }
    ids = pl.DataFrame({"face": of("face_id", "row"), "reference": of("face_id", "reference")})
    like_target = ((pl.col("yaw") == 0) & (pl.col("pitch") == 0)).fill_null(False)
    best_first = ("other", "recall", "order", "reference")
    return (
        pairs.lazy()
        .with_columns(
            other=pl.col("reference").ne_missing(pl.col("guide_row")),
            order=ids.select(pl.concat_str("face", "reference").hash(params.seed)).to_series(),
            **bins,
        )
        .sort("row", *bins, *best_first)
        .with_columns(turn=_place_in_run("row", *bins) + like_target)
        .filter(pl.col("turn") <= params.pool)
        .sort("row", "other", "recall", "turn", "order", "reference")
        .filter(_place_in_run("row") < params.pool)
        .select("image", "row", "reference", "cosine", "recall")
        .collect()
    )


def _place_in_run(*columns: str) -> pl.Expr:
    """How many rows without a change in these columns came before; `over` would cost more than the sort."""
    place = pl.int_range(pl.len(), dtype=pl.UInt32)
    starts = pl.any_horizontal([pl.col(column).ne_missing(pl.col(column).shift()) for column in columns]) | (place == 0)
    return place - pl.when(starts).then(place).forward_fill()
