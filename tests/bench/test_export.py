"""The bench of the export at its smallest: both sides write the same bytes, and unequal work is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bench import export
from bench.setup import SCRATCH, Setup
from pipelines.core import products
from tests.pipelines.made_sets import make
from umo.errors import WorkFailed

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def here(orl: Callable[[int, int], np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven kept sets in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").symlink_to(ROOT / "params.yaml")
    make(orl).write()


def test_it_exports_as_many_sets_as_asked_and_pyarrow_writes_the_same(here: None, setup: Setup) -> None:
    result = export.run(setup, sets=17, repeats=1)
    folder = SCRATCH / export.NAME / products.EXPORTED
    assert result.value is not None and result.value > 0
    assert result.details["bytes"] == sum(path.stat().st_size for path in folder.glob("*.parquet"))
    assert set(result.details["seconds"]) == {"export", "export, references cut before", "pyarrow"}
    assert min(result.details["seconds_in_shards"].values()) > 0
    assert "17 training examples" in (folder / "README.md").read_text()
    assert not products.EXPORTED.exists()


def test_other_bytes_void_the_comparison(here: None, setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    write = export.write
    monkeypatch.setattr(
        export, "write", lambda written: write({name: (b"", found[1][:-1]) for name, found in written.items()})
    )
    with pytest.raises(WorkFailed, match="wrote other bytes"):
        export.run(setup, sets=7, repeats=1)
