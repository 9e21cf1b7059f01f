"""The whole graph on a small parameter file: what it makes, and that it is made again only when it must be."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import yaml

from pipelines.core import keys, products
from pipelines.core.shards import tree_digest
from tests.pipelines.conftest import LOOK

ROOT = Path(__file__).resolve().parents[2]
GRAPH_FILE = yaml.safe_load((ROOT / "dvc.yaml").read_text())
GRAPH = GRAPH_FILE["stages"]
OUTPUTS = ("datasets", "runs")
STAGES = ("ingest", "measure")


def outputs(path: Path) -> dict[str, str]:
    """File -> sha256 of everything that the graph makes (DVC writes .gitignore as it goes)."""
    found = [file for folder in OUTPUTS for file in (path / folder).rglob("*")]
    files = [file for file in found if file.is_file() and file.name != ".gitignore"]
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.parametrize("stage", GRAPH)
def test_folders_of_code_are_the_imports(stage):
    """A stage that ran code outside the folders it depends on would be taken for up to date when that changes."""
    entry = GRAPH[stage].get("do", GRAPH[stage])
    folders = {Path(name) for name in entry["deps"] if name.partition("/")[0] in keys.PACKAGES}
    assert folders == {Path("pipelines/core"), Path("pipelines") / stage, Path("umo")}
    outside = [path for path in keys.sources(f"pipelines.{stage}.stage") if not folders & set(path.parents)]
    assert outside == [Path("pipelines/__init__.py")]
    assert not keys.code(f"pipelines.{stage}.stage").keys() & {str(path) for path in keys.MACHINERY}


def test_versions_are_those_of_the_locks(tmp_path):
    """Of each stage the libraries that it imports, and no others: its one param in versions.yaml."""
    assert keys.write_versions(tmp_path / "v.yaml").read_text() == (ROOT / "versions.yaml").read_text(), "make versions"
    locks = "\n".join((ROOT / name).read_text().lower() for name in keys.LOCKS)
    pins = locks.replace("_", "-").splitlines()
    for stage, pinned in yaml.safe_load((ROOT / "versions.yaml").read_text()).items():
        assert {"versions.yaml": [stage]} in GRAPH[stage].get("do", GRAPH[stage])["params"]
        assert set(pinned.split(",")) <= set(pins)
        locked = [name for name in keys.libraries(f"pipelines.{stage}.stage") if name not in keys.EXTRAS]
        assert [pin.partition("==")[0] for pin in pinned.split(",")] == locked


def test_every_stage_ran_once(repro):
    parts = {name: entry.get("foreach", [None]) for name, entry in GRAPH.items()}
    expected = {f"{name}@{part}" if part else name for name, of in parts.items() for part in of}
    ran = json.loads((repro.path.parent / "ran.json").read_text())
    assert set(ran) == expected
    assert len(ran) == len(expected)


def test_a_second_run_does_nothing(repro):
    before = outputs(repro.path)
    assert repro.repro() == []
    assert outputs(repro.path) == before
    assert json.loads(repro.run("dvc", "status", "--json").stdout) == {LOOK: ["always changed"]}


def test_a_threshold_reruns_curate_and_what_follows(workspace):
    workspace.params(curate={"min_cosine": 0.62})
    assert workspace.repro("cases", warm=True) == ["curate", "caption", "validate", "export", "cases"]
    changed = json.loads(workspace.run("dvc", "status", "--json").stdout)
    assert {"train@mimr", "generate@base", "report"} <= set(changed)
    assert not {name.split("@")[0] for name in changed} & {"ingest", "measure", "identify", "synthesise", "curate"}
    sets = pl.read_parquet(workspace.path / products.CURATED / products.SETS_TABLE).filter("keep")
    assert sets["reference_cosine"].explode().min() >= 0.62


def test_an_edited_module_redoes_the_shards(workspace):
    """faces/align.py is imported by measure and not by ingest, which is asked in vain; no product changes."""

    def done() -> dict[str, set[str]]:
        return {stage: {path.name for path in (workspace.path / ".work" / stage).iterdir()} for stage in STAGES}

    before, products_before = done(), tree_digest(workspace.path / products.MEASURED)
    module = workspace.path / "umo/faces/align.py"
    module.write_text(module.read_text() + "\nEDITED = 1  # for a test\n")
    assert workspace.repro("ingest", "measure@ingested") == ["ingest", "measure@ingested"]
    assert done()["ingest"] == before["ingest"]
    assert len(done()["measure"] - before["measure"]) == 4
    assert tree_digest(workspace.path / products.MEASURED) == products_before


def test_a_new_photograph_touches_one_shard(workspace):
    photo = workspace.path / "datasets/photos/mine/plain.jpg"
    (photo.parent / "one_more.jpg").write_bytes(photo.read_bytes() + b"\0")  # a new content, the same picture
    before = {path.name for path in (workspace.path / ".work/ingest").iterdir()}
    assert workspace.repro("ingest") == ["ingest"]
    assert len({path.name for path in (workspace.path / ".work/ingest").iterdir()} - before) == 1


@pytest.mark.long
@pytest.mark.parametrize(
    ("stage", "sign"), [("train@mimr", "train/*.partial/checkpoints/*.pt"), ("evaluate@mimr", "evaluate/*")]
)
def test_killed_and_started_again_it_ends_in_the_same_bytes(repro, workspace, stage, sign):
    """The stages before these are killed at random by tests/pipelines/forget/test_forget.py."""
    for name in (f".work/{stage.split('@')[0]}", ".dvc/cache/runs"):
        shutil.rmtree(workspace.path / name)
    _kill_at(workspace, sign, stage)
    assert workspace.repro("--force", "--single-item", stage) == [stage]
    assert outputs(workspace.path) == outputs(repro.path)


def _kill_at(workspace, sign: str, stage: str) -> None:
    """Start a stage and kill it and its children, without warning, as soon as a file like `sign` is in .work."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", "--force", "--single-item", stage],
        cwd=workspace.path,
        env=workspace.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while not any((workspace.path / ".work").glob(sign)):
        assert process.poll() is None, f"dvc repro ended before there was {sign}"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.long
def test_processes_make_the_same_products_as_one(repro, workspace):
    subprocess.run(["rm", "-rf", str(workspace.path / ".work")], check=True)
    workspace.params(machine={"executor": "process", "workers": 2})
    workspace.stage("ingest", check=True)
    workspace.stage("measure", "--of", "ingested", check=True)
    for product in (products.INGESTED, products.MEASURED_PHOTOS):
        assert tree_digest(workspace.path / product) == tree_digest(repro.path / product)


def test_metrics_are_shown_by_dvc(repro):
    """The few that are worth laying side by side: a mean for each method, as its own metrics.json has it."""
    shown = json.loads(repro.run("dvc", "metrics", "show", "--json").stdout)[""]["data"]
    summary = shown["runs/evaluate/summary.json"]["data"]
    assert summary["id_sim_strict"].keys() == {"base", "mimr", "ours", "pasted", "sft", "shuffled", "target"}
    for metric, methods in summary.items():
        for method, mean in methods.items():
            own = json.loads((repro.path / f"runs/evaluate/{method}/metrics.json").read_text())
            assert mean == own[metric]["mean"]
    assert set(shown) == {"runs/evaluate/summary.json", "models/tiny-uno/training.json"}


@pytest.mark.slow
def test_versions_are_laid_side_by_side(workspace):
    """The commands of docs/versions.md; what the pages hold is tested on made tables (test_report_plots.py)."""
    workspace.run("git", "add", "--all")
    workspace.run("git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "made")
    guide = (ROOT / "docs/versions.md").read_text()
    lines = guide.partition("## Compare\n```sh\n")[2].partition("```")[0].splitlines()
    assert len(lines) == 3
    said = [workspace.run("bash", "-c", line).stdout for line in lines]
    assert "id_sim_strict.mimr" in said[0]
    page = (workspace.path / "dvc_plots/index.html").read_text()
    titles = [plot["title"] for entry in GRAPH_FILE["plots"] for plot in entry.values()]
    assert titles and all(json.dumps(title)[1:-1] in page for title in titles)
