"""A method (sft, sir, mimr) tunes the base on the exported sets: a LoRA, its card, its curves."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from pipelines.core import keys, products
from pipelines.core.bases import Base, chosen, weights_digest
from pipelines.core.params import Section, load
from pipelines.core.shards import (
    WORK,
    Counts,
    Machine,
    Shard,
    digest,
    file_digest,
    scratch,
    tree_digest,
)
from pipelines.core.shards import run as run_shards
from pipelines.train.lora_card import lora_card
from umo import faces
from umo.errors import BadInput, WorkFailed
from umo.training.recipe import Method

if TYPE_CHECKING:
    from dvclive import Live

    from umo.training.samples import Sample
    from umo.training.trainer import Progress, Row

COLUMNS = ["set_id", "prompt", "references", "target", "person_ids", "target_landmarks", "pool", "licence"]
RESULT = "result"


class Params(Section):
    """
    base: the base that is tuned and that draws; a key of `bases`, where its recipe stands.
    reward: the face model that gives the reward; never the one that evaluates.
    """

    base: str
    reward: str


def run(params: Params, machine: Machine, method: str) -> None:
    """Train runs/train/`method`.

    Raises:
        BadInput: the base has no recipe, its folder is not there, the judge gives the reward, or the sets are unfit.
    """
    base = chosen()
    if base.train is None:
        raise BadInput(f"params.yaml: bases.{params.base} has no recipe: add bases.{params.base}.train")
    if load("evaluate").model_dump()["judge"] == params.reward:
        raise BadInput(f"params.yaml: train.reward is '{params.reward}', which also evaluates: choose another")
    _refuse_held_out()
    reward = faces.load(params.reward)
    if not reward.differentiable:
        raise BadInput(f"params.yaml: train.reward '{params.reward}' has no gradient: choose another face model")
    inputs = {
        "exported": tree_digest(products.EXPORTED),
        "weights": weights_digest(base),
        "base": base.model_dump_json(),
        "method": method,
    }
    run_shards(
        "train",
        partial(_train, machine),
        [Shard("", inputs, method)],
        products.TRAINED / method,
        params=params,
        files=reward.files,
        machine=machine,
    )


def _refuse_held_out() -> None:
    """Nobody may be in the sets of two splits.

    Raises:
        BadInput: somebody is, or a split is not there.
    """
    people = {
        split: {person for row in products.exported(split, ["person_ids"]) for person in row["person_ids"]}
        for split in ("train", "validation", "test")
    }
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        if both := sorted(people[one] & people[other]):
            raise BadInput(
                f"{products.EXPORTED}: {len(both)} people are in the {one} and in the {other} sets (first {both[0]}): "
                "export again with splits by person (dvc repro export)"
            )


def _train(machine: Machine, shard: Shard, folder: Path) -> Counts:
    """Train in a folder of its own, where a killed run finds its checkpoints again; then hand over the result."""
    kept = scratch(folder)
    kept.mkdir(parents=True, exist_ok=True)
    if machine.processes == 1:
        fit(cast(Method, shard.task), kept)
    else:
        launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(machine.processes)]
        done = subprocess.run(
            [sys.executable, "-m", *launch, "-m", "pipelines.train.stage", str(shard.task), str(kept)], check=False
        )
        if done.returncode:
            raise WorkFailed(f"train: one of {machine.processes} processes failed; its own message is above")
    for path in sorted((kept / RESULT).iterdir()):
        shutil.move(path, folder / path.name)
    shutil.rmtree(kept)
    made = json.loads((folder / products.TRAINING).read_text())
    return Counts({"updates": made["updates"]}, {"skipped updates": made["skipped"]})


def fit(method: Method, folder: Path) -> None:
    """Train, with checkpoints in `folder`, and write the result to `folder/result`: what every process runs."""
    from umo import customizers
    from umo.rewards import MatchingReward
    from umo.training.samples import Samples
    from umo.training.trainer import Trainer

    params, machine, base = load("train"), load("machine"), chosen()
    assert isinstance(params, Params) and isinstance(machine, Machine) and base.train is not None
    recipe = base.train
    customizer = customizers.load(base.folder, base.lora, _own_device(machine), base.dtype)
    model = faces.load(params.reward)
    reward = MatchingReward(model, "sir" if method == "sir" else "mimr", recipe.lambda_match, recipe.lambda_mismatch)
    cache = encoded_folder(base, params)
    rows = {split: products.exported(split, COLUMNS) for split in ("train", "validation")}
    samples = {}
    for split, found in rows.items():
        samples[split] = Samples([sample(row) for row in found], customizer, reward, recipe.anchor, cache)
    result, checkpoints = folder / RESULT, folder / "checkpoints"
    curves = _Curves(result / products.LIVE)
    trainer = Trainer(
        customizer,
        samples["train"],
        samples["validation"],
        reward,
        recipe,
        method,
        checkpoints,
        curves.log,
        customizers.Drawing(steps=base.steps, guidance=base.guidance),
    )
    for split, encoded in samples.items():
        encoded.prepare(f"encode {split}")
    customizer.drop_encoders()
    progress = trainer.run()
    curves.end()
    if not trainer.accelerator.is_main_process:
        return
    customizer.save_lora(result)
    people = sorted({person for row in rows["train"] for person in row["person_ids"]})
    report = {
        "method": method,
        "base": params.base,
        "reward": model.name,
        "recipe": recipe.model_dump(),
        "samples": len(rows["train"]),
        "people": people,
        **_summary(progress),
    }
    (result / products.TRAINING).write_text(json.dumps(report, indent=1) + "\n")
    licences = sorted({row["licence"] for row in rows["train"]})
    (result / "README.md").write_text(lora_card(report, customizer.name, licences))


def _own_device(machine: Machine) -> str:
    """Of several processes on GPUs each has its own."""
    rank = os.environ.get("LOCAL_RANK")
    kind = machine.device.split(":")[0]
    return machine.device if rank is None or kind == "cpu" else f"{kind}:{rank}"


def encoded_folder(base: Base, params: Params) -> Path:
    """Where encoded samples are kept, whatever the method: a folder for every base, face model, precision and code."""
    assert base.train is not None
    module = "umo.training.samples"
    model = [file_digest(path) for path in faces.load(params.reward).files]
    key = digest(weights_digest(base), model, keys.code(module), keys.versions(module), base.train.precision)
    return WORK / "train" / "encoded" / key[:16]


def sample(row: dict) -> "Sample":
    """A row of the exported sets."""
    from umo.training.samples import Sample

    return Sample(
        name=row["set_id"],
        prompt=row["prompt"],
        references=tuple(image["bytes"] for image in row["references"]),
        target=row["target"]["bytes"],
        people=tuple(row["person_ids"]),
        target_landmarks=tuple(np.reshape(points, (5, 2)) for points in row["target_landmarks"]),
        pool=tuple(tuple(image["bytes"] for image in person) for person in row["pool"]),
    )


def _summary(progress: "Progress") -> dict:
    """What came of a run, for its card and for the report."""
    validations = [(step, row) for step, row in progress.history if "validation/reward" in row]
    return {
        "updates": progress.step,
        "skipped": progress.skipped,
        "stopped_early": progress.stopped,
        "chosen_update": progress.best_step if progress.chosen else progress.step,
        "validation": [{"update": step, **row} for step, row in validations],
    }


class _Curves:
    """DVCLive's curves, begun at the first figure: of several processes one logs, and a resumed run logs all anew."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.live: Live | None = None

    def log(self, step: int, row: "Row") -> None:
        """Figures after an update; those without a / in their name are the training's."""
        from dvclive import Live

        if self.live is None:
            self.live = Live(str(self.folder), save_dvc_exp=False, report=None, dvcyaml=None)
        self.live.step = step
        for key, value in row.items():
            self.live.log_metric(key if "/" in key else f"train/{key}", value)

    def end(self) -> None:
        """Write the summary."""
        if self.live is not None:
            self.live.end()


def main(arguments: Sequence[str]) -> int:
    """One of several processes: METHOD FOLDER (see `_train`)."""
    method, folder = arguments
    try:
        fit(cast(Method, method), Path(folder))
    except (BadInput, WorkFailed) as error:
        print(f"train@{method}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    # Under its own name, not as __main__: `load` makes params of that module's class.
    sys.exit(import_module("pipelines.train.stage").main(sys.argv[1:]))
