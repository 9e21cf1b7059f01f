"""docs/where.md answers a newcomer's questions by a folder or a command; what it says of the code is so."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import yaml

from pipelines.__main__ import STAGES
from pipelines.core import keys, products
from pipelines.core.shards import ROOT
from umo import records
from umo.training.recipe import Method

PAGE = (ROOT / "docs/where.md").read_text()
TREE = re.compile(r"^(?P<indent> *)(?P<name>[\w./-]+) {2,}(?P<phrase>\S.*)$", re.MULTILINE)


def section(heading: str) -> str:
    (found,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    return found


def command(heading: str, start: str) -> str:
    """The one command of a section that begins so."""
    (found,) = re.findall(rf"^{re.escape(start)}.*$", section(heading), re.MULTILINE)
    return found


def first_cells(heading: str) -> list[str]:
    return re.findall(r"^\| `([^`]+)` \|", section(heading), re.MULTILINE)


def run(line: str, folder: Path = ROOT) -> str:
    """A command of the page, by the tests' own Python."""
    line = line.replace("python ", f"{sys.executable} ", 1)
    done = subprocess.run(line, shell=True, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Why was this row dropped?


def reasons_in_code() -> set[str]:
    """What the room of curate writes into `reason`, with N for values."""
    found: set[str] = set()
    for path in (ROOT / "pipelines/curate").glob("*.py"):
        tree = ast.parse(path.read_text())
        named = {
            node.targets[0].id: node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        for text in _reasons(tree):
            found.add(_text(named[text.id] if isinstance(text, ast.Name) else text))
    return found


def _reasons(tree: ast.Module) -> Iterator[ast.expr]:
    """The texts in `first_reason([(fault, text), ...])`, and in `pl.lit(text)` where the text has several words."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        function = ast.unparse(call.func)
        if function == "first_reason" and isinstance(call.args[0], ast.List):
            yield from (pair.elts[1] for pair in call.args[0].elts if isinstance(pair, ast.Tuple))
        elif function == "pl.lit" and " " in _text(call.args[0]):
            yield call.args[0]


def _text(node: ast.expr) -> str:
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    return "".join(
        str(part.value) if isinstance(part, ast.Constant) else "N" * isinstance(part, ast.FormattedValue)
        for part in parts
    )


def test_every_reason_to_drop_a_set_is_on_the_page_and_in_the_room_of_curate() -> None:
    said = [reason for reason in first_cells("Why was this row dropped?") if "/" not in reason]
    assert len(said) > 10
    assert set(said) == reasons_in_code()


def test_one_grep_leads_to_the_file_that_gives_a_reason() -> None:
    files = list((ROOT / "pipelines/curate").glob("*.py"))
    for reason in reasons_in_code():
        words = max(reason.split("N"), key=len).strip()
        assert len([path for path in files if words in path.read_text()]) == 1, reason


def test_what_decides_a_reason_can_be_set() -> None:
    shipped = yaml.safe_load((ROOT / "params.yaml").read_text())
    named = re.findall(r"`curate\.(\w+)`", section("Why was this row dropped?"))
    assert len(named) > 8
    assert set(named) <= shipped["curate"].keys()


def test_a_set_is_looked_up_by_its_picture(tmp_path: Path) -> None:
    row = dict.fromkeys(records.SETS.names)
    rows = [
        row | {"set_id": "s3f2a01", "target_image_id": "3f2a01", "keep": False, "reason": "too few people"},
        row | {"set_id": "s77aa02", "target_image_id": "77aa02", "keep": False, "reason": "the same person twice"},
    ]
    (tmp_path / products.CURATED).mkdir(parents=True)
    records.write(tmp_path / products.CURATED / products.SETS_TABLE, rows, records.SETS)
    said = run(command("Why was this row dropped?", "python -c"), tmp_path)
    assert "s3f2a01" in said and "too few people" in said
    assert "s77aa02" not in said


def test_the_columns_of_reasons_are_those_of_the_products() -> None:
    for schema, columns in (
        (records.IMAGES, {"status", "error"}),
        (records.PEOPLE, {"keep", "reason"}),
        (records.PEOPLE_FACES, {"keep", "reason"}),
        (records.SETS, {"keep", "reason"}),
    ):
        assert columns <= set(schema.names)
    rooms = re.findall(r"\| `(pipelines/\w+)` \|$", section("Why was this row dropped?"), re.MULTILINE)
    assert rooms == [f"pipelines/{stage}" for stage in ("ingest", "synthesise", "identify", "curate")]


# Where is the reward?


def test_every_method_with_a_reward_has_its_function_there() -> None:
    files = [path for found in (ROOT / "umo").glob("rewards*") for path in (found, *found.rglob("*.py"))]
    code = "".join(path.read_text() for path in files if path.suffix == ".py")
    text = section("Where is the reward?")
    for method in set(get_args(Method)) - {"sft"}:
        assert f"def {method}(" in code, method
        assert f"`{method}`" in text, method
    shipped = yaml.safe_load((ROOT / "params.yaml").read_text())["bases"].values()
    known = {key for base in shipped for key in base["train"]}
    assert set(re.findall(r"`((?:reward|lambda)_\w+)`", text)) <= known


# What does forget touch?


def test_what_is_asked_of_forget_it_takes() -> None:
    from pipelines.forget.stage import _parser

    text = section("What does forget touch?")
    (line,) = re.findall(r"^python -m pipelines forget (.+)$", text, re.MULTILINE)
    assert _parser().parse_args(line.split()).dry_run
    known = {name for action in _parser()._actions for name in action.option_strings}
    assert set(re.findall(r"`(--[\w-]+)`", text)) <= known


# What makes a stage run again?


def test_the_files_and_libraries_that_count_are_listed() -> None:
    line = command("What makes a stage run again?", "python -c")
    listed = run(line).split()
    assert {"pipelines/curate/stage.py", "umo/records.py", "polars"} <= set(listed)
    assert not {str(path) for path in keys.MACHINERY} & set(listed)
    assert not {"pytest", "ruff", "filelock"} & set(listed)


# The house


def rooms_of_tree() -> dict[str, str]:
    """Path -> its phrase; what is indented lies below the last line that is not."""
    (tree,) = re.findall(r"^```text\n(.*?)^```", section("The house"), re.DOTALL | re.MULTILINE)
    found, above = {}, ""
    for line in TREE.finditer(tree):
        above = "" if not line["indent"] else above
        found[above + line["name"]] = line["phrase"]
        above = line["name"] if not line["indent"] else above
    return found


def test_every_room_is_in_the_tree_with_a_phrase() -> None:
    tree = rooms_of_tree()
    for house in ("umo", "pipelines"):
        for path in (ROOT / house).iterdir():
            if path.is_dir() and (path / "__init__.py").exists():
                assert f"{house}/{path.name}/" in tree, path
            elif path.suffix == ".py" and path.name != "__init__.py":
                assert f"{house}/{path.name}" in tree, path
    assert {f"pipelines/{stage}/" for stage in STAGES} <= tree.keys()


@pytest.mark.parametrize("name", sorted(rooms_of_tree()))
def test_what_is_in_the_tree_is_there(name: str) -> None:
    assert (ROOT / name).exists()


def test_paths_that_the_page_names_are_there() -> None:
    outside = re.sub(r"^```.*?^```", "", PAGE, flags=re.DOTALL | re.MULTILINE)
    named = set(re.findall(r"`((?:umo|pipelines|models|docs)/[\w/.-]+)`", outside))
    assert len(named) > 8
    for path in named:
        assert list(ROOT.glob(re.sub("[A-Z]{2,}", "*", path))), path
