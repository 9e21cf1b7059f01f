"""What is expected of every product, as suites of Great Expectations' expectations with bounds taken from params."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from pipelines.core import products
from pipelines.core.ledger import SPLITS
from pipelines.core.params import load
from pipelines.core.sources import CONSENT_WEAKEST_FIRST
from umo import records


class Check(NamedTuple):
    """An expectation and what is wrong where it is not met."""

    kind: str  # name of a Great Expectations class
    fault: str  # what to say where it fails, in the reader's words
    where: Mapping[str, object]  # the expectation's arguments
    optional: bool = True  # whether a missing value is fine; Great Expectations passes over those


class Suite(NamedTuple):
    """A product as a table, the column that names a row, and what is expected of it."""

    name: str
    table: pl.DataFrame
    key: str
    checks: Sequence[Check]


def _unique(column: str, fault: str) -> Check:
    return Check("ExpectColumnValuesToBeUnique", fault, {"column": column})


def _present(column: str, fault: str) -> Check:
    return Check("ExpectColumnValuesToNotBeNull", fault, {"column": column})


def _one_of(column: str, values: Iterable[object], fault: str) -> Check:
    return Check("ExpectColumnValuesToBeInSet", fault, {"column": column, "value_set": list(values)}, optional=False)


def _between(column: str, low: float | None, high: float | None, fault: str, optional: bool = False) -> Check:
    where = {"column": column, "min_value": low, "max_value": high}
    return Check("ExpectColumnValuesToBeBetween", fault, where, optional)


def _columns(table: pl.DataFrame, names: Iterable[str]) -> Check:
    where = {"column_set": sorted(names), "exact_match": True}
    return Check("ExpectTableColumnsToMatchSet", f"columns {sorted({*table.columns} ^ {*names})} differ", where)


def suites(min_sets: int) -> Iterator[Suite]:
    """What is expected of each product, and `min_sets` of each split; bounds are those of the stages' params."""
    asked = any(load("synthesise").model_dump()["scenes"].values())
    yield _images("images@ingested", products.INGESTED, 1)
    yield _images("images@synthesised", products.SYNTHESISED, int(asked))
    yield _faces("faces@ingested", products.MEASURED_PHOTOS)
    yield _faces("faces@synthesised", products.MEASURED_SCENES)
    yield from _people()
    yield from _scenes()
    yield from _sets(min_sets)
    captioned = products.sets().filter("keep").select("set_id", of_a_set=pl.lit(True))
    captions = products.captions().join(captioned, on="set_id", how="full", coalesce=True)
    checks = [
        _unique("set_id", "a set captioned twice"),
        _present("prompt", "a set without a caption"),
        _one_of("of_a_set", [True], "a caption of no set"),
    ]
    yield Suite("captions", captions, "set_id", checks)


def _images(name: str, product: Path, min_usable: int) -> Suite:
    table, may_lack_licence = products.images(product), load("ingest").model_dump()["allow_missing_licence"]
    checks = [
        _columns(table, records.IMAGES.names),
        Check("ExpectTableRowCountToBeBetween", "no usable picture", {"min_value": min_usable}),
        _unique("image_id", "a picture twice"),
        _present("key", "a picture without a place in its shard"),
        _present("source", "a picture without a source"),
        *([] if may_lack_licence else [_present("licence", "a picture without a licence")]),
        _one_of("consent", CONSENT_WEAKEST_FIRST, "consent outside the vocabulary"),
        _between("width", 16, None, "a picture narrower than 16 px"),
        _between("height", 16, None, "a picture lower than 16 px"),
    ]
    return Suite(name, table.filter(pl.col("status") == "ok"), "image_id", checks)


def _faces(name: str, product: Path) -> Suite:
    bounds, table = load("measure").model_dump(), products.faces(product)
    norms = np.linalg.norm(table["embedding"].to_numpy().astype(np.float32), axis=1)
    box = pl.col("box").arr
    dropped = {"embedding", "landmarks", "pose", "box"}
    flat = table.with_columns(norm=norms, area=(box.get(2) - box.get(0)) * (box.get(3) - box.get(1))).drop(dropped)
    checks = [
        _columns(flat, [*(set(records.measured_faces(1).names) - dropped), "norm", "area"]),
        _unique("face_id", "a face twice"),
        _between("score", bounds["min_score"], None, "a detection score under measure.min_score"),
        _between("side_px", bounds["min_side"], None, "a face under measure.min_side"),
        _between("area", 1, None, "an empty box"),
        _between("norm", 0.99, 1.01, "an embedding that is not a unit vector"),
        _one_of("embedder", [bounds["faces"]], "an embedding of another network than measure.faces"),
    ]
    return Suite(name, flat, "face_id", checks)


def _people() -> Iterator[Suite]:
    bounds, kept = load("identify").model_dump(), products.people().drop("centre").filter("keep")
    checks = [
        _unique("person_id", "a person twice"),
        _one_of("split", SPLITS, "a person in no split"),
        _between("n", bounds["min_faces"], None, "a person with fewer faces than identify.min_faces"),
        _between("spread", bounds["min_face_cosine"], 1, "a person looser than identify.min_face_cosine"),
    ]
    yield Suite("people", kept, "person_id", checks)
    components = kept.group_by("component").agg(splits=pl.col("split").n_unique()).sort("component")
    yield Suite("components", components, "component", [_between("splits", 1, 1, "a component in two splits")])
    reasons = products.people_faces().filter(~pl.col("keep"))
    yield Suite("faces turned away", reasons, "face_id", [_present("reason", "a face turned away without a reason")])


def _scenes() -> Iterator[Suite]:
    bounds, scenes = load("synthesise").model_dump(), products.scenes()
    checks = [
        _unique("image_id", "a scene twice"),
        _one_of("n", bounds["people"], "a number of people outside synthesise.people"),
        _present("prompt", "a scene without a prompt"),
        _one_of("split", SPLITS, "a scene in no split"),
    ]
    yield Suite("scenes", scenes, "image_id", checks)
    people = products.people().select("person_id", person_split="split")
    layout = products.layout().filter(pl.col("source_face_id").is_not_null())  # the others are people who do not exist
    placed = (
        layout.join(scenes.select("image_id", "split"), on="image_id")
        .join(people, on="person_id", how="left")
        .with_columns(own_split=pl.col("split") == pl.col("person_split"))
        .drop("box")
    )
    yield Suite("layout", placed, "image_id", [_one_of("own_split", [True], "a person in a scene of another split")])


def _sets(min_sets: int) -> Iterator[Suite]:
    bounds, table = load("curate").model_dump(), products.sets()
    turned_away = table.filter(~pl.col("keep")).select("set_id", "reason")
    yield Suite("sets turned away", turned_away, "set_id", [_present("reason", "a set turned away without a reason")])
    alike = "two people more alike than curate.max_cross_cosine"
    lengths = [pl.col(name).list.len() == pl.col("n") for name in ("person_ids", "pool", "target_boxes")]
    sets = table.filter("keep").with_columns(whole=pl.all_horizontal(lengths))
    nested = [name for name, kind in sets.schema.items() if kind.is_nested()]
    checks = [
        _unique("set_id", "a set twice"),
        _unique("target_image_id", "a target twice"),
        _between("n", bounds["min_people"], bounds["max_people"], "a number of people outside curate's bounds"),
        _present("prompt", "a set without a prompt"),
        _present("licence", "a set without a licence"),
        _present("consent", "a set without consent"),
        _present("source", "a set without a source"),
        _one_of("split", SPLITS, "a set in no split"),
        _between("cross_cosine", -1, bounds["max_cross_cosine"], alike, optional=True),
        _one_of("whole", [True], "a set whose lists of people, faces and references differ in length"),
    ]
    yield Suite("sets", sets.drop(nested), "set_id", checks)
    counts = pl.DataFrame({"split": SPLITS, "sets": [(sets["split"] == split).sum() for split in SPLITS]})
    yield Suite("splits", counts, "split", [_between("sets", min_sets, None, "fewer sets than validate.min_sets")])
    people = sets.select("set_id", "split", person_id="person_ids").explode("person_id")
    per_person = people.group_by("person_id").agg(splits=pl.col("split").n_unique(), sets=pl.len()).sort("person_id")
    checks = [
        _between("splits", 1, 1, "a person in sets of two splits"),
        _between("sets", 1, bounds["max_sets_per_person"], "a person in more sets than curate.max_sets_per_person"),
    ]
    yield Suite("people of sets", per_person, "person_id", checks)
    yield _shares(sets, bounds)
    yield _references(sets.filter("whole"), bounds)


def _shares(sets: pl.DataFrame, bounds: Mapping) -> Suite:
    """A row a split and a number of people. Where too few numbers are left, equal shares are the least that can be."""
    shares = sets.group_by("split", "n").len("sets").sort("split", "n")
    total, least = pl.col("sets").sum().over("split"), 1 / pl.len().over("split")
    most = pl.max_horizontal(pl.lit(bounds["max_share_of_n"]), least) * total + 1e-9
    shares = shares.with_columns(name=pl.format("{}, n = {}", "split", "n"), within=pl.col("sets") <= most)
    fault = "more sets with one number of people than curate.max_share_of_n"
    return Suite("numbers of people", shares, "name", [_one_of("within", [True], fault)])


def _references(sets: pl.DataFrame, bounds: Mapping) -> Suite:
    """A row a reference of a set."""
    # Of each picture; one of no video is a clip of its own.
    shot = pl.concat_str(pl.col("group").fill_null(""), "clip", separator="\0")
    places = pl.concat([products.images(products.INGESTED), products.images(products.SYNTHESISED)]).select(
        "image_id", "group", clip=pl.coalesce(shot, "image_id"), own_licence="licence", own_consent="consent"
    )
    made_from = sets.select("set_id", image_id=pl.concat_list("target_sources", "target_image_id")).explode("image_id")
    taken = made_from.join(places, on="image_id").select("set_id", "clip", of_taken_clip=pl.lit(True)).unique()
    references = (
        sets.select("set_id", "target_sources", "target_image_id", "person_ids", "pool", "licence", "consent")
        .join(places.select(target_image_id="image_id", target_group="group"), on="target_image_id", how="left")
        .explode("person_ids", "pool")
        .explode("pool")
        .unnest("pool")
        .with_columns(
            is_source=pl.col("target_sources").list.contains(pl.col("image_id"))
            | (pl.col("image_id") == pl.col("target_image_id"))
        )
        .join(places, on="image_id", how="left")
        .join(taken, on=["set_id", "clip"], how="left")
        .with_columns(
            of_taken_clip=pl.col("of_taken_clip").fill_null(False),
            recall_holds=(pl.col("group") == pl.col("target_group")).fill_null(False) == (pl.col("recall") == "group"),
            terms_kept=_terms_kept(),
        )
        .select(*("set_id", "face_id", "cosine", "recall", "recall_holds", "is_source", "of_taken_clip", "terms_kept"))
    )
    checks = [
        _present("face_id", "a person without a reference"),
        _one_of("is_source", [False], "a reference whose photograph the target's face was made from"),
        _one_of("of_taken_clip", [False], "a reference from a clip that the target lies in or was made from"),
        _one_of("recall", records.RECALL, "a recall that is neither group nor corpus"),
        _one_of("recall_holds", [True], "a recall that does not fit the groups of reference and target"),
        _between("cosine", bounds["min_cosine"], bounds["max_cosine"], "a reference outside curate's band"),
        _one_of("terms_kept", [True], "a reference whose licence or consent its set does not state"),
    ]
    return Suite("references", references, "set_id", checks)


def _terms_kept() -> pl.Expr:
    """Whether a set names its reference's licence and claims no stronger consent."""
    rank = {name: k for k, name in enumerate(CONSENT_WEAKEST_FIRST)}
    claimed, own = (pl.col(name).replace_strict(rank, default=None) for name in ("consent", "own_consent"))
    named = pl.col("licence").str.split(" + ").list.contains(pl.col("own_licence")) | pl.col("own_licence").is_null()
    return named & (claimed <= own)
