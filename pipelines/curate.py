"""Measured pictures -> reference sets. First who is in which picture, then which photographs may stand for them.

Decides from measurements alone, in seconds; every picture that is turned away keeps its row and its first reason.
"""

import json
from functools import partial
from pathlib import Path

import polars as pl
import pyarrow as pa
from pydantic import Field, model_validator

from pipelines import appearances, products
from pipelines.appearances import Appearances, cosines
from pipelines.balance import Caps, balanced
from pipelines.ledger import SPLITS
from pipelines.recall import RECALL, Bounds, pools
from pipelines.shards import Counts, Machine, Shard, tree_digest
from pipelines.shards import run as run_shards
from pipelines.sources import CONSENT_WEAKEST_FIRST
from umo import records
from umo.prompts import prompt

ROWS_AT_ONCE = 50_000


class Params(Bounds, Caps):
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

    min_people: int = Field(ge=1, le=6)
    max_people: int = Field(ge=1, le=6)
    min_people_ingested: int = Field(ge=1, le=6)
    min_side: float = Field(ge=1)
    min_overlap: float = Field(gt=0, le=1)
    min_person_cosine: float = Field(ge=-1, le=1)
    max_cross_cosine: float = Field(ge=-1, le=1)

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
    sets = _sets(params, found)
    sets = balanced(params, sets).with_columns(keep=pl.col("reason").is_null())
    sets = sets.sort("set_id").select(records.SETS.names)
    records.write(folder / products.SETS_TABLE, _table(sets), records.SETS)
    funnel = _funnel(sets)
    (folder / products.FUNNEL).write_text(json.dumps(funnel, indent=1) + "\n")
    return Counts({"sets": funnel["kept"]}, funnel["reasons"])


def _table(sets: pl.DataFrame) -> pa.Table:
    """In parts, for Arrow's strings and lists count with 32 bits."""
    parts = list(sets.iter_slices(ROWS_AT_ONCE)) or [sets]
    return pa.concat_tables(part.to_arrow().cast(records.SETS) for part in parts)


def _sets(params: Params, found: Appearances) -> pl.DataFrame:
    """A row a picture, people from left to right, with the first reason to turn it away; null for a good one."""
    chosen = pools(params, found)
    faces = _faces(params, found, chosen)
    once = ("kind", "sources", "background", "prompt", "licence", "consent", "source")
    pictures = (
        faces.lazy()
        .group_by("image", maintain_order=True)
        .agg(
            pl.col("person_id", "face_id", "box", "landmarks", "pool", "reference_cosine", "x"),
            n=pl.len().cast(pl.Int32),
            fault=pl.col("fault").drop_nulls().first(),
            splits=pl.col("split").unique(),
        )
        .join(found.images.lazy().select("image", "image_id", *once), on="image", how="left", maintain_order="left")
        .join(_terms(found, chosen), on="image", how="left", maintain_order="left")
        .join(_cross_cosines(found).lazy(), on="image", how="left", maintain_order="left")
        .collect()
    )
    least = pl.when(kind="ingested").then(params.min_people_ingested).otherwise(params.min_people)
    faults = (
        (pl.col("n") < least, "too few people"),
        (pl.col("n") > params.max_people, "too many people"),
        (pl.col("person_id").list.n_unique() < pl.col("n"), "the same person twice"),
        (pl.col("splits").list.len() > 1, "people of two splits"),
        (pl.col("cross_cosine") > params.max_cross_cosine, f"two people over {params.max_cross_cosine:g}"),
    )
    whole = pl.coalesce([pl.when(found).then(pl.lit(reason)) for found, reason in faults])
    return (
        _with_prompts(params, pictures)
        .with_columns(
            reason=pl.coalesce("fault", whole),
            set_id=pl.concat_str(pl.lit("s"), pl.col("image_id").str.head(16)),
            split=pl.col("splits").list.first(),
            licence=_all_licences(),
            consent=_weakest_consent(),
        )
        .rename(
            {
                "image_id": "target_image_id",
                "kind": "target_kind",
                "person_id": "person_ids",
                "face_id": "target_face_ids",
                "box": "target_boxes",
                "landmarks": "target_landmarks",
                "sources": "target_sources",
            }
        )
    )


def _faces(params: Params, found: Appearances, chosen: pl.DataFrame) -> pl.DataFrame:
    """The shown faces, picture by picture from left to right, each with its pool and the first fault that it has."""
    middle = (pl.col("box").arr.get(0) + pl.col("box").arr.get(2)) / 2 / pl.col("width")
    known = found.shown.filter(pl.col("row").is_not_null() & pl.col("person").is_not_null()).select("row", "person")
    rows, people = (known[column].to_numpy() for column in known.columns)
    known = known.select("row", person_cosine=cosines(found.embeddings, rows, found.centres, people))
    return (
        found.shown.lazy()
        .join(found.faces.lazy().select("row", "face_id", "box", "landmarks", "side_px"), on="row", how="left")
        .join(found.images.lazy().select("image", "width"), on="image")
        .join(found.people.lazy().select("person", "split"), on="person", how="left")
        .join(known.lazy(), on="row", how="left")
        .join(_entries(found, chosen), on="row", how="left")
        .with_columns(x=middle, fault=_face_fault(params))
        .sort("image", "x", "row", nulls_last=True)
        .collect()
    )


def _entries(found: Appearances, chosen: pl.DataFrame) -> pl.LazyFrame:
    """row, pool, reference_cosine (of its first)."""
    named = found.faces.lazy().join(found.images.lazy().select("image", "image_id"), on="image")
    named = named.select("face_id", "image_id", reference="row")
    return (
        chosen.lazy()
        .join(named, on="reference", how="left", maintain_order="left")
        .group_by("row", maintain_order=True)
        .agg(
            pl.struct("face_id", "image_id", "cosine", "recall").alias("pool"),
            reference_cosine=pl.col("cosine").first(),
        )
    )


def _face_fault(params: Params) -> pl.Expr:
    """The first reason why a face spoils its picture; null for a good one."""
    faults = (
        (pl.col("lost"), "a placed person is not found"),
        (pl.col("person_id").is_null(), "a face of nobody known"),
        (pl.col("split").is_null(), "a person who is not kept"),
        (pl.col("side_px") < params.min_side, f"a face under {params.min_side:g} px"),
        (
            pl.col("person_cosine") < params.min_person_cosine,
            f"a face under {params.min_person_cosine:g} to its person's centre",
        ),
        (pl.col("pool").is_null(), f"no reference between {params.min_cosine:g} and {params.max_cosine:g}"),
    )
    return pl.coalesce([pl.when(found).then(pl.lit(reason)) for found, reason in faults])


def _cross_cosines(found: Appearances) -> pl.DataFrame:
    """image, cross_cosine: the highest between two of its faces; pictures with one face have no row."""
    faces = found.shown.filter(pl.col("row").is_not_null()).select("image", "row")
    pairs = faces.join(faces, on="image", suffix="_other").filter(pl.col("row") < pl.col("row_other"))
    first, second = (pairs[column].to_numpy() for column in ("row", "row_other"))
    pairs = pairs.with_columns(cosine=cosines(found.embeddings, first, found.embeddings, second))
    return pairs.group_by("image").agg(cross_cosine=pl.col("cosine").max())


def _with_prompts(params: Params, pictures: pl.DataFrame) -> pl.DataFrame:
    """Scenes keep their prompt. A template says no more of several people than their order, of one the third of the
    picture, so one is written for each of the few kinds of picture that there are."""
    third = pl.when(pl.col("n") == 1).then((pl.col("x").list.first() * 3).cast(pl.Int32))
    complete = ~pl.col("x").list.eval(pl.element().is_null()).list.any() & (pl.col("n") <= params.max_people)
    pictures = pictures.with_columns(third=third, complete=complete)
    same = ["n", "third", "background"]
    kinds = pictures.filter("complete").group_by(same).agg(pl.col("x").first())
    texts = [prompt(row["x"], row["background"]) for row in kinds.iter_rows(named=True)]
    kinds = kinds.with_columns(template=pl.Series(texts, dtype=pl.String), complete=pl.lit(True)).drop("x")
    pictures = pictures.join(kinds, on=[*same, "complete"], how="left", nulls_equal=True, maintain_order="left")
    return pictures.with_columns(prompt=pl.coalesce("prompt", "template"))


def _terms(found: Appearances, chosen: pl.DataFrame) -> pl.LazyFrame:
    """image, licences, consents: those of all references of a picture, each once."""
    terms = found.images.lazy().select("image", "licence", "consent")
    of_reference = found.faces.lazy().select("image", reference="row").join(terms, on="image").drop("image")
    return (
        chosen.lazy()
        .join(found.faces.lazy().select("row", "image"), on="row")
        .join(of_reference, on="reference")
        .select("image", "licence", "consent")
        .unique()
        .group_by("image")
        .agg(licences=pl.col("licence").drop_nulls().unique(), consents=pl.col("consent").drop_nulls().unique())
    )


def _all_licences() -> pl.Expr:
    """The licences of the target and of its references, each once."""
    own = pl.col("licence").str.split(" + ").fill_null([])
    joined = pl.concat_list(own, pl.col("licences").fill_null([])).list.unique().list.sort().list.join(" + ")
    return pl.when(joined != "").then(joined)


def _weakest_consent() -> pl.Expr:
    """The weakest consent among the target and its references."""
    given = pl.concat_list("consent", pl.col("consents").fill_null([]))
    return pl.coalesce(
        [pl.when(given.list.contains(consent)).then(pl.lit(consent)) for consent in CONSENT_WEAKEST_FIRST]
    )


def _funnel(sets: pl.DataFrame) -> dict:
    """How many pictures became sets, by split and number of people, and why the others did not."""
    kept = sets.filter("keep")
    entries = kept.select(pl.col("pool").explode().explode().struct.field("recall"))["recall"]
    both = {split: _counts(kept.filter(split=split)["n"]) for split in SPLITS}
    return {
        "pictures": sets.height,
        "kept": kept.height,
        "reasons": _counts(sets["reason"].drop_nulls(), most_first=True),
        "reasons_by_kind": {
            kind: _counts(sets.filter(target_kind=kind)["reason"].drop_nulls(), most_first=True)
            for kind in sorted(appearances.KINDS)
        },
        "by_split": {split: sum(counts.values()) for split, counts in both.items()},
        "by_n": _counts(kept["n"]),
        "by_split_and_n": both,
        "by_recall": {recall: int((entries == recall).sum()) for recall in RECALL},
    }


def _counts(values: pl.Series, most_first: bool = False) -> dict[str, int]:
    counts = values.alias("value").value_counts().sort("value")
    if most_first:
        counts = counts.sort("count", "value", descending=[True, False])
    return {str(value): count for value, count in counts.iter_rows()}
