"""The bench of benchmarks at its smallest: every layout is scored, and both sides see the same pictures."""

from pathlib import Path

import pytest

from bench import benchmark_score
from umo.evaluation.benchmarks import BENCHMARKS


def test_every_layout_is_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_score, "WORK", tmp_path)
    result = benchmark_score.run(pictures=4, turns=1)
    assert result.details["ratios"].keys() == BENCHMARKS.keys()
    for name in BENCHMARKS:
        out = tmp_path / "bench" / benchmark_score.NAME / name / "out"
        assert (out / "scores.parquet").read_bytes() == (out / "again/scores.parquet").read_bytes()
