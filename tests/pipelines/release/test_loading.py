"""docs/loading.md from a bucket and from the hub: each block run on a data set that was laid down there."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipelines.core import products
from pipelines.core.shards import ROOT, Machine
from pipelines.export import stage as export
from tests.pipelines.made_sets import make
from tests.pipelines.release.conftest import BUCKET, Server, files
from tests.pipelines.release.standin import Commit, Repository, StandIn

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/loading.md").read_text(), re.S)
TRAIN = ["In a park. A photo of 1 people: they stand."] + ["In a park. A photo of 2 people: they stand."] * 3


@pytest.fixture(scope="module")
def exported(orl: Callable[[int, int], np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five sets to train on: one of one person, three of two, one of three."""
    folder = tmp_path_factory.mktemp("made")
    params = export.Params(formats=("parquet", "webdataset"), reference_crop=1.5, reference_side=64, rows_per_file=3)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        make(orl).write()
        export.run(params, Machine())
    return folder / products.EXPORTED


def printed(block: str, **given: object) -> list[tuple]:
    """What a block prints."""
    lines: list[tuple] = []
    exec(compile(block, "docs/loading.md", "exec"), {"print": lambda *values: lines.append(values), **given})
    return lines


@pytest.fixture
def bucket(exported: Path, s3: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The prefix of the document, in the bucket of the tests."""
    for name, data in files(exported).items():
        s3.s3.put_object(Bucket=BUCKET, Key=f"handover/1.1.0/{name}", Body=data)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    return BUCKET


def test_from_a_bucket(bucket, tmp_path):
    datasets, arrow, webdataset = (
        printed(block.replace("example-versions", bucket)) for block in BLOCKS if "s3fs" in block or "s3://" in block
    )
    assert sorted(prompt for prompt, *_ in datasets) == sorted([*TRAIN, "In a park. A photo of 3 people: they stand."])
    assert all(len(sizes) == int(re.search(r"\d", prompt)[0]) for prompt, _, sizes in datasets)
    assert all(max(size) == 64 for *_, sizes in datasets for size in sizes)
    (licences,), *batches = arrow
    assert sum(row["count_all"] for row in licences) == 5
    assert sum(count for (count,) in batches) == 3
    assert [prompt for prompt, *_ in webdataset] == TRAIN[1:]


def test_from_the_hub(exported, tmp_path):
    (block,) = (block for block in BLOCKS if "example/sets" in block)
    hub = StandIn.started()
    hub.repositories["example/sets"] = Repository(True, [Commit("Version 1.1.0", files(exported))])
    hub.repositories["example/sets"].tags["1.1.0"] = hub.repositories["example/sets"].commits[-1].oid
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_reads", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", block], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    hub.stop()
    assert done.returncode == 0, done.stderr + "\n".join(hub.asked)
    assert sorted(line.partition(" (")[0] for line in done.stdout.splitlines())[:4] == TRAIN


def test_the_notebook(exported, tmp_path, monkeypatch):
    """Its cells one after another, as Jupyter would run them beside the documents."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets/exported").symlink_to(exported)
    monkeypatch.chdir(tmp_path / "docs")
    cells = json.loads((ROOT / "docs/open-an-export.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code), "no faces in git"
    space: dict[str, object] = {}
    names, splits, terms, kinds, first, two, prompts = (shown("".join(cell["source"]), space) for cell in code)
    assert {"target", "references", "pool", "licence"} <= set(names)
    assert splits.rows() == [("test", 2, 2, 4), ("train", 5, 3, 18)]
    both = "CC-BY + CC0"
    assert sorted(terms.rows()) == [("CC-BY", "public", 1), (both, "drawn", 1), (both, "public", 5)]
    assert (kinds["sets"].sum(), prompts.height) == (7, 5)
    assert (first.height, two.height) == (4 * 166, 3 * 166), "four of five sets, and all three of two people"


def shown(cell: str, space: dict[str, object]) -> object:
    """What a cell shows: the value of its last line."""
    *body, last = ast.parse(cell).body
    exec(compile(ast.Module(body, []), "a cell", "exec"), space)
    return eval(compile(ast.Expression(last.value), "a cell", "eval"), space)
