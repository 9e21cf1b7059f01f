"""What is loaded, and what need not be installed: `umo` scores, draws and trains without the pipeline's engines."""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.umo.training.conftest import SMALL, small_base
from tests.umo.training.test_folder import export, row
from umo.images import encode_png
from umo.quality import square_crop

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("code", "unloaded"),
    [
        ("import umo.customizers, umo.customizers.folder", {"diffusers", "transformers", "peft", "accelerate"}),
        ("from umo import faces", {"torch"}),
        ("from umo.model_index import model_files, read_index", {"torch", "diffusers", "transformers"}),
        ("from umo.training.sets import refuse_shared", {"torch", "diffusers", "transformers", "datasets"}),
        ("import umo.cli", {"torch", "scipy", "pyarrow", "numpy", "pydantic"}),
    ],
)
def test_what_is_not_asked_for_is_not_loaded(code: str, unloaded: set[str]) -> None:
    shown = f"import sys; {code}; print(*({unloaded!r} & sys.modules.keys()))"
    ran = subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == ""


# As in an environment without the extras: their packages are not found.
BARE = """
import sys
class Without:
    def __init__(self, real):
        self.real = real
    def __getattr__(self, name):
        return getattr(self.real, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in EXTRAS else self.real.find_spec(name, path, target)
EXTRAS = set(sys.argv.pop(1).split(","))
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
from umo.cli import main
main()
"""
MODULES = {
    "faiss-cpu": "faiss",
    "ruamel.yaml": "ruamel",
    "ruamel.yaml.clib": "_ruamel_yaml",
    "scikit-image": "skimage",
    "dvc-s3": "dvc_s3",
}
NEEDED_BY_THE_BASE = {"jinja2", "networkx", "psutil"}  # torch and accelerate bring them


def extras() -> set[str]:
    """Modules that come with the extras alone, and those that are told to be installed without dependencies."""
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = {line.partition(">")[0] for lines in asked.values() for line in lines}
    found = {MODULES.get(name, name.replace("-", "_")) for name in names} - NEEDED_BY_THE_BASE
    return found | {"scenedetect", "insightface"}


@pytest.fixture
def bare(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """bare("evaluate", ...) -> `umo evaluate ...` without the extras' packages."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", BARE, ",".join(sorted(extras())), *arguments]
        return subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False)

    return run


def test_the_extras_are_hidden_here(bare) -> None:
    assert {"dvc", "dvclive", "prefect", "ray", "great_expectations", "faiss", "av", "polars"} <= extras()
    done = bare("--version")
    assert done.returncode == 0 and done.stdout.startswith("umo ")
    shown = BARE.replace("from umo.cli import main\nmain()", "import dvclive")
    done = subprocess.run([sys.executable, "-c", shown, "dvclive"], capture_output=True, text=True, check=False)
    assert "No module named 'dvclive'" in done.stderr


def test_real_photographs_are_scored_without_the_extras(bare, orl, tmp_path: Path) -> None:
    for name, photo in {"a": orl(1, 1), "b": orl(1, 2)}.items():
        Image.fromarray(photo).save(tmp_path / f"{name}.png")
    case = {"case_id": "one", "prompt": "", "references": ["a.png"], "images": ["b.png"]}
    (tmp_path / "CASES.jsonl").write_text(json.dumps(case))
    done = bare("evaluate", "CASES.jsonl", "--out", "out", "--judge", "opencv_zoo")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out/metrics.json").read_text())["coverage"]["mean"] == 1


def test_it_trains_on_real_photographs_without_the_extras(bare, orl, opencv_zoo, tmp_path: Path) -> None:
    small_base().save(tmp_path / "base")

    def head(person: int) -> dict:
        whole = orl(person, 1)
        found = square_crop(whole, opencv_zoo.detect([whole])[0][0].box, 2.2, 64)[0]
        return {"bytes": encode_png(found), "path": None}

    def photographed(person: int) -> dict:
        picture = head(person)
        points = np.full(10, 32, np.float32).tolist()
        own = {"references": [picture], "target": picture, "target_landmarks": [points], "pool": [[]]}
        return row("ann") | own | {"set_id": f"s{person}", "person_ids": [f"s{person}"]}

    export(tmp_path / "sets", {"train": [photographed(8), photographed(27)]})
    values = {**SMALL, "steps": 2, "batch": 2, "micro_batch": 2}
    words = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    done = bare("train", "--base", "base", "--data", "sets", "--method", "mimr", "--out", "out", *words)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out/training.json").read_text())["updates"] == 2
    assert (tmp_path / "out/live/plots/metrics/train/reward.tsv").read_text().count("\n") == 3
