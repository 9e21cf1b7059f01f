"""A repository whose stages take no time, alone or served by Prefect."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipelines.conftest import made_once
from tests.pipelines.service.toy import BY_HAND, Served, Toy, free_port


@pytest.fixture(scope="session")
def made_toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """Do not change it: take `toy`, a copy."""
    return Toy(made_once(tmp_path_factory, "toy", lambda workspace: Toy.make(workspace.path)).path)


@pytest.fixture
def toy(made_toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    """A repository with stages that take no time, all up to date; the current folder for the test."""
    shutil.copytree(made_toy.path, tmp_path / "umo", symlinks=True)
    monkeypatch.chdir(tmp_path / "umo")
    return Toy(tmp_path / "umo")


@pytest.fixture(scope="package")
def served(made_toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server, with worker and deployments, for all tests of this folder; each leaves the workspace as it was."""
    path = tmp_path_factory.mktemp("served") / "umo"
    shutil.copytree(made_toy.path, path, symlinks=True)
    toy, port = Toy(path), free_port()
    toy.environ = BY_HAND | {"PORT": str(port)}
    served = Served(toy, port)
    served.serve()
    yield served
    served.stop()
