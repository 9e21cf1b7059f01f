"""Which pictures can be targets: the people in them are known, large enough, of one split, and not too alike."""

import polars as pl

from pipelines.curate.appearances import Appearances, cosines
from pipelines.curate.params import Params


def targets(params: Params, found: Appearances) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Every picture that is considered, and the faces in it.

    Returns:
        pictures: image, kind, n, split, person_ids, cross_cosine, reason (the first to turn it away, or null).
        faces: image, row, person_id, person, source_row, guide_row, x (in [0, 1]), by image; in the order of the
            layout, in a photograph from left to right.
    """
    faces = _faces(params, found)
    pictures = (
        faces.lazy()
        .group_by("image", maintain_order=True)
        .agg(
            person_ids="person_id",
            n=pl.len().cast(pl.Int32),
            fault=pl.col("fault").drop_nulls().first(),
            splits=pl.col("split").n_unique(),
            split=pl.col("split").first(),
            people=pl.col("person_id").n_unique(),
        )
        .join(found.images.lazy().select("image", "kind"), on="image")
        .join(_cross_cosines(found).lazy(), on="image", how="left")
        .with_columns(reason=pl.coalesce("fault", _picture_fault(params)))
        .drop("fault", "splits", "people")
        .sort("image")
        .collect()
    )
    return pictures, faces.drop("fault", "split")


def first_reason(faults: list[tuple[pl.Expr, str]]) -> pl.Expr:
    """The reason of the first fault that is found; null where there is none."""
    return pl.coalesce([pl.when(found).then(pl.lit(reason)) for found, reason in faults])


def _faces(params: Params, found: Appearances) -> pl.DataFrame:
    known = found.shown.filter(pl.col("row").is_not_null() & pl.col("person").is_not_null()).select("row", "person")
    cosine = cosines(found.embeddings, known["row"], found.centres, known["person"])
    return (
        found.shown.lazy()
        .join(found.faces.lazy().select("row", "side_px", "middle"), on="row", how="left")
        .join(found.images.lazy().select("image", "width"), on="image")
        .join(found.people.lazy().select("person", "split"), on="person", how="left")
        .join(known.lazy().select("row", person_cosine=cosine), on="row", how="left")
        .with_columns(x=pl.col("middle") / pl.col("width"), fault=_face_fault(params))
        .sort("image", "position", "x", "row", "person", nulls_last=True)
        .drop("lost", "position", "side_px", "middle", "width", "person_cosine")
        .collect()
    )


def _face_fault(params: Params) -> pl.Expr:
    loose = f"a face under {params.min_person_cosine:g} to its person's centre"
    return first_reason(
        [
            (pl.col("lost"), "a placed person is not found"),
            (pl.col("person_id").is_null(), "a face of nobody known"),
            (pl.col("split").is_null(), "a person who is not kept"),
            (pl.col("side_px") < params.min_side, f"a face under {params.min_side:g} px"),
            (pl.col("person_cosine") < params.min_person_cosine, loose),
        ]
    )


def _picture_fault(params: Params) -> pl.Expr:
    least = pl.when(kind="ingested").then(params.min_people_ingested).otherwise(params.min_people)
    return first_reason(
        [
            (pl.col("n") < least, "too few people"),
            (pl.col("n") > params.max_people, "too many people"),
            (pl.col("people") < pl.col("n"), "the same person twice"),
            (pl.col("splits") > 1, "people of two splits"),
            (pl.col("cross_cosine") > params.max_cross_cosine, f"two people over {params.max_cross_cosine:g}"),
        ]
    )


def _cross_cosines(found: Appearances) -> pl.DataFrame:
    """image, cross_cosine: the highest between two of its faces; pictures with one face have no row."""
    faces = found.shown.filter(pl.col("row").is_not_null()).select("image", "row")
    pairs = faces.join(faces, on="image", suffix="_other").filter(pl.col("row") < pl.col("row_other"))
    cosine = cosines(found.embeddings, pairs["row"], found.embeddings, pairs["row_other"])
    return pairs.select("image", cosine=cosine).group_by("image").agg(cross_cosine=pl.col("cosine").max())
