"""A whole training: a base, reference sets and a method become a LoRA, its card, its curves, training.json."""

import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from umo import customizers, devices, faces, licences
from umo.customizers.attention import attention
from umo.customizers.frozen import loading
from umo.errors import BadInput
from umo.rewards import Kind, MatchingReward
from umo.rows import Rows
from umo.training import processes
from umo.training.card import lora_card
from umo.training.curves import Curves
from umo.training.progress import Progress
from umo.training.recipe import Method, Recipe
from umo.training.samples import Sample, Samples
from umo.training.sets import TRAINING
from umo.training.trainer import Trainer

LIVE = "live"


@dataclass(frozen=True)
class Job:
    """What is trained, and how.

    Attributes:
        base: a diffusers folder.
        name: of the base in training.json.
        reward: name of the face model that rewards, as `faces.load_reward` takes it.
        lora: that makes a customizer of the base; training goes on from it.
        device: of the networks; of several processes on GPUs each takes its own (`processes.place`).
        how: steps and guidance that the result will be drawn with.
    """

    base: Path
    name: str
    method: Method
    recipe: Recipe
    reward: str
    lora: Path | None = None
    device: str = "cpu"
    how: customizers.Drawing = field(default_factory=customizers.Drawing)

    def face_model(self) -> faces.FaceModel:
        """The face model that rewards; BadInput where there is none, or none with the gradient that is needed."""
        return faces.load_reward(self.reward, self.recipe.through_reward(self.method))


def fit(
    job: Job, rows: Mapping[str, Rows[Sample]], folder: Path, encoded: Path, live: Path, until: int | None = None
) -> Path | None:
    """Train, going on from the checkpoints in `folder`; every one of several processes runs it.

    Args:
        folder: of several processes all must see it, and it must be there.
        rows: `train` and, where the recipe validates, `validation`, as `reading.open_sets` gives them.
        encoded: where encoded samples are kept; for one base, face model and precision.
        live: of the curves, written as they come.
        until: so many updates are enough for now; asked again with more, or None, it goes on.

    Returns:
        `folder/result`, with all but the curves in it; None in all processes but one.

    Raises:
        BadInput: something of the job or of the rows is unfit.
        WorkFailed: no finite gradient; the last checkpoint stays.
    """
    recipe = job.recipe
    accelerator = processes.start(recipe, job.device)
    if accelerator.num_processes > 1 and not folder.is_dir():
        raise BadInput(f"{folder} is not seen from {platform.node()}: train into a folder that all machines share")
    model = job.face_model()  # refused before the base is loaded
    place, dtype = processes.place(accelerator, job.device), devices.dtype_of(recipe.precision)
    alone = accelerator.num_processes == 1
    with loading(recipe.weights):
        customizer = customizers.load(
            job.base, job.lora, place, dtype, recipe.attention, encode_first=alone, rank=recipe.rank
        )
    kind: Kind = "mimr" if job.method == "sft" else job.method
    reward = MatchingReward(model, kind, recipe.lambda_match, recipe.lambda_mismatch, recipe.ours)
    samples, anchor = {}, recipe.anchor_of(job.method)
    for split, found in rows.items():
        samples[split] = Samples(found, customizer, reward, anchor, encoded, droppable=recipe.text_dropout > 0)
    curves, people = Curves(live), (samples["train"], samples.get("validation"))
    checkpoints = folder / "checkpoints"
    trainer = Trainer(customizer, *people, reward, recipe, job.method, checkpoints, curves.log, job.how, accelerator)
    for split, one in samples.items():
        one.prepare(f"encode {split}", accelerator.process_index, accelerator.num_processes)
    accelerator.wait_for_everyone()
    for split, one in samples.items():
        one.leave_out()
        if one.unusable and accelerator.is_main_process:
            print(f"{split}: {one.left_out}", file=sys.stderr)
    customizer.drop_encoders()
    if alone:
        customizer.to(place)
    progress = trainer.run(until)
    curves.end()
    if not accelerator.is_main_process:
        return None
    result = folder / "result"
    customizer.save_lora(result)
    report = _report(job, model.name, samples, progress)
    (result / TRAINING).write_text(json.dumps(report, indent=1) + "\n")
    terms = sorted(set(rows["train"].table("licence")["licence"].to_pylist()))
    (result / "README.md").write_text(lora_card(report, customizer.name, terms))
    return result


def _report(job: Job, reward: str, samples: Mapping[str, Samples], progress: Progress) -> dict[str, Any]:
    """What came of a run, for its card and for whoever must not evaluate on its people."""
    train = samples["train"]
    spent = {0: 0} | {step: row["evaluations"] for step, row in progress.history if "evaluations" in row}
    validations = [(step, row) for step, row in progress.history if "validation/reward" in row]
    return {
        "method": job.method,
        "base": job.name,
        "reward": reward,
        "recipe": job.recipe.model_dump(),
        "attention": attention(),
        "samples": len(train),
        "people": sorted(train.people),
        "unusable": {split: {why: len(of) for why, of in one.unusable.items()} for split, one in samples.items()},
        "licences": {"base": licences.of_base(job.base)} | ({"lora": licences.of_lora(job.lora)} if job.lora else {}),
        "updates": progress.step,
        "evaluations": progress.evaluations,
        "skipped": progress.skipped,
        "stopped_early": progress.stopped,
        "chosen_update": progress.best_step if progress.chosen else progress.step,
        "validation": [{"update": step, "evaluations": spent[step], **row} for step, row in validations],
    }
