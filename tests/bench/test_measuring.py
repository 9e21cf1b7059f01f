"""The benches of ingest and measure at their smallest: both sides do the same work, and what is written is finite."""

import json
import sys
from pathlib import Path

import pytest

from bench import __main__ as command
from bench import measure_floor, measure_peer, photos


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_photographs_have_bytes_of_their_own_and_stay_the_same():
    photos.write_photos(Path("a"), 42)
    photos.write_photos(Path("b"), 42)
    first, again = ([path.read_bytes() for path in sorted(Path(name).rglob("*.jpg"))] for name in "ab")
    assert first == again and len(set(first)) == 42


@pytest.mark.long
def test_the_stage_is_measured_against_the_bare_loop(tmp_path):
    result = measure_floor.run(photos=20, repeats=1)
    assert result.value is not None and 0 < result.value < float("inf") and len(result.details["ratios"]) == 1
    assert Path.cwd() == tmp_path


def test_the_stage_and_the_other_engine_find_the_same_faces(monkeypatch):
    monkeypatch.setattr(measure_peer, "environment", lambda: Path(sys.executable))  # the package is here as well
    result = measure_peer.run(photos=20, repeats=1)
    assert result.details["faces"] == {"stage": 25, "loop": 25}
    assert result.value is not None and 0 < result.value < float("inf")


@pytest.mark.long
def test_one_photograph_redoes_one_shard_of_each_stage(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr("bench.setup.from_params", lambda: pytest.fail("these need no exported sets"))
    assert command.main(["incremental", "--photos", "20", "--out", str(tmp_path)]) == 0
    written = json.loads((tmp_path / "incremental.json").read_text())
    assert (written["shards"], written["shards_done_again"]) == (2, 2)
    assert written["command"] == "python -m bench incremental --photos 20"
    seconds = written["seconds"]
    assert written["value"] == pytest.approx(sum(seconds["one new"].values()) / sum(seconds["all"].values()), rel=0.02)
