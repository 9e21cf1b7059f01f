"""Measured pictures -> reference sets. First who is in which picture, then which photographs may stand for them.

Decides from measurements alone, in seconds; every picture that is turned away keeps its row and its first reason.
"""

import json
from functools import partial
from pathlib import Path

import polars as pl
from pydantic import Field, model_validator

from pipelines import products
from pipelines.ledger import SPLITS
from pipelines.params import Section
from pipelines.shards import Counts, Machine, Shard, tree_digest
from pipelines.shards import run as run_shards
from pipelines.sources import CONSENT_WEAKEST_FIRST
from umo import records
from umo.prompts import prompt


class Params(Section):
    """
    min_people, max_people: in a target.
    min_people_ingested: in a target that is a photograph and not a synthesised scene.
    min_side: of every face in a target (pixels).
    min_overlap: intersection over union of a face found in a scene and the box where it was placed.
    min_cosine, max_cosine: between reference and target face; the upper bound guards against copy-paste.
    min_person_cosine: between a target's face and its person's centre.
    max_source_cosine: between a reference and the photographed face that the target's was made from: a near copy of
        that photograph is no other photograph.
    max_cross_cosine: between two people of a target.
    pool: references a person at most; the first is the reference, the others are spare.
    max_sets_per_person: by split, a person at most.
    seed: of every draw.
    """

    min_people: int = Field(ge=1, le=6)
    max_people: int = Field(ge=1, le=6)
    min_people_ingested: int = Field(ge=1, le=6)
    min_side: float = Field(ge=1)
    min_overlap: float = Field(gt=0, le=1)
    min_cosine: float = Field(ge=-1, le=1)
    max_cosine: float = Field(ge=-1, le=1)
    min_person_cosine: float = Field(ge=-1, le=1)
    max_source_cosine: float = Field(ge=-1, le=1)
    max_cross_cosine: float = Field(ge=-1, le=1)
    pool: int = Field(ge=1)
    max_sets_per_person: int = Field(ge=1)
    seed: int = Field(ge=0)

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
    photos = _photographs()
    people = products.people().filter("keep").select("person_id", "split", "centre")
    appearances = pl.concat([_in_photographs(photos), _in_scenes(params.min_overlap, photos)])
    appearances = appearances.join(people, on="person_id", how="left", maintain_order="left")
    appearances = appearances.with_columns(pl.col("centre").cast(appearances.schema["embedding"]))
    pools = _pools(params, appearances, photos)
    sets = _capped(params, _sets(params, appearances.join(pools, on="face_id", how="left", maintain_order="left")))
    sets = sets.sort("set_id").select(records.SETS.names)
    records.write(folder / products.SETS_TABLE, sets.to_arrow(), records.SETS)
    funnel = _funnel(sets)
    (folder / products.FUNNEL).write_text(json.dumps(funnel, indent=1) + "\n")
    return Counts({"sets": funnel["kept"]}, funnel["reasons"])


def _photographs() -> pl.DataFrame:
    """Faces of photographs; person_id is null where a face is nobody's."""
    owner = products.people_faces().filter("keep").select("face_id", "person_id")
    found = _faces(products.MEASURED_PHOTOS).join(owner, on="face_id", how="left", maintain_order="left")
    found = found.join(_images(products.INGESTED), on="image_id", maintain_order="left")
    return found.with_columns(source_embedding="embedding")


def _faces(product: Path) -> pl.DataFrame:
    columns = ["face_id", "image_id", "box", "landmarks", "side_px", "embedding"]
    found = products.faces(product, columns)
    kind = found.schema["embedding"]
    assert isinstance(kind, pl.Array)
    return found.with_columns(pl.col("embedding").cast(pl.Array(pl.Float32, kind.shape[0])))


def _images(product: Path) -> pl.DataFrame:
    images = products.images(product).filter(pl.col("status") == "ok")
    return images.select("image_id", "width", "licence", "consent", "source")


def _cosine(first: str, second: str) -> pl.Expr:
    return (pl.col(first) * pl.col(second)).arr.sum()


APPEARANCE = (
    *("image_id", "target_kind", "face_id", "box", "landmarks", "embedding", "source_embedding", "side_px"),
    *("person_id", "lost", "sources", "guide", "background", "prompt", "width", "licence", "consent", "source"),
)


def _in_photographs(photos: pl.DataFrame) -> pl.DataFrame:
    return photos.with_columns(
        target_kind=pl.lit("ingested"),
        lost=pl.lit(False),
        sources=pl.concat_list("image_id"),
        guide=pl.lit(None, pl.String),
        background=pl.lit(None, pl.String),
        prompt=pl.lit(None, pl.String),
    ).select(APPEARANCE)


def _in_scenes(min_overlap: float, photos: pl.DataFrame) -> pl.DataFrame:
    """Faces found in scenes, given to the person placed there; a person who is not found again is a row with lost."""
    layout, scenes, faces = products.layout(), products.scenes(), _faces(products.MEASURED_SCENES)
    place = ["image_id", "person_id"]
    owner = (
        faces.join(layout.select(*place, placed="box"), on="image_id")
        .with_columns(overlap=_overlap("box", "placed"))
        .filter(pl.col("overlap") >= min_overlap)
        .sort("overlap", "face_id", descending=[True, False])
        .unique("face_id", keep="first", maintain_order=True)
        .unique(place, keep="first", maintain_order=True)
        .select("face_id", "person_id")
    )
    found = faces.join(owner, on="face_id", how="left").with_columns(lost=pl.lit(False))
    missing = layout.join(found, on=place, how="anti").select(*place, lost=pl.lit(True))
    made_from = layout.select(*place, face_id="source_face_id", guide="guide_face_id").join(
        photos.select("face_id", "source_embedding"), on="face_id"
    )
    sources = layout.group_by("image_id").agg(sources=pl.col("source_image_id").unique().sort())
    return (
        pl.concat([found, missing], how="diagonal")
        .join(made_from.drop("face_id"), on=place, how="left")
        .join(sources, on="image_id")
        .join(scenes.select("image_id", "background", "prompt"), on="image_id")
        .join(_images(products.SYNTHESISED), on="image_id")
        .with_columns(target_kind=pl.lit("synthesised"))
        .select(APPEARANCE)
    )


def _overlap(first: str, second: str) -> pl.Expr:
    """Intersection over union of two box columns."""

    def side(low: int, high: int) -> pl.Expr:
        a, b = pl.col(first).arr, pl.col(second).arr
        return (pl.min_horizontal(a.get(high), b.get(high)) - pl.max_horizontal(a.get(low), b.get(low))).clip(0)

    def area(box: str) -> pl.Expr:
        corner = pl.col(box).arr
        return (corner.get(2) - corner.get(0)) * (corner.get(3) - corner.get(1))

    both = side(0, 2) * side(1, 3)
    return both / (area(first) + area(second) - both)


def _pools(params: Params, appearances: pl.DataFrame, photos: pl.DataFrame) -> pl.DataFrame:
    """face_id of a target -> pool: photographs of the person, of other pictures, inside the band.

    First the one that guided where the head stands, if it is among them; then in a drawn order.
    """
    references = photos.filter(pl.col("person_id").is_not_null()).select(
        "person_id",
        ref_face="face_id",
        ref_image="image_id",
        ref_embedding="embedding",
        ref_licence="licence",
        ref_consent="consent",
    )
    entry = pl.struct(face_id="ref_face", image_id="ref_image", cosine="cosine", recall=pl.lit("corpus"))
    return (
        appearances.filter(~pl.col("lost"))
        .join(references, on="person_id")
        .filter(~pl.col("sources").list.contains(pl.col("ref_image")))
        .with_columns(cosine=_cosine("embedding", "ref_embedding"))
        .filter(pl.col("cosine").is_between(params.min_cosine, params.max_cosine))
        .filter(_cosine("source_embedding", "ref_embedding") <= params.max_source_cosine)
        .with_columns(
            other=pl.col("ref_face").ne_missing(pl.col("guide")),
            order=pl.concat_str("face_id", "ref_face").hash(params.seed),
        )
        .sort("face_id", "other", "order")
        .group_by("face_id", maintain_order=True)
        .agg(entry.head(params.pool).alias("pool"), pl.col("ref_licence", "ref_consent").head(params.pool))
    )


def _face_fault(params: Params) -> pl.Expr:
    """The first reason why a face spoils its picture; null for a good one."""
    faults = (
        (pl.col("lost"), "a placed person is not found"),
        (pl.col("person_id").is_null(), "a face of nobody known"),
        (pl.col("split").is_null(), "a person who is not kept"),
        (pl.col("side_px") < params.min_side, f"a face under {params.min_side:g} px"),
        (
            _cosine("embedding", "centre") < params.min_person_cosine,
            f"a face under {params.min_person_cosine:g} to its person's centre",
        ),
        (pl.col("pool").is_null(), f"no reference between {params.min_cosine:g} and {params.max_cosine:g}"),
    )
    return pl.coalesce([pl.when(found).then(pl.lit(reason)) for found, reason in faults])


def _sets(params: Params, faces: pl.DataFrame) -> pl.DataFrame:
    """A row a picture, people from left to right, with the first reason to turn it away; null for a good one."""
    middle = (pl.col("box").arr.get(0) + pl.col("box").arr.get(2)) / 2 / pl.col("width")
    ordered = faces.with_columns(x=middle, fault=_face_fault(params)).sort("image_id", "x", nulls_last=True)
    once = ("target_kind", "sources", "background", "prompt", "licence", "consent", "source")
    pictures = ordered.group_by("image_id", maintain_order=True).agg(
        pl.col("person_id", "face_id", "box", "landmarks", "pool", "x"),
        pl.col(*once).first(),
        n=pl.len().cast(pl.Int32),
        fault=pl.col("fault").drop_nulls().first(),
        splits=pl.col("split").unique(),
        licences=pl.col("ref_licence").explode().drop_nulls().unique(),
        consents=pl.col("ref_consent").explode().drop_nulls().unique(),
    )
    pictures = pictures.join(_cross_cosines(ordered), on="image_id", how="left", maintain_order="left")
    least = pl.when(target_kind="ingested").then(params.min_people_ingested).otherwise(params.min_people)
    faults = (
        (pl.col("n") < least, "too few people"),
        (pl.col("n") > params.max_people, "too many people"),
        (pl.col("person_id").list.n_unique() < pl.col("n"), "the same person twice"),
        (pl.col("splits").list.len() > 1, "people of two splits"),
        (pl.col("cross_cosine") > params.max_cross_cosine, f"two people over {params.max_cross_cosine:g}"),
    )
    whole = pl.coalesce([pl.when(found).then(pl.lit(reason)) for found, reason in faults])
    template = pl.struct("x", "background").map_elements(
        lambda row: prompt(row["x"], row["background"]) if all(x is not None for x in row["x"]) else None, pl.String
    )
    return pictures.with_columns(
        reason=pl.coalesce("fault", whole),
        set_id=pl.concat_str(pl.lit("s"), pl.col("image_id").str.head(16)),
        split=pl.col("splits").list.first(),
        licence=_all_licences(),
        consent=_weakest_consent(),
        prompt=pl.coalesce("prompt", pl.when(pl.col("n") <= params.max_people).then(template)),
        reference_cosine=pl.col("pool").list.eval(pl.element().list.first().struct.field("cosine")),
    ).rename(
        {
            "image_id": "target_image_id",
            "person_id": "person_ids",
            "face_id": "target_face_ids",
            "box": "target_boxes",
            "landmarks": "target_landmarks",
            "sources": "target_sources",
        }
    )


def _all_licences() -> pl.Expr:
    """The licences of the target and of its references, each once."""
    own = pl.col("licence").str.split(" + ").fill_null([])
    joined = pl.concat_list(own, "licences").list.unique().list.sort().list.join(" + ")
    return pl.when(joined != "").then(joined)


def _weakest_consent() -> pl.Expr:
    """The weakest consent among the target and its references."""
    given = pl.concat_list("consent", "consents")
    return pl.coalesce(
        [pl.when(given.list.contains(consent)).then(pl.lit(consent)) for consent in CONSENT_WEAKEST_FIRST]
    )


def _cross_cosines(faces: pl.DataFrame) -> pl.DataFrame:
    """image_id -> the highest cosine between two of its faces; pictures with one face have no row."""
    found = faces.filter(~pl.col("lost")).select("image_id", "face_id", "embedding")
    pairs = found.join(found, on="image_id", suffix="_other").filter(pl.col("face_id") < pl.col("face_id_other"))
    return pairs.group_by("image_id").agg(cross_cosine=_cosine("embedding", "embedding_other").max())


def _capped(params: Params, sets: pl.DataFrame) -> pl.DataFrame:
    """Turn away, in a drawn order, the sets that would show a person more often than allowed."""
    shown = (
        sets.filter(pl.col("reason").is_null())
        .select("set_id", "person_ids", order=pl.col("set_id").hash(params.seed))
        .sort("order")
        .explode("person_ids")
        .with_columns(rank=pl.int_range(pl.len()).over("person_ids"))
    )
    over = shown.filter(pl.col("rank") >= params.max_sets_per_person)["set_id"].unique()
    capped = pl.col("set_id").is_in(over.implode())
    reason = pl.when(capped).then(pl.lit(f"a person in over {params.max_sets_per_person} sets"))
    sets = sets.with_columns(reason=pl.coalesce("reason", reason))
    return sets.with_columns(keep=pl.col("reason").is_null())


def _funnel(sets: pl.DataFrame) -> dict:
    """How many pictures became sets, by split and number of people, and why the others did not."""
    kept = sets.filter("keep")
    reasons = sets.filter(~pl.col("keep"))["reason"].value_counts().sort("count", "reason", descending=[True, False])
    n = [str(value) for value in kept["n"]]
    return {
        "pictures": sets.height,
        "kept": kept.height,
        "reasons": dict(reasons.iter_rows()),
        "by_split": {split: kept["split"].to_list().count(split) for split in SPLITS},
        "by_n": {value: n.count(value) for value in sorted(set(n))},
    }
