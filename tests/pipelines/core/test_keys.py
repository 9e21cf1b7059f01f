"""What is part of a key, and what is not."""

import importlib.metadata
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from pipelines.__main__ import STAGES
from pipelines.core import keys
from pipelines.core.keys import sources

MATCHING = {"compare", "evaluate", "report", "synthesise", "train"}
TORCH = {"caption", "evaluate", "generate", "measure", "report", "synthesise", "train"}


@pytest.fixture(scope="module", autouse=True)
def _parsed_once() -> Iterator[None]:
    """What has the same text is parsed once for all tests; every text is read again."""
    known: dict[str, keys.Source] = {}
    parse = keys._read.__wrapped__

    def read(path: Path) -> keys.Source:
        text = path.read_text()
        if text not in known:
            known[text] = parse(path)
        return known[text]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "_read", cache(read))
        yield


def test_sources_follow_imports_and_packages():
    found = {str(path) for path in sources("pipelines.measure.stage")}
    assert {"pipelines/measure/stage.py", "pipelines/core/store.py", "umo/quality.py"} <= found
    assert {"umo/__init__.py", "pipelines/__init__.py", "umo/faces/__init__.py", "umo/faces/opencv_zoo.py"} <= found
    assert not found & {"pipelines/curate/stage.py", "umo/evaluation/metrics.py", "pipelines/report/stage.py"}


def parts() -> dict[str, tuple[dict, dict]]:
    """What each stage's keys say of its code and its libraries."""
    rooms = {stage: f"pipelines.{stage}.stage" for stage in STAGES}
    return {stage: (keys.code(room), keys.versions(room)) for stage, room in rooms.items()}


def read_again() -> dict[str, tuple[dict, dict]]:
    """The same, as a new process would find it."""
    keys.sources.cache_clear()
    keys._read.cache_clear()
    return parts()


@pytest.fixture(scope="module")
def shipped() -> dict[str, tuple[dict, dict]]:
    return read_again()


def differ(before: dict[str, tuple], after: dict[str, tuple]) -> set[str]:
    """The stages whose keys are others."""
    return {stage for stage in STAGES if after[stage] != before[stage]}


@pytest.fixture
def changed(shipped) -> Callable[[Callable[[], object]], set[str]]:
    """The stages whose keys something changes in the code as it is shipped."""

    def changed(act: Callable[[], object]) -> set[str]:
        act()
        return differ(shipped, read_again())

    return changed


@pytest.fixture
def code(tmp_path, monkeypatch):
    """A copy of the code, whose keys they are."""
    for name in keys.PACKAGES:
        shutil.copytree(keys.ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(keys, "ROOT", tmp_path)
    yield tmp_path
    keys.sources.cache_clear()


def append(path: Path, text: str) -> None:
    path.write_text(f"{path.read_text()}\n\n{text}\n")


def test_comments_docstrings_and_layout_are_in_no_key(code, changed):
    def scribble() -> None:
        for path in code.rglob("*.py"):
            text = path.read_text()
            lines = text.replace('"""', '"""Well: ', 1) if text.startswith('"""') else text
            path.write_text(
                "# A remark.\n\n\n" + lines.replace("\n    return ", "\n\n    # so\n    return ") + "\n# End.\n"
            )

    assert changed(scribble) == set()


def test_a_docstring_of_a_function_is_in_no_key_and_another_string_is(code):
    path = code / "umo/matching.py"
    append(path, 'def new():\n    """One."""\n    return "one"')
    one = read_again()
    said = path.read_text().replace('"""One."""', '"""Two."""')
    path.write_text(said)
    assert read_again() == one
    path.write_text(said.replace('"one"', '"two"'))
    assert differ(one, read_again()) == MATCHING


def test_what_only_carries_work_is_in_no_key(code, changed):
    assert {"locks.py", "executors.py", "shards.py", "digests.py", "keys.py"} <= {path.name for path in keys.MACHINERY}

    def work() -> None:
        for path in keys.MACHINERY:
            append(code / path, "import torch, umo.training.trainer")

    assert changed(work) == set()


@pytest.mark.parametrize(
    ("library", "stages"),
    [
        ("pytest", set()),
        ("ruff", set()),
        ("dvc", set()),
        ("filelock", set()),
        ("pydantic", set()),
        ("great-expectations", {"validate"}),
        ("torch", TORCH),
        ("diffusers", {"generate", "synthesise", "train"}),
    ],
)
def test_a_newer_library_is_in_the_keys_of_the_stages_that_compute_with_it(monkeypatch, shipped, library, stages):
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "999" if name == library else version(name))
    assert differ(shipped, parts()) == stages


def test_a_change_in_matching_is_in_the_keys_of_the_stages_that_match(code, changed):
    assert changed(lambda: append(code / "umo/matching.py", "CHANGED = 1")) == MATCHING


def test_a_change_in_a_stages_own_room_is_in_its_keys_alone(code, shipped):
    for stage in STAGES:
        append(code / "pipelines" / stage / "stage.py", "CHANGED = 1")
    after = read_again()
    for stage in STAGES:
        (old, _), (new, _) = shipped[stage], after[stage]
        assert {path for path in new if old.get(path) != new[path]} == {f"pipelines/{stage}/stage.py"}


def test_imports_in_functions_count(code):
    append(
        code / "pipelines/curate/stage.py",
        "def new():\n    try:\n        import umo.matching\n    finally:\n        new()",
    )
    imported = read_again()
    append(code / "umo/matching.py", "CHANGED = 1")
    assert differ(imported, read_again()) == MATCHING | {"curate"}
