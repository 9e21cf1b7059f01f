"""What is shown: some of the people, of what was turned away, and of the sets. Tables alone; no picture is read.

Each is a bounded part of its product, read lazily: what it costs does not grow with the pictures that nobody sees.
"""

from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from pipelines.core import products
from umo import records
from umo.errors import BadInput

FACES, SUREST = 16, 4  # shown of a person; of those with more, so many are the surest and the others the most doubtful
REASONS = 60  # told apart; the rest is counted
EXAMPLES = 24  # of each reason, unless it was asked for
NAMED = 8  # values that a refusal lists


@dataclass(frozen=True)
class Wanted:
    """What somebody asks for; empty: a bit of everything."""

    limit: int  # people, and sets, and examples of a reason that is asked for
    people: tuple[str, ...] = ()  # person_ids
    reason: str = ""  # a part of the reason's text


@dataclass
class Part:
    """A part of the page: the rows that it shows, and how many there are."""

    rows: list[dict] = field(default_factory=list)
    total: int = 0
    lacking: str = ""  # why there is nothing


def there(product: Path, table: str) -> bool:
    """Whether a product has been made, as one file or in shards."""
    return (product / table).exists() or any(product.glob(f"*/{table}"))


def people(wanted: Wanted) -> Part:
    """People, those with the most doubtful face first; a person's faces with the surest first and the doubtful last.

    Rows: the columns of records.PEOPLE but `centre`; `faces`: {face_id, cosine}; `skipped`: how many there are between
    the surest and the most doubtful ones that are shown; `nearest_face`: of the most alike person, the surest.

    Raises BadInput where a person who was asked for is not there.
    """
    if not there(products.PEOPLE, products.PEOPLE_TABLE):
        return Part(lacking="no people yet: dvc repro identify")
    everybody = products.scan_file(products.PEOPLE / products.PEOPLE_TABLE, records.PEOPLE).drop("centre")
    kept = _people_faces().filter(pl.col("keep") & pl.col("person_id").is_not_null())
    doubt = kept.group_by("person_id").agg(pl.col("cosine").min().alias("doubt"))
    total = everybody.select(pl.len()).collect().item()
    if wanted.people:
        chosen = everybody.filter(pl.col("person_id").is_in(wanted.people)).collect()
        if lost := [one for one in wanted.people if one not in chosen["person_id"]]:
            raise BadInput(
                f"no person {lost[0]} in {products.PEOPLE / products.PEOPLE_TABLE}; write an id as it is there"
            )
    else:
        ordered = everybody.join(doubt, on="person_id", how="left").sort(
            "keep", "doubt", "person_id", descending=[True, False, False]
        )
        chosen = ordered.head(wanted.limit).drop("doubt").collect()
    ids = pl.concat([chosen["person_id"], chosen["nearest_person"].drop_nulls()]).unique()
    own = kept.filter(pl.col("person_id").is_in(ids.implode())).select("person_id", "face_id", "cosine")
    faces = own.sort("cosine", "face_id", descending=[True, False]).collect().partition_by("person_id", as_dict=True)
    rows = []
    for row in chosen.to_dicts():
        mine = faces.get((row["person_id"],), own.head(0).collect()).select("face_id", "cosine").to_dicts()
        first = SUREST if len(mine) > FACES else FACES
        shown = [*mine[:first], *mine[max(first, len(mine) - FACES + first) :]]
        nearest = faces.get((row["nearest_person"],))
        rows.append(
            row
            | {"faces": shown, "sure": first, "skipped": len(mine) - len(shown)}
            | {"nearest_face": nearest["face_id"][0] if nearest is not None else None}
        )
    return Part(rows, total)


def rejected(wanted: Wanted) -> Part:
    """What was turned away, a row a reason, the most frequent first.

    Rows: `kind` (pictures, faces, people, sets), `reason`, `count`, `examples`: {face_id or image_id or neither, text}.

    Raises BadInput where no reason has the words that were asked for.
    """
    tables = {kind: table for kind, table in _turned_away().items() if table is not None}
    if not tables:
        return Part(lacking="nothing was ingested yet: dvc repro ingest")
    counts = pl.concat(
        [
            table.group_by("reason")
            .len("count")
            .select(pl.lit(kind).alias("kind"), "reason", pl.col("count").cast(pl.Int64))
            .collect()
            for kind, table in tables.items()
        ]
    ).sort("count", "kind", "reason", descending=[True, False, False])
    chosen = counts.filter(pl.col("reason").str.contains(wanted.reason, literal=True))
    if wanted.reason and not len(chosen):
        known = "; ".join(counts["reason"].head(NAMED)) or "none"
        raise BadInput(f"no reason has the words '{wanted.reason}'; there are: {known}")
    each = wanted.limit if wanted.reason else EXAMPLES
    rows = [
        row
        | {
            "examples": tables[row["kind"]]
            .filter(pl.col("reason") == row["reason"])
            .sort("id")
            .head(each)
            .collect()
            .to_dicts()
        }
        for row in chosen.head(REASONS).to_dicts()
    ]
    return Part(rows, len(chosen))


def sets(wanted: Wanted) -> Part:
    """Kept sets, as they stand; those of the people who were asked for alone.

    Rows: some columns of records.SETS, and `references`: the first face_id of each person's pool.
    """
    if not there(products.CURATED, products.SETS_TABLE):
        return Part(lacking="no sets yet: dvc repro curate")
    kept = products.scan_file(products.CURATED / products.SETS_TABLE, records.SETS).filter("keep")
    if wanted.people:
        kept = kept.filter(pl.col("person_ids").list.set_intersection(list(wanted.people)).list.len() > 0)
    reference = pl.col("pool").list.eval(pl.element().list.first().struct.field("face_id")).alias("references")
    columns = ("set_id", "n", "person_ids", "target_image_id", "prompt", "licence", "consent", "split")
    rows = kept.select(*columns, reference).head(wanted.limit).collect().to_dicts()
    return Part(rows, kept.select(pl.len()).collect().item())


def _people_faces() -> pl.LazyFrame:
    return products.scan_file(products.PEOPLE / products.PEOPLE_FACES_TABLE, records.PEOPLE_FACES)


def _turned_away() -> dict[str, pl.LazyFrame | None]:
    """Kind -> rows of id, reason, face_id, image_id, text; None where its product is not there."""
    none = pl.lit(None, pl.String)
    found: dict[str, pl.LazyFrame | None] = dict.fromkeys(("pictures", "faces", "people", "sets"))
    shards = [product for product in (products.INGESTED, products.SYNTHESISED) if there(product, products.IMAGES_TABLE)]
    if shards:
        pictures = pl.concat([products.scan(product, products.IMAGES_TABLE, records.IMAGES) for product in shards])
        where = pl.concat_str(pl.col("source").fill_null("?"), pl.lit(": "), pl.col("path").fill_null("?"))
        found["pictures"] = pictures.filter(pl.col("status") != "ok").select(
            where.alias("id"),
            pl.coalesce("error", "status").alias("reason"),
            none.alias("face_id"),
            pl.col("image_id"),
            where.alias("text"),
        )
    if there(products.PEOPLE, products.PEOPLE_FACES_TABLE):
        found["faces"] = (
            _people_faces()
            .filter(~pl.col("keep"))
            .select(
                pl.col("face_id").alias("id"),
                pl.col("reason").fill_null("no reason given"),
                pl.col("face_id"),
                none.alias("image_id"),
                none.alias("text"),
            )
        )
        who = products.scan_file(products.PEOPLE / products.PEOPLE_TABLE, records.PEOPLE).filter(~pl.col("keep"))
        surest = (
            _people_faces()
            .join(who.select("person_id"), on="person_id", how="semi")
            .sort("cosine", "face_id", descending=[True, False])
        )
        surest = surest.group_by("person_id").agg(pl.col("face_id").first())
        found["people"] = who.join(surest, on="person_id", how="left").select(
            pl.col("person_id").alias("id"),
            pl.col("reason").fill_null("no reason given"),
            pl.col("face_id"),
            none.alias("image_id"),
            pl.col("person_id").alias("text"),
        )
    if there(products.CURATED, products.SETS_TABLE):
        away = products.scan_file(products.CURATED / products.SETS_TABLE, records.SETS).filter(~pl.col("keep"))
        found["sets"] = away.select(
            pl.col("set_id").alias("id"),
            pl.col("reason").fill_null("no reason given"),
            none.alias("face_id"),
            pl.col("target_image_id").alias("image_id"),
            pl.col("set_id").alias("text"),
        )
    return found
