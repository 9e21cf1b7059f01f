"""The house rules that a reader relies on: which way imports run, where things may not be."""

import ast
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PURE = {"records", "matching", "flow", "guidance", "images", "formats", "colour", "errors", "quality"}
ADAPTERS = {"faces", "customizers"}
USES = {"evaluation", "training", "drawing", "planning", "generate", "cli"}


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def inside_umo(path: Path) -> set[str]:
    """First names below umo that a file imports."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("umo.")}


@pytest.mark.parametrize("path", sorted((ROOT / "umo").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_umo_knows_no_pipeline(path):
    assert not {name.split(".")[0] for name in imports(path)} & {"pipelines", "dvc", "prefect", "great_expectations"}


@pytest.mark.parametrize("name", sorted(PURE))
def test_the_pure_know_no_adapter_and_no_use(name):
    path = ROOT / f"umo/{name}.py"
    if path.exists():
        assert not inside_umo(path) & (ADAPTERS | USES)


@pytest.mark.parametrize("package", sorted(ADAPTERS))
def test_adapters_know_no_use(package):
    for path in (ROOT / "umo" / package).glob("*.py"):
        assert not inside_umo(path) & USES, path


def test_rooms_are_as_drawn():
    """Beside the rooms there are few modules; all but the two that carry the rest have a stage.py."""
    from pipelines.__main__ import STAGES

    rooms = {path.name for path in (ROOT / "pipelines").iterdir() if (path / "__init__.py").exists()}
    assert rooms == {*STAGES, "ablate", "core", "service", "forget", "release", "browse"}
    assert all((ROOT / "pipelines" / room / "stage.py").exists() for room in rooms - {"core", "service"})
    assert len(list((ROOT / "pipelines").glob("*.py"))) <= 8


def test_no_room_knows_another():
    """A stage knows its own room, core and umo; forget and release also what keeps the workspace in order.

    The ladder, which is no stage of the graph, runs four of them besides.
    """
    from pipelines.__main__ import STAGES

    known_too = {
        "ablate": {"service", "train", "cases", "generate", "evaluate"},
        "forget": {"service"},
        "release": {"service"},
    }
    for room in (*STAGES, "ablate", "core", "service", "forget", "release", "browse"):
        others = known_too.get(room, set())
        for path in (ROOT / "pipelines" / room).rglob("*.py"):
            known = {name.split(".")[1] for name in imports(path) if name.startswith("pipelines.")}
            assert known <= {room, "core", *others}, path


def test_rooms_are_not_entered_by_a_name_in_a_string():
    """The test above would not see it. A stage that is a process of its own names itself."""
    for path in (ROOT / "pipelines").glob("*/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "import_module":
                said, room = ast.unparse(node.args[0]), path.relative_to(ROOT / "pipelines").parts[0]
                assert room == "core" or said == f"'pipelines.{room}.stage'", path


def test_prefect_is_known_to_the_flows_alone():
    """Everything that they are made of can be used, and tested, without it."""
    files = [*(ROOT / "pipelines").rglob("*.py"), *(ROOT / "umo").rglob("*.py")]
    knowing = {str(path.relative_to(ROOT)) for path in files if "prefect" in {n.split(".")[0] for n in imports(path)}}
    assert knowing == {"pipelines/flows.py"}


def test_no_stage_depends_on_the_service():
    """Else an edit of a page in the UI would make data stale."""
    from pipelines.__main__ import STAGES
    from pipelines.core.keys import sources

    for stage in STAGES:
        assert not [path for path in sources(f"pipelines.{stage}.stage") if "service" in path.parts], stage


def test_datasets_is_no_package():
    """With an __init__.py it would shadow Hugging Face's `datasets`."""
    assert not list((ROOT / "datasets").rglob("*.py"))


def test_every_section_of_params_is_a_stage():
    from pipelines.__main__ import SECTIONS
    from pipelines.core.params import load_all

    assert set(load_all(SECTIONS, ROOT / "params.yaml")) == set(yaml.safe_load((ROOT / "params.yaml").read_text()))
