"""The small world in processes of its own: one that is killed in the middle, two that share a batch."""

import json
import os
import pickle
import signal
import sys
import time
from pathlib import Path

import torch

from tests.umo.training.conftest import build, build_real, gradient, stir
from umo.training import checkpoints

BATCH = [0, 1, 2, 3]


def killed(folder: str, recipe: str, last: str) -> None:
    """Train, and die as kill -9 has it after an update."""

    def log(step: int, row: dict[str, float]) -> None:
        if step == int(last) and "diffusion_loss" in row:
            os.kill(os.getpid(), signal.SIGKILL)

    build(Path(folder), log=log, **json.loads(recipe)).run()


def shared(folder: str) -> None:
    """What each process sees of shared batches, of a run, and of one that goes on after a damaged checkpoint."""
    root, rank = Path(folder), int(os.environ["RANK"])
    seen = {}
    for method in ("sft", "mimr"):
        trainer = build(root, method)  # type: ignore[arg-type]
        stir(trainer)
        seen[method] = gradient(trainer, BATCH)
    assert trainer.accelerator.num_processes == 2 and trainer.accelerator.process_index == rank
    seen["real"] = gradient(build_real(root, pickle.loads((root / "samples.pickle").read_bytes())), [0, 1, 0, 1])
    if rank == 1:
        checkpoints.save = never
    first = build(root, **RUN)
    first.run()
    trainer.accelerator.wait_for_everyone()
    if rank == 0:
        newest = checkpoints.find(root / "checkpoints")[-1]
        newest.write_bytes(newest.read_bytes()[:-1])
    trainer.accelerator.wait_for_everyone()
    if rank == 1:
        slow_to_read()
    again = build(root, **RUN)
    seen["history"] = again.run().history
    seen["first"], seen["again"] = list(first.weights), list(again.weights)
    torch.save(seen, root / f"seen-{rank}.pt")


RUN = {"steps": 6, "checkpoint_every": 2, "ema": 0.5, "validate_every": 2, "micro_batch": 2}


def never(*_: object) -> Path:
    raise AssertionError("only the main process writes checkpoints")


def slow_to_read() -> None:
    """This process looks at what it found when another has had time to remove it."""
    real = checkpoints._checksum

    def later(path: Path) -> str:
        time.sleep(0.5)
        return real(path)

    checkpoints._checksum = later


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"killed": killed, "shared": shared}[sys.argv[1]](*sys.argv[2:])
