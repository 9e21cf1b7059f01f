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
    """What each process sees of shared batches, of a run, and of one that goes on after a damaged checkpoint.

    First with whole weights, then by FSDP.
    """
    root, rank = Path(folder), int(os.environ["RANK"])
    seen = {}
    for method in ("sft", "mimr"):
        trainer = build(root, method)  # type: ignore[arg-type]
        stir(trainer)
        seen[method] = gradient(trainer, BATCH)
    for objective in ("nft", "grpo"):
        trainer = build(root, **GROUPS, objective=objective)
        stir(trainer)
        seen[objective] = gradient(trainer, BATCH)
    assert trainer.accelerator.num_processes == 2 and trainer.accelerator.process_index == rank
    seen["real"] = gradient(build_real(root, pickle.loads((root / "samples.pickle").read_bytes())), [0, 1, 0, 1])
    if rank == 1:
        checkpoints.save = never
        slow_to_read()
    seen |= twice(root, rank, RUN)

    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    trainer = build(root, **SHARDED)
    stir(trainer)
    if rank == 1:
        trainer.reward.faces.detect = lambda images: [[] for _ in images]  # type: ignore[method-assign]
    fsdp = {"gradient": gradient(trainer, BATCH)}
    for objective in ("nft", "grpo"):
        grouped = build(root, **GROUPS | SHARDED, objective=objective)
        stir(grouped)
        fsdp[objective] = gradient(grouped, BATCH)
    frozen = [weight for weight in trainer.customizer.transformer.parameters() if not weight.requires_grad]
    fsdp["here"] = sum(weight.to_local().numel() for weight in frozen) / sum(weight.numel() for weight in frozen)
    (root / "fsdp").mkdir(exist_ok=True)
    seen["fsdp"] = fsdp | twice(root / "fsdp", rank, RUN | SHARDED | {"steps": 3})
    torch.save(seen, root / f"seen-{rank}.pt")


def twice(root: Path, rank: int, recipe: dict) -> dict:
    """A run, and the same again from the checkpoint before its last, which is damaged."""
    first = build(root, **recipe)
    first.run()
    first.accelerator.wait_for_everyone()
    if rank == 0:
        newest = checkpoints.find(root / "checkpoints")[-1]
        newest.write_bytes(newest.read_bytes()[:-1])
    first.accelerator.wait_for_everyone()
    again = build(root, **recipe)
    history = again.run().history
    lora = (again.customizer.save_lora(root / f"lora-{rank}")).read_bytes()
    weights = {"first": list(first.weights), "again": list(again.weights)}
    return {**weights, "history": history, "lora": lora, "folder": str(root)}


SHARDED = {"micro_batch": 1, "checkpoint_gradients": True}
GROUPS = {"group_size": 2, "gradient_first": 2, "rollout_steps": 3, "velocity_kl": 0.1}
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
