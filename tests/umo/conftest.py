"""What tests of several rooms of umo use: its commands in this process, a small base to draw with, a named judge."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import BandJudge

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def umo(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """umo("match", ...) -> exit code, stdout, stderr."""
    from umo import cli

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["umo", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        found = capsys.readouterr()
        return int(left.value.code or 0), found.out, found.err

    return run


@pytest.fixture
def named_bands(band_judge: BandJudge, monkeypatch: pytest.MonkeyPatch) -> BandJudge:
    """A `BandJudge` that commands know as `bands`."""
    from umo import faces

    monkeypatch.setitem(faces.MODELS, "bands", lambda: band_judge)
    faces._load.cache_clear()
    return band_judge


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small base with random weights, named tiny; torch draws with one thread."""
    import torch

    from tests.umo.training.conftest import small_base

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    small_base().save(folder)
    return folder
