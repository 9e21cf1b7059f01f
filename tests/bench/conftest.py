"""The small world of the tests of training: an update takes some hundredths of a second."""

from pathlib import Path

import pytest

from bench.setup import Setup
from tests.conftest import BandJudge
from tests.umo.training.conftest import (
    SMALL,
    TRAIN,
    VALIDATION,
    _fresh_accelerator,  # noqa: F401  (used by being here)
    _one_thread,  # noqa: F401
    sample,
    small_base,
)
from umo.rewards import MatchingReward
from umo.training.recipe import Recipe


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    """Six training sets of people who are colours, and three of others; two samples an update."""
    return Setup(
        load_base=small_base,
        reward=MatchingReward(BandJudge(tmp_path / "bands.weights")),
        recipe=Recipe.model_validate(SMALL | {"batch": 2, "micro_batch": 1}),
        train=[sample(*people) for people in TRAIN],
        validation=[sample(*people) for people in VALIDATION],
        encoded=tmp_path / "encoded",
        scratch=tmp_path / "bench",
        fingerprint="small",
    )
