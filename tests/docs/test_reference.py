"""The reference is written from the code: all of it is there, and nothing without a meaning."""

import json
import re
from collections.abc import Iterator

import pytest
import typer
import yaml

from docs.reference import commands, params, records, results, stages
from docs.reference.markdown import Undocumented
from pipelines.__main__ import OWN_ARGUMENTS, STAGES, TOOLS
from pipelines.core.params import Section
from pipelines.core.shards import ROOT
from umo.cli import app

ROW = re.compile(r"^\| `(?P<name>[^`]+)` \|(?P<cells>.*)\|$", re.MULTILINE)


def rows(page: str) -> dict[tuple[str, str], str]:
    """(heading, name) -> the last cell of every row that begins with a name."""
    found, heading = {}, ""
    for line in page.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif row := ROW.fullmatch(line):
            found[heading, row["name"]] = row["cells"].split(" | ")[-1].strip()
    return found


def keys(values: dict, heading: str) -> Iterator[tuple[str, str]]:
    """(section, key) of a section of params.yaml and the sections in it."""
    for key, value in values.items():
        yield heading, key
        if (heading, key) in NESTED:
            yield from keys(value, f"{heading}.{key}")


NESTED = {("ingest", "video"), ("synthesise", "diffusion"), ("synthesise.diffusion", "strict"), ("caption", "vlm")}


def test_every_key_of_params_is_on_its_page_with_a_meaning() -> None:
    shipped = yaml.safe_load((ROOT / "params.yaml").read_text())
    said = rows(params.page())
    wanted = {entry for section, values in shipped.items() if section != "bases" for entry in keys(values, section)}
    for base in shipped["bases"].values():
        wanted |= {("bases", key) for key in base} | {("bases.NAME.train", key) for key in base["train"]}
    assert len(wanted) > 120
    assert {entry for entry in wanted if len(said.get(entry, "")) < 5} == set()


def test_values_and_ranges_are_those_of_the_code() -> None:
    page = params.page()
    assert "| `fractions` | `{train: 0.65, validation: 0.1, test: 0.25}` | number ≥ 0, ≤ 1 by text |" in page
    assert "| `executor` | `process` | `serial`, `process` or `ray` |" in page
    assert "| `device` | *cpu* | text |" in page
    assert "| `people` | `[1, 2, 3]` | list of integer ≥ 1, ≤ 6 |" in page


def test_a_key_without_a_meaning_is_refused() -> None:
    class Bare(Section):
        """
        known: said.
            And more.

        unknown to the model: no entry.
        """

        known: int
        new: int

    with pytest.raises(Undocumented, match="'new' has no meaning"):
        params.meanings(Bare)


def test_keys_that_share_an_entry_name_each_other() -> None:
    class Shared(Section):
        """
        low, high: of it.
        other: said
            in two lines.
        """

        low: int
        high: int
        other: int

    expected = {"low": "with `high`: of it.", "high": "see `low`", "other": "said in two lines."}
    assert params.meanings(Shared) == expected


def test_every_command_and_option_is_there() -> None:
    page = commands.page()
    said = rows(page)
    for name, command in typer.main.get_command(app).commands.items():
        for parameter in command.params:
            flag = max(parameter.opts, key=len) if parameter.opts[0].startswith("-") else parameter.metavar
            start = flag or parameter.name.upper()
            assert any(heading == f"umo {name}" and row.startswith(start) for heading, row in said), (name, start)
    assert {("python -m pipelines", name) for name in (*STAGES, *TOOLS)} <= said.keys()
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {("make", f"make {name}") for name in targets} <= said.keys()
    assert ("python -m pipelines forget", "--photo FILE") in said
    assert {f"python -m pipelines {name}" for name in OWN_ARGUMENTS} <= {heading for heading, _ in said}


def test_every_stage_says_what_it_reads_and_leaves() -> None:
    page = stages.page()
    assert re.findall(r"^## (.+)$", page, re.MULTILINE) == list(STAGES)
    assert page.count("| reads |") == len(STAGES)
    for stage, part in zip(STAGES, page.split("\n## ")[1:], strict=True):
        assert "| leaves |" in part or "| leaves, kept by git |" in part, stage
    assert "runs/train/{item}" in page and "${" not in page


def test_every_column_has_a_meaning() -> None:
    said = rows(records.page())
    for name, schema in records.schemas().items():
        for column in schema.names:
            assert len(said[name, column]) > 3, (name, column)
    assert said["sets", "pool.recall"].startswith("of RECALL")
    with pytest.raises(Undocumented, match=r"sets\.new"):
        records.meaning(records.meanings(), "sets", "new")


def test_results_are_those_of_the_files() -> None:
    page = results.page()
    ladder = json.loads((ROOT / "docs/results/ladder.json").read_text())
    for row in ladder["rows"]:
        mean, low, high = (f"{row['id_sim_strict'][key]:.2f}" for key in ("mean", "low", "high"))
        assert f"| `{row['method']}` | {mean} [{low}, {high}] |" in page
    assert page.count("(`python -m bench ") == len(list((ROOT / "bench/results").glob("*.json")))
