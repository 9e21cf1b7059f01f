"""A clone without the photographs: what was pulled is worked on with, kept whatever is typed, and DVC's answer is told.

The graph is dvc.yaml's own, with its deps and outs; its commands are replaced by ones that take no time.
"""

import os
import shutil
from pathlib import Path

import pytest
import yaml

from pipelines.core.shards import ROOT
from tests.pipelines.conftest import Workspace

README = "datasets/photos/README.md"
MINE = "mine: {path: datasets/photos/mine, licence: CC0}\n"
STAGE = """
import hashlib, pathlib, sys

split = sys.argv.index("--")
outs, deps = sys.argv[2:split], sys.argv[split + 1:]
if sys.argv[1] == "ingest" and not pathlib.Path("datasets/photos/mine").is_dir():
    sys.exit("ingest: no photographs")
files = [file for dep in deps for file in sorted([pathlib.Path(dep), *pathlib.Path(dep).rglob("*")]) if file.is_file()]
made = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
for out in map(pathlib.Path, outs):
    names = ["CASES.jsonl", "results.json", "training.json", "pytorch_lora_weights.safetensors"]
    for file in [out] if out.suffix else [out / name for name in names]:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}" if file.suffix == ".json" and out.suffix else made)
"""
FOLDERS = ("pipelines", "umo", "models")


def _quick(name: str, spec: dict) -> dict:
    """A stage of dvc.yaml with a command that takes no time."""
    body = spec.get("do", spec)
    outs = [out if isinstance(out, str) else next(iter(out)) for out in body["outs"] + body.get("metrics", [])]
    quick = body | {"cmd": " ".join(["python stage.py", name, *outs, "--", *body["deps"]])}
    return spec | {"do": quick} if "do" in spec else quick


def _of_mimr(spec: dict) -> dict:
    """Without the other methods."""
    every = spec.get("foreach", ())
    if "mimr" in every:
        return spec | {"foreach": {"mimr": every["mimr"]} if isinstance(every, dict) else ["mimr"]}
    others = [dep for dep in spec.get("deps", ()) if dep.startswith("runs/evaluate/") and not dep.endswith("mimr")]
    return spec | {"deps": [dep for dep in spec["deps"] if dep not in others]} if others else spec


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The machine that has the photographs: everything is made, committed, and pushed to a folder."""
    path = tmp_path_factory.mktemp("maker") / "umo"
    path.mkdir()
    graph = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    stages = {name: _quick(name, _of_mimr(spec)) for name, spec in graph["stages"].items()}
    (path / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    (path / "stage.py").write_text(STAGE)
    kept = [
        ".dvcignore",
        "params.yaml",
        "versions.yaml",
        ".gitignore",
        ".dvc/config",
        ".dvc/.gitignore",
        "datasets/.gitignore",
    ]
    kept += [
        "datasets/dvc.yaml",
        "datasets/tombstones.csv",
        "datasets/corrections.csv",
        "datasets/prompts.yaml",
        README,
    ]
    for name in kept:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, path / name)
    deps = {dep for spec in stages.values() for dep in spec.get("do", spec)["deps"] if dep.startswith(FOLDERS)}
    for dep in deps:
        (path / dep).mkdir(parents=True, exist_ok=True)
        (path / dep / "code.py").write_text(dep)
    for folder in ("runs/train", "runs/generate", "runs/evaluate"):
        (path / folder).mkdir(parents=True)
    (path / "datasets/sources.yaml").write_text(MINE)
    (path / "datasets/photos/mine").mkdir()
    (path / "datasets/photos/mine/1.jpg").write_text("a private photograph")
    made = Workspace(path)
    made.run("git", "init", "--quiet", "--initial-branch", "main")
    made.run("dvc", "remote", "modify", "versions", "url", str(path.parent / "remote"))
    made.warm("dvc", "repro", "--quiet")
    commit(made)
    made.run("dvc", "push", "--quiet")
    return made


def commit(workspace: Workspace) -> None:
    workspace.run("git", "add", "--all")
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    workspace.run("git", *who, "commit", "--quiet", "--message", "made")


@pytest.fixture
def clone(maker: Workspace, tmp_path: Path) -> Workspace:
    """The other machine: git clone, dvc pull."""
    maker.run("git", "clone", "--quiet", str(maker.path), str(tmp_path / "umo"))
    cloned = Workspace(tmp_path / "umo")
    cloned.run("dvc", "pull", "--quiet")
    return cloned


def products(workspace: Workspace) -> dict[str, bytes]:
    """Name -> bytes of what the stages made."""
    found = [file for folder in ("datasets", "runs") for file in (workspace.path / folder).rglob("*")]
    return {str(file.relative_to(workspace.path)): file.read_bytes() for file in found if file.is_file()}


def test_a_plain_repro_loses_nothing_that_was_pulled(clone):
    before = products(clone)
    assert {"datasets/ingested/results.json", "runs/train/mimr/training.json"} <= before.keys()
    assert "datasets/photos/mine/1.jpg" not in before
    assert clone.repro(warm=True) == []
    assert products(clone) == before
    assert not clone.run("git", "status", "--porcelain").stdout
    (clone.path / "datasets/sources.yaml").write_text(MINE.replace("CC0", "CC BY 4.0"))
    with pytest.raises(AssertionError, match="ingest: no photographs"):
        clone.repro(warm=True)
    assert products(clone) == before | {"datasets/sources.yaml": MINE.replace("CC0", "CC BY 4.0").encode()}


def test_what_dvc_cannot_look_at_stops_nothing_and_is_seen(maker, tmp_path):
    """Broken links and names that are no UTF-8 stop DVC's own look into a folder; it enters no linked one."""
    machine = maker.copy(tmp_path / "umo")
    mine, nas = machine.path / "datasets/photos/mine", tmp_path / "nas"
    nas.mkdir()
    (mine / "gone.png").symlink_to("/nowhere/gone.png")
    (mine / ".#1.png").symlink_to("me@host.12:34")
    Path(os.fsdecode(os.fsencode(mine) + b"/caf\xe9.png")).write_text("a picture")
    (mine / "linked").symlink_to(nas)
    assert machine.repro("ingest", warm=True) == ["ingest"]
    assert machine.repro("ingest", warm=True) == []
    (nas / "2.jpg").write_text("a picture behind a link")
    assert machine.repro("ingest", warm=True) == ["ingest"]


def test_training_goes_on_from_what_was_pulled(clone):
    """Nothing is done again that is as it was, though the photographs are not there; another value reaches training."""
    before = products(clone)
    assert clone.repro("--allow-missing", "train@mimr", warm=True) == []
    assert products(clone) == before
    change = ("-S", "bases.tiny-uno.train.reward_weight=1", "train@mimr")
    assert experiment(clone, *change)[-1] == "train@mimr"
    assert clone.run("git", "status", "--porcelain").stdout.split() == ["M", "dvc.lock", "M", "params.yaml"]
    change = ("--downstream", "-S", "bases.tiny-uno.train.reward_weight=3", "train@mimr")
    assert experiment(clone, *change)[:1] == ["train@mimr"], "what comes before it is not asked"


def experiment(workspace: Workspace, *options: str) -> list[str]:
    """dvc exp run --allow-missing; the names of the stages that ran."""
    said = workspace.warm("dvc", "exp", "run", "--allow-missing", *options).stdout
    return [line.split("'")[1] for line in said.splitlines() if line.startswith("Running stage")]


def test_an_edited_trainer_trains_again_and_nothing_before_it(clone):
    """As a clone is; the folder `umo` is a dep of every stage, `ingest` too."""
    (clone.path / "umo/code.py").write_text("edited")
    (clone.path / "umo/__pycache__").mkdir()
    ran = clone.repro("--allow-missing", "--downstream", "train@mimr")
    assert ran == ["train@mimr", "generate@mimr", "evaluate@mimr", "compare", "report"]


def test_what_python_compiled_changes_no_stage(clone):
    (clone.path / "umo/__pycache__").mkdir()
    (clone.path / "umo/__pycache__/code.cpython-311.pyc").write_text("compiled")
    assert clone.repro("--allow-missing", warm=True) == []
