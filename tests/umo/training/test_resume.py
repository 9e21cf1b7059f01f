"""A run that was killed is the run that was not; damaged and foreign checkpoints; what lies in the folder."""

import json
import math
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.pipelines import quick
from tests.umo.training.conftest import build
from umo.errors import BadInput
from umo.training import checkpoints
from umo.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[3]
RICH = {
    "steps": 20,
    "ema": 0.9,
    "warmup": 3,
    "schedule": "cosine",
    "weight_decay": 0.1,
    "validate_every": 5,
    "checkpoint_every": 5,
}
GROUPS = {
    "steps": 4,
    "batch": 2,
    "micro_batch": 1,
    "group_size": 2,
    "rollout_steps": 3,
    "gradient_first": 2,
    "updates_per_rollout": 2,
    "checkpoint_every": 2,
    "velocity_kl": 0.1,
}


def state(trainer: Trainer) -> dict:
    """Everything of a run that must not differ, as a checkpoint has it."""
    found = checkpoints.newest(trainer.folder)
    assert found is not None and found.pop("seconds")
    return found | {"result": [weight.detach() for weight in trainer.weights]}


def assert_same(found: object, expected: object, place: str = "") -> None:
    """Bit for bit."""
    if isinstance(expected, torch.Tensor):
        assert isinstance(found, torch.Tensor) and torch.equal(found, expected), place
    elif isinstance(expected, dict):
        assert isinstance(found, dict) and found.keys() == expected.keys(), place
        for key in expected:
            assert_same(found[key], expected[key], f"{place}/{key}")
    elif isinstance(expected, list | tuple):
        assert isinstance(found, list | tuple) and len(found) == len(expected), place
        for k, value in enumerate(expected):
            assert_same(found[k], value, f"{place}/{k}")
    else:
        assert found == expected, place


def kill_9(folder: Path, recipe: dict, last: int) -> None:
    """Train in another process, which dies after the update `last`."""
    command = [quick.python(), "-m", "tests.umo.training.child", "killed", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    died = subprocess.run([*command, json.dumps(recipe), str(last)], cwd=ROOT, env=environment, check=False)
    assert died.returncode == -signal.SIGKILL


def interrupt(folder: Path, recipe: dict, last: int) -> None:
    """The same here: another process takes seconds to begin."""

    def log(step: int, row: dict[str, float]) -> None:
        if step == last:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(folder, log=log, **recipe).run()


@pytest.mark.parametrize(
    ("changes", "last", "kept"),
    [
        ({"gradient_steps": 2}, 13, 10),
        ({"updates_per_rollout": 3, "checkpoint_every": 6, "reward_picture": "rollout"}, 11, 6),
        (GROUPS | {"objective": "nft"}, 3, 2),
        (GROUPS | {"objective": "grpo"}, 3, 2),
    ],
    ids=["a rollout an update", "kept rollouts", "nft", "grpo"],
)
def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path: Path, changes: dict, last: int, kept: int) -> None:
    recipe = RICH | changes
    steps = recipe["steps"]
    folders = {name: tmp_path / name for name in ("whole", "killed")}
    logs: dict[str, list] = {name: [] for name in folders}
    for folder in folders.values():
        folder.mkdir()
    (interrupt if "objective" in changes else kill_9)(folders["killed"], recipe, last)
    assert checkpoints.find(folders["killed"] / "checkpoints")[-1].name.startswith(f"checkpoint-{kept:08d}-")
    trainers = {}
    for name, folder in folders.items():
        trainers[name] = build(folder, log=lambda *given, name=name: logs[name].append(given), **recipe)
        assert trainers[name].run().step == steps
    assert_same(state(trainers["killed"]), state(trainers["whole"]))
    assert len(state(trainers["whole"])["progress"]["history"]) == steps + 1 + math.ceil(steps / 5)
    assert logs["killed"] == logs["whole"], "a resumed run tells its log what was before"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 updates with checkpoints after 4 and 8; to be copied."""
    folder = tmp_path_factory.mktemp("finished")
    build(folder, steps=8, checkpoint_every=4).run()
    return folder


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize("both", [False, True], ids=["the newest", "all"])
@pytest.mark.parametrize("damage", [cut, flip])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_taken(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[bytes], bytes], both: bool
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    expected = state(build(finished, steps=8, checkpoint_every=4))
    files = checkpoints.find(folder / "checkpoints")
    assert [path.name.split("-")[1] for path in files] == ["00000004", "00000008"]
    damaged = files if both else files[1:]
    for path in damaged:
        path.write_bytes(damage(path.read_bytes()))
    updates = []
    trainer = build(folder, log=lambda step, row: updates.append(step), steps=8, checkpoint_every=4)
    real = trainer.update
    done = []
    trainer.update = lambda: done.append(trainer.progress.step) or real()  # type: ignore[func-returns-value]
    trainer.run()
    assert done == list(range(0 if both else 4, 8))
    assert updates == list(range(1, 9))
    lines = [line for line in capsys.readouterr().err.splitlines() if "cut short or damaged" in line]
    assert len(lines) == len(damaged) and all(str(path) in "\n".join(lines) for path in damaged)
    trained = checkpoints.newest(folder / "checkpoints")
    assert trained is not None and trained.pop("seconds")
    assert_same(trained, {key: value for key, value in expected.items() if key != "result"})


def test_a_finished_run_does_nothing_and_has_its_result(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    before = {path: path.read_bytes() for path in (folder / "checkpoints").iterdir()}
    trainer = build(folder, steps=8, checkpoint_every=4)
    trainer.update = lambda: pytest.fail("an update")  # type: ignore[method-assign]
    assert trainer.run().step == 8
    assert_same(list(trainer.weights), state(trainer)["weights"])
    assert {path: path.read_bytes() for path in (folder / "checkpoints").iterdir()} == before


@pytest.mark.parametrize(("method", "change"), [("mimr", {"learning_rate": 0.02}), ("sir", {})])
def test_checkpoints_of_another_run_are_refused(finished: Path, tmp_path: Path, method: str, change: dict) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    before = sorted((folder / "checkpoints").iterdir())
    trainer = build(folder, method, **{"steps": 8, "checkpoint_every": 4, **change})
    with pytest.raises(BadInput, match=f"{folder}.*checkpoints of another run"):
        trainer.run()
    assert sorted((folder / "checkpoints").iterdir()) == before


@pytest.mark.parametrize("keep", [1, 3])
def test_so_many_checkpoints_stay_and_rubbish_is_no_checkpoint(tmp_path: Path, keep: int) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("checkpoint.tmp", "checkpoint-00000099.pt", "notes.txt"):
        (folder / name).write_bytes(b"rubbish")
    build(tmp_path, steps=10, checkpoint_every=2, keep=keep).run()
    steps = [int(path.name.split("-")[1]) for path in checkpoints.find(folder)]
    assert steps == [6, 8, 10][-keep:]
    newest = checkpoints.newest(folder)
    assert newest is not None and newest["progress"]["step"] == 10
    assert (folder / "notes.txt").exists() and not (folder / "checkpoint.tmp").exists()


def test_the_last_update_is_kept_between_checkpoints_too(tmp_path: Path) -> None:
    build(tmp_path, steps=5, checkpoint_every=4).run()
    assert [path.name.split("-")[1] for path in checkpoints.find(tmp_path / "checkpoints")] == ["00000004", "00000005"]


def test_a_write_that_fails_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints.save(tmp_path, 1, {"step": 1}, keep=2)

    def full(state: object, file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="no space"):
        checkpoints.save(tmp_path, 2, {"step": 2}, keep=2)
    assert len(checkpoints.find(tmp_path)) == 1
    monkeypatch.undo()
    assert checkpoints.newest(tmp_path) == {"step": 1}
    checkpoints.save(tmp_path, 2, {"step": 2}, keep=2)
    assert len(list(tmp_path.iterdir())) == 2, "what the failed write left is still there"


def test_a_damaged_checkpoint_does_not_stay_in_the_place_of_a_good_one(tmp_path: Path) -> None:
    for step in (1, 2):
        path = checkpoints.save(tmp_path, step, {"step": step}, keep=2)
    path.write_bytes(cut(path.read_bytes()))
    assert checkpoints.newest(tmp_path) == {"step": 1}
    assert not path.exists()
