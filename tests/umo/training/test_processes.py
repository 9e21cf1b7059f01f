"""Two processes that share a batch are one process with all of it; what is refused."""

import os
import pickle
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.pipelines import quick
from tests.umo.training.child import BATCH, GROUPS, RUN, SHARDED
from tests.umo.training.conftest import SMALL, build, build_real, distance, gradient, stir
from umo.errors import BadInput
from umo.training import processes
from umo.training.draws import Draws
from umo.training.recipe import Recipe
from umo.training.run import Job, fit
from umo.training.samples import Batch, Sample

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, photographs: list[Sample]) -> list[dict]:
    """What each of two processes saw (`child.shared`)."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "samples.pickle").write_bytes(pickle.dumps(photographs[:2]))
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    subprocess.run(
        [quick.python(), *launch, "-m", "tests.umo.training.child", "shared", str(folder)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
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


@pytest.mark.parametrize("objective", ["nft", "grpo"])
def test_the_gradient_of_groups_is_that_of_one_process(seen: list[dict], tmp_path: Path, objective: str) -> None:
    trainer = build(tmp_path, **GROUPS, objective=objective)
    stir(trainer)
    expected = gradient(trainer, BATCH)
    for process in seen:
        assert distance(process[objective], expected) < 1e-4
        assert distance(process["fsdp"][objective], expected) < 1e-4
    assert distance(gradient(trainer, BATCH[:2] * 2), expected) > 0.1, "any batch would do"


def test_the_gradient_through_real_faces_is_that_of_one_process(
    seen: list[dict], photographs: list[Sample], tmp_path: Path
) -> None:
    expected = gradient(build_real(tmp_path, photographs[:2]), [0, 1, 0, 1])
    assert all(distance(process["real"], expected) < 1e-5 for process in seen)


def test_the_gradient_by_fsdp_is_that_of_one_process(seen: list[dict], tmp_path: Path) -> None:
    """Where one of the two sees no face, and so has no reward to send backward."""
    trainer = build(tmp_path, **SHARDED)
    stir(trainer)
    whole, look, backward = gradient(trainer, BATCH), trainer.reward.faces.detect, trainer.objective.backward

    def blind_to_odd_rows(batch: Batch, draws: Draws, weight: float, part: int) -> dict[str, float]:
        trainer.reward.faces.detect = (lambda images: [[] for _ in images]) if part % 2 else look
        return backward(batch, draws, weight, part)

    trainer.objective.backward = blind_to_odd_rows  # type: ignore[method-assign]
    expected = gradient(trainer, BATCH)
    assert distance(whole, expected) > 1e-3
    for process in seen:
        assert distance(process["fsdp"]["gradient"], expected) < 1e-5
        assert process["fsdp"]["here"] == pytest.approx(0.5, abs=0.01), "half of the frozen weights lie in each"


@pytest.mark.parametrize("recipe", [RUN, RUN | SHARDED | {"steps": 3}], ids=["ddp", "fsdp"])
def test_a_run_of_two_is_the_run_of_one_and_goes_on_after_a_damaged_checkpoint(
    seen: list[dict], tmp_path: Path, recipe: dict
) -> None:
    one, other = seen if recipe is RUN else [process["fsdp"] for process in seen]
    for run in ("first", "again"):
        assert all(torch.equal(a, b) for a, b in zip(one[run], other[run], strict=True)), "the processes differ"
    assert all(torch.equal(a, b) for a, b in zip(one["first"], one["again"], strict=True))
    assert one["lora"] == other["lora"]
    alone = build(Path(one["folder"]), **recipe)
    alone.run()
    assert all(torch.equal(a, b) for a, b in zip(alone.weights, one["again"], strict=True)), "its checkpoint fits any"
    expected = build(tmp_path, **recipe).run().history
    for process in (one, other):
        assert [step for step, _ in process["history"]] == [step for step, _ in expected]
        for (step, found), (_, row) in zip(process["history"], expected, strict=True):
            assert found == pytest.approx(row, rel=1e-3, abs=1e-4), step


FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@pytest.mark.parametrize(
    ("environment", "count", "micro_batch", "message"),
    [
        (FSDP, 1, 1, "there is one process: start several"),
        (FSDP | {"FSDP_VERSION": "1"}, 2, 1, "set fsdp_version to 2"),
        (FSDP | {"FSDP_OFFLOAD_PARAMS": "true"}, 2, 1, "set fsdp_offload_params to false"),
        (FSDP, 2, 2, "FSDP and micro_batch 2: .* set it to 1"),
    ],
)
def test_fsdp_that_is_not_to_be_had_is_refused(monkeypatch, environment, count: int, micro_batch: int, message) -> None:
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    recipe = Recipe.model_validate(SMALL | {"micro_batch": micro_batch})
    with pytest.raises(BadInput, match=message):
        processes.start(recipe, "cpu") if count == 1 else processes.check_sharding(recipe, count)


def test_a_folder_that_another_machine_does_not_see_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processes, "start", lambda *given: SimpleNamespace(num_processes=2))
    job = Job(tmp_path, "base", "sft", Recipe.model_validate(SMALL), "bands")
    with pytest.raises(BadInput, match=r"missing is not seen from .*: train into a folder that all machines share"):
        fit(job, {}, tmp_path / "missing", tmp_path, tmp_path)


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(BadInput, match=r"4 processes on a machine with 2 GPUs: start one a GPU"):
        processes.start(Recipe.model_validate(SMALL), "cuda")
