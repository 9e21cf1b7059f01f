"""Great Expectations over every product, with bounds taken from params; a fault stops the graph and is named.

One suite a product, built here in Python; results as JSON and as Data Docs, both outputs of the stage.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from pydantic import Field

from pipelines import products
from pipelines.ledger import SPLITS
from pipelines.params import Section, load
from pipelines.shards import Counts, Machine, Shard, digest, tree_digest
from pipelines.shards import run as run_shards
from pipelines.sources import CONSENT_WEAKEST_FIRST
from umo import records
from umo.errors import WorkFailed

if TYPE_CHECKING:
    import great_expectations as gx

INPUTS = (
    products.INGESTED,
    products.MEASURED_PHOTOS,
    products.PEOPLE,
    products.SYNTHESISED,
    products.MEASURED_SCENES,
    products.CURATED,
)


class Params(Section):
    """
    min_sets: of each split.
    """

    min_sets: int = Field(ge=0)


@dataclass(frozen=True)
class Check:
    """An expectation and what is wrong where it is not met.

    Attributes:
        kind: name of a Great Expectations class.
        fault: what to say where it fails, in the reader's words.
        where: the expectation's arguments.
    """

    kind: str
    fault: str
    where: dict[str, object]


@dataclass(frozen=True)
class Suite:
    """A product as a table, the column that names a row, and what is expected of it."""

    name: str
    table: pl.DataFrame
    key: str
    checks: Sequence[Check]


def run(params: Params, machine: Machine) -> None:
    """Check every product.

    Raises:
        WorkFailed: an expectation is not met; the Data Docs show all of them.
    """
    bounds = {stage: load(stage).model_dump(mode="json") for stage in ("measure", "identify", "synthesise", "curate")}
    inputs = {str(product): tree_digest(product) for product in INPUTS} | {"bounds": digest(bounds)}
    shard = Shard("", inputs)
    run_shards("validate", partial(_validate, params), [shard], products.VALIDATED, params=params, machine=machine)
    faults = json.loads((products.VALIDATED / products.VALIDATION).read_text())["faults"]
    if faults:
        raise WorkFailed(f"{'; '.join(faults)} (all results: {products.VALIDATED / products.DATA_DOCS}/index.html)")


def _validate(params: Params, shard: Shard, folder: Path) -> Counts:
    found = check(list(suites(params)), folder / products.DATA_DOCS)
    faults = [fault for outcome in found.values() for fault in outcome["faults"]]
    (folder / products.VALIDATION).write_text(json.dumps({"faults": faults, "suites": found}, indent=1) + "\n")
    return Counts({"expectations": sum(outcome["expectations"] for outcome in found.values())}, {"faults": len(faults)})


def _unique(column: str, fault: str) -> Check:
    return Check("ExpectColumnValuesToBeUnique", fault, {"column": column})


def _present(column: str, fault: str) -> Check:
    return Check("ExpectColumnValuesToNotBeNull", fault, {"column": column})


def _one_of(column: str, values: Sequence[object], fault: str) -> Check:
    return Check("ExpectColumnValuesToBeInSet", fault, {"column": column, "value_set": list(values)})


def _between(column: str, low: float | None, high: float | None, fault: str) -> Check:
    return Check("ExpectColumnValuesToBeBetween", fault, {"column": column, "min_value": low, "max_value": high})


def _columns(table: pl.DataFrame, names: Sequence[str]) -> Check:
    where = {"column_set": list(names), "exact_match": True}
    return Check("ExpectTableColumnsToMatchSet", f"columns {sorted(set(table.columns) ^ set(names))} differ", where)


def suites(params: Params) -> Iterator[Suite]:
    """What is expected of each product; bounds come from the sections of the stages that made them."""
    yield _images("images@ingested", products.INGESTED)
    yield _images("images@synthesised", products.SYNTHESISED)
    yield _faces("faces@ingested", products.MEASURED_PHOTOS)
    yield _faces("faces@synthesised", products.MEASURED_SCENES)
    yield from _people()
    yield from _scenes()
    yield from _sets(params)


def _images(name: str, product: Path) -> Suite:
    table = products.images(product)
    usable = table.filter(pl.col("status") == "ok")
    checks = [
        _columns(table, records.IMAGES.names),
        Check("ExpectTableRowCountToBeBetween", "no usable picture", {"min_value": 1}),
        _unique("image_id", "a picture twice"),
        _present("key", "a picture without a place in its shard"),
        _present("source", "a picture without a source"),
        _present("licence", "a picture without a licence"),
        _one_of("consent", CONSENT_WEAKEST_FIRST, "consent outside the vocabulary"),
        _present("consent", "a picture without consent"),
        _between("width", 16, None, "a picture narrower than 16 px"),
        _between("height", 16, None, "a picture lower than 16 px"),
    ]
    return Suite(name, usable, "image_id", checks)


def _faces(name: str, product: Path) -> Suite:
    bounds = load("measure").model_dump()
    table = products.faces(product)
    norms = np.linalg.norm(table["embedding"].to_numpy().astype(np.float32), axis=1)
    box = pl.col("box").arr
    dropped = {"embedding", "landmarks", "pose", "box"}
    flat = table.with_columns(norm=norms, area=(box.get(2) - box.get(0)) * (box.get(3) - box.get(1))).drop(dropped)
    checks = [
        _columns(flat, [*(set(records.measured_faces(1).names) - dropped), "norm", "area"]),
        _unique("face_id", "a face twice"),
        _between("score", bounds["min_score"], 1, "a detection score outside measure.min_score to 1"),
        _between("side_px", bounds["min_side"], None, "a face under measure.min_side"),
        _between("area", 1, None, "an empty box"),
        _between("norm", 0.99, 1.01, "an embedding that is not a unit vector"),
        _one_of("embedder", [bounds["faces"]], "an embedding of another network than measure.faces"),
    ]
    return Suite(name, flat, "face_id", checks)


def _people() -> Iterator[Suite]:
    bounds = load("identify").model_dump()
    people = products.people().drop("centre")
    kept = people.filter("keep")
    checks = [
        _unique("person_id", "a person twice"),
        _one_of("split", SPLITS, "a person in no split"),
        _between("n", bounds["min_faces"], None, "a person with fewer faces than identify.min_faces"),
        _between("spread", bounds["min_face_cosine"], 1, "a person looser than identify.min_face_cosine"),
    ]
    yield Suite("people", kept, "person_id", checks)
    components = kept.group_by("component").agg(splits=pl.col("split").n_unique()).sort("component")
    yield Suite("components", components, "component", [_between("splits", 1, 1, "a component in two splits")])
    faces = products.people_faces()
    reasons = faces.filter(~pl.col("keep"))
    yield Suite("faces turned away", reasons, "face_id", [_present("reason", "a face turned away without a reason")])


def _scenes() -> Iterator[Suite]:
    bounds = load("synthesise").model_dump()
    scenes = products.scenes()
    checks = [
        _unique("image_id", "a scene twice"),
        _one_of("n", bounds["people"], "a number of people outside synthesise.people"),
        _present("prompt", "a scene without a prompt"),
        _one_of("split", SPLITS, "a scene in no split"),
    ]
    yield Suite("scenes", scenes, "image_id", checks)
    people = products.people().select("person_id", person_split="split")
    layout = products.layout()
    placed = (
        layout.join(scenes.select("image_id", "split"), on="image_id")
        .join(people, on="person_id", how="left")
        .with_columns(own_split=pl.col("split") == pl.col("person_split"))
        .drop("box")
    )
    yield Suite("layout", placed, "image_id", [_one_of("own_split", [True], "a person in a scene of another split")])


def _sets(params: Params) -> Iterator[Suite]:
    bounds = load("curate").model_dump()
    table = products.sets()
    turned_away = table.filter(~pl.col("keep")).select("set_id", "reason")
    yield Suite("sets turned away", turned_away, "set_id", [_present("reason", "a set turned away without a reason")])
    sets = table.filter("keep")
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
        _between("cross_cosine", -1, bounds["max_cross_cosine"], "two people more alike than curate.max_cross_cosine"),
    ]
    yield Suite("sets", sets.drop(nested), "set_id", checks)
    counts = pl.DataFrame({"split": SPLITS, "sets": [(sets["split"] == split).sum() for split in SPLITS]})
    yield Suite(
        "splits", counts, "split", [_between("sets", params.min_sets, None, "fewer sets than validate.min_sets")]
    )
    people = sets.select("set_id", "split", person_id="person_ids").explode("person_id")
    per_person = people.group_by("person_id").agg(splits=pl.col("split").n_unique(), sets=pl.len()).sort("person_id")
    checks = [
        _between("splits", 1, 1, "a person in sets of two splits"),
        _between("sets", 1, bounds["max_sets_per_person"], "a person in more sets than curate.max_sets_per_person"),
    ]
    yield Suite("people of sets", per_person, "person_id", checks)
    yield _references(sets, bounds)


def _references(sets: pl.DataFrame, bounds: Mapping) -> Suite:
    """A row a reference of a set."""
    references = (
        sets.select("set_id", "target_sources", "target_image_id", "person_ids", "pool")
        .explode("person_ids", "pool")
        .explode("pool")
        .unnest("pool")
        .with_columns(
            is_source=pl.col("target_sources").list.contains(pl.col("image_id"))
            | (pl.col("image_id") == pl.col("target_image_id"))
        )
        .drop("target_sources")
    )
    checks = [
        _present("face_id", "a person without a reference"),
        _one_of("is_source", [False], "a reference whose photograph the target's face was made from"),
        _between("cosine", bounds["min_cosine"], bounds["max_cosine"], "a reference outside curate's band"),
    ]
    return Suite("references", references, "set_id", checks)


def check(suites: Sequence[Suite], docs: Path) -> dict[str, dict]:
    """Run all suites in an ephemeral context and write its Data Docs to a folder.

    Returns:
        By suite {"rows", "expectations", "met", "faults"}; a fault is a line that names the product and a row.
    """
    import great_expectations as gx
    from great_expectations.core import RunIdentifier
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    for site in list(context.get_docs_sites_urls()):
        context.delete_data_docs_site(str(site["site_name"]))
    context.add_data_docs_site(
        "data_docs",
        {
            "class_name": "SiteBuilder",
            "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs.resolve())},
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        },
    )
    source = context.data_sources.add_pandas("products")
    definitions = []
    for suite in suites:
        asset = source.add_dataframe_asset(suite.name)
        batch = asset.add_batch_definition_whole_dataframe("all")
        expectations = gx.ExpectationSuite(suite.name, expectations=[_expectation(gx, check) for check in suite.checks])
        context.suites.add(expectations)
        definitions.append(gx.ValidationDefinition(name=suite.name, data=batch, suite=expectations))
    outcomes = {}
    for suite, definition in zip(suites, definitions, strict=True):
        context.validation_definitions.add(definition)
        result = definition.run(
            batch_parameters={"dataframe": suite.table.to_pandas()},
            result_format={"result_format": "SUMMARY", "unexpected_index_column_names": [suite.key]},
            run_id=RunIdentifier("validate", datetime(2000, 1, 1, tzinfo=UTC)),
        )
        outcomes[suite.name] = _outcome(suite, result)
    context.build_data_docs()
    return outcomes


def _expectation(gx: object, check: Check) -> "gx.expectations.Expectation":
    build: Callable = getattr(gx.expectations, check.kind)  # type: ignore[attr-defined]
    return build(**check.where, meta={"fault": check.fault})


def _outcome(suite: Suite, result: "gx.core.ExpectationSuiteValidationResult") -> dict:
    """How many expectations were met, and a line for each that was not: product, fault, how many rows, which first."""
    faults = []
    for outcome in result.results:
        if outcome.success:
            continue
        found = outcome.result or {}
        rows = [row[suite.key] for row in found.get("partial_unexpected_index_list") or [] if suite.key in row]
        count = found.get("unexpected_count")
        named = f" ({count} of {suite.table.height} rows, first {suite.key} {rows[0]})" if rows else ""
        assert outcome.expectation_config is not None
        faults.append(f"{suite.name}: {outcome.expectation_config.meta['fault']}{named}")
    met = len(result.results) - len(faults)
    return {"rows": suite.table.height, "expectations": len(result.results), "met": met, "faults": faults}
