"""Great Expectations over every product; a fault stops the graph and is named in one line.

Results as JSON and as Data Docs, both outputs of the stage; `pipelines.validate.suites` says what is expected.
"""

import json
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from pydantic import Field

from pipelines.core import products
from pipelines.core.params import Section, load
from pipelines.core.shards import Counts, Machine, Shard, digest, tree_digest
from pipelines.core.shards import run as run_shards
from pipelines.validate.suites import Check, Suite, suites
from umo.errors import WorkFailed

if TYPE_CHECKING:
    import great_expectations as gx

EPOCH = "20000101"  # the date of every validation: the Data Docs are the same for the same products
INPUTS = (*products.SOURCES_OF_SETS, products.CURATED, products.CAPTIONED)


class Params(Section):
    """
    min_sets: of each split.
    """

    min_sets: int = Field(ge=0)


def run(params: Params, machine: Machine) -> None:
    """Check every product; WorkFailed where an expectation is not met: the Data Docs show all of them."""
    stages = ("ingest", "measure", "identify", "synthesise", "curate")
    bounds = {stage: load(stage).model_dump(mode="json") for stage in stages}
    inputs = {str(product): tree_digest(product) for product in INPUTS} | {"bounds": digest(bounds)}
    work = partial(_validate, params)
    run_shards("validate", work, [Shard("", inputs)], products.VALIDATED, params=params, machine=machine)
    faults = json.loads((products.VALIDATED / products.VALIDATION).read_text())["faults"]
    if faults:
        raise WorkFailed(f"{'; '.join(faults)} (all results: {products.VALIDATED / products.DATA_DOCS}/index.html)")


def _validate(params: Params, shard: Shard, folder: Path) -> Counts:
    found = check(list(suites(params.min_sets)), folder / products.DATA_DOCS)
    faults = [fault for outcome in found.values() for fault in outcome["faults"]]
    (folder / products.VALIDATION).write_text(json.dumps({"faults": faults, "suites": found}, indent=1) + "\n")
    return Counts({"expectations": sum(outcome["expectations"] for outcome in found.values())}, {"faults": len(faults)})


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
    outcomes = {}
    for suite in suites:
        batch = source.add_dataframe_asset(suite.name).add_batch_definition_whole_dataframe("all")
        wanted = [expectation for check in suite.checks for expectation in _expectations(gx, check)]
        expectations = context.suites.add(gx.ExpectationSuite(suite.name, expectations=wanted))
        definition = gx.ValidationDefinition(name=suite.name, data=batch, suite=expectations)
        result = context.validation_definitions.add(definition).run(
            batch_parameters={"dataframe": suite.table.to_pandas()},
            result_format={"result_format": "SUMMARY", "unexpected_index_column_names": [suite.key]},
            run_id=RunIdentifier("validate", datetime.strptime(EPOCH, "%Y%m%d").replace(tzinfo=UTC)),
        )
        outcomes[suite.name] = _outcome(suite, result)
    context.build_data_docs()
    for page in docs.rglob("*.html"):
        page.write_text(_same_every_time(page.read_text(encoding="utf-8")), encoding="utf-8")
    return outcomes


def _same_every_time(page: str) -> str:
    """A page of the Data Docs without the time it was made and with plain numbers for its random ids."""
    ids: dict[str, str] = {}
    page = re.sub(r"\d{8}T\d{6}\.\d+Z", lambda found: found[0] if found[0].startswith(EPOCH) else "", page)
    return re.sub(
        r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", lambda found: ids.setdefault(found[0], str(len(ids))), page
    )


def _expectations(gx: ModuleType, check: Check) -> "list[gx.expectations.Expectation]":
    """The expectation, and that no value is missing where one is needed."""
    build: Callable = getattr(gx.expectations, check.kind)
    found = [build(**check.where, meta={"fault": check.fault})]
    if not check.optional:
        present = {"column": check.where["column"], "meta": {"fault": f"{check.fault} (none is given)"}}
        found.append(gx.expectations.ExpectColumnValuesToNotBeNull(**present))
    return found


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
