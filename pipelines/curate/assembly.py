"""Rows of the sets: what was decided about pictures, put together with what is known of them, some at a time."""

import polars as pl
import pyarrow as pa

from pipelines.core.sources import CONSENT_WEAKEST_FIRST
from pipelines.curate.appearances import Appearances
from umo import records
from umo.scenes.prompts import ORDINALS, prompt


def sets_table(found: Appearances, pictures: pl.DataFrame, faces: pl.DataFrame, pools: pl.DataFrame) -> pa.Table:
    """records.SETS, a row a picture, in the order of set_id.

    In parts: as nested lists the whole would need several times its size, and Arrow's lists count with 32 bits.

    Args:
        pictures: image, kind, n, split, set_id, person_ids, cross_cosine, keep, reason.
        faces: image, row, x; in the order of the references.
        pools: image, row, reference (a row), cosine, recall; the best first.
    """
    pictures = pictures.sort("image")
    parts = []
    for part in list(pictures.iter_slices(50_000)) or [pictures]:
        inside = pl.col("image").is_between(part["image"].min(), part["image"].max())
        rows = _rows(found, part, faces.filter(inside), pools.filter(inside))
        parts.append(rows.select(records.SETS.names).to_arrow().cast(records.SETS))
    return pa.concat_tables(parts)


def _rows(found: Appearances, pictures: pl.DataFrame, faces: pl.DataFrame, pools: pl.DataFrame) -> pl.DataFrame:
    columns = {"target_face_ids": "face_id", "target_boxes": "box", "target_landmarks": "landmarks"}
    described = found.faces.select(**{name: pl.col(column).gather(faces["row"]) for name, column in columns.items()})
    shown = pl.concat([faces.select("image", "row", "x"), described], how="horizontal")
    shown = shown.join(_entries(found, pools), on="row", how="left", maintain_order="left")
    once = ("image_id", "sources", "background", "prompt", "licence", "consent", "source")
    lists = (*columns, "pool", "reference_cosine", "x")
    # Those of the target and of its references: each licence once, and the weakest consent.
    own = pl.col("licence").str.split(" + ").fill_null([])
    licences = pl.concat_list(own, pl.col("licences").fill_null([])).list.unique().list.sort().list.join(" + ")
    given = pl.concat_list("consent", pl.col("consents").fill_null([]))
    weakest = [pl.when(given.list.contains(consent)).then(pl.lit(consent)) for consent in CONSENT_WEAKEST_FIRST]
    rows = (
        pictures.lazy()
        .join(shown.lazy().group_by("image", maintain_order=True).agg(lists), on="image", how="left")
        .join(found.images.lazy().select("image", *once), on="image", how="left")
        .join(_terms(found, pools).lazy(), on="image", how="left")
        .sort("image")
        .with_columns(licence=pl.when(licences != "").then(licences), consent=pl.coalesce(weakest))
        .rename({"image_id": "target_image_id", "kind": "target_kind", "sources": "target_sources"})
    )
    return _with_prompts(rows.collect())


def _entries(found: Appearances, pools: pl.DataFrame) -> pl.DataFrame:
    """row, pool, reference_cosine (of its first)."""
    face_id = found.faces["face_id"].gather(pools["reference"])
    image_id = found.images["image_id"].gather(found.faces["image"].gather(pools["reference"]))
    return (
        pools.select("row", "cosine", "recall", face_id=face_id, image_id=image_id)
        .group_by("row", maintain_order=True)
        .agg(pool=pl.struct("face_id", "image_id", "cosine", "recall"), reference_cosine=pl.col("cosine").first())
    )


def _terms(found: Appearances, pools: pl.DataFrame) -> pl.DataFrame:
    """image, licences, consents: those of all references of a picture, each once."""
    own = found.images.select("licence", "consent")
    terms = own.select(pl.all().gather(found.faces["image"].gather(pools["reference"])))
    return (
        pl.concat([pools.select("image"), terms], how="horizontal")
        .unique()
        .group_by("image")
        .agg(licences=pl.col("licence").drop_nulls().unique(), consents=pl.col("consent").drop_nulls().unique())
    )


def _with_prompts(rows: pl.DataFrame) -> pl.DataFrame:
    """Scenes keep their prompt; the others have a template's, where it can count the people and all are found.

    A template says no more of several people than their order, and of one the third of the picture: so it is filled
    once for each of the few kinds of picture that there are.
    """
    third = pl.when(pl.col("n") == 1).then((pl.col("x").list.first() * 3).cast(pl.Int32))
    found = (pl.col("n") <= len(ORDINALS)) & (pl.col("x").list.drop_nulls().list.len() == pl.col("n"))
    rows = rows.with_columns(third=third, found=found & pl.col("prompt").is_null())
    same = ["n", "third", "background", "found"]
    kinds = rows.filter("found").group_by(same).agg(pl.col("x").first())
    texts = [prompt(row["x"], row["background"]) for row in kinds.iter_rows(named=True)]
    kinds = kinds.drop("x").with_columns(template=pl.Series(texts, dtype=pl.String))
    rows = rows.join(kinds, on=same, how="left", nulls_equal=True, maintain_order="left")
    return rows.with_columns(prompt=pl.coalesce("prompt", "template"))
