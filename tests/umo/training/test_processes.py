"""Two processes that share a batch are one process with all of it."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.umo.training.child import BATCH, RUN
from tests.umo.training.conftest import build, build_real, distance, gradient, stir
from umo.training.samples import Sample

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, photographs: list[Sample]) -> list[dict]:
    """What each of two processes saw (`child.shared`)."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "samples.pickle").write_bytes(pickle.dumps(photographs[:2]))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run(
        [sys.executable, *launch, "-m", "tests.umo.training.child", "shared", str(folder)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
    )
    return [torch.load(folder / f"seen-{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("method", ["sft", "mimr"])
def test_the_gradient_is_that_of_one_process(seen: list[dict], tmp_path: Path, method) -> None:
    trainer = build(tmp_path, method)
    stir(trainer)
    expected = gradient(trainer, BATCH)
    assert all(distance(process[method], expected) < 1e-5 for process in seen)
    assert distance(gradient(trainer, BATCH[:2] * 2), expected) > 0.1, "any batch would do"


def test_the_gradient_through_real_faces_is_that_of_one_process(
    seen: list[dict], photographs: list[Sample], tmp_path: Path
) -> None:
    expected = gradient(build_real(tmp_path, photographs[:2]), [0, 1, 0, 1])
    assert all(distance(process["real"], expected) < 1e-5 for process in seen)


def test_a_run_of_two_is_the_run_of_one_and_goes_on_after_a_damaged_checkpoint(
    seen: list[dict], tmp_path: Path
) -> None:
    one, other = seen
    for run in ("first", "again"):
        assert all(torch.equal(a, b) for a, b in zip(one[run], other[run], strict=True)), "the processes differ"
    assert all(torch.equal(a, b) for a, b in zip(one["first"], one["again"], strict=True))
    expected = build(tmp_path, **RUN).run().history
    for process in seen:
        assert [step for step, _ in process["history"]] == [step for step, _ in expected]
        for (step, found), (_, row) in zip(process["history"], expected, strict=True):
            assert found == pytest.approx(row, rel=1e-3, abs=1e-4), step
