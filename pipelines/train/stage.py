"""A method (sft, sir, mimr, ours) tunes the base on the exported sets: a LoRA, its card, its curves."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import cast

from pipelines.core import keys, products
from pipelines.core.bases import Base, chosen, weights_digest
from pipelines.core.params import Section, load
from pipelines.core.shards import WORK, Counts, Machine, Shard, digest, file_digest, scratch, tree_digest
from pipelines.core.shards import run as run_shards
from umo import faces, licences
from umo.errors import BadInput, WorkFailed
from umo.faces import FaceModel
from umo.training.recipe import Method, Recipe


class Params(Section):
    """
    base: the base that is tuned and that draws; a key of `bases`, where its recipe stands.
    reward: the face model that gives the reward; never the one that evaluates.
    """

    base: str
    reward: str


def run(params: Params, machine: Machine, method: str) -> None:
    """Train runs/train/`method`; BadInput as `checked`."""
    base, reward = checked(params, machine, cast(Method, method))
    inputs = {"exported": tree_digest(products.EXPORTED), "weights": weights_digest(base), "licences": _licences(base)}
    shards = [Shard("", inputs | {"base": base.model_dump_json(), "method": method}, method)]
    work, out = partial(_train, machine), products.TRAINED / method
    run_shards("train", work, shards, out, params=params, files=reward.files, machine=machine)


def checked(params: Params, machine: Machine, method: Method) -> tuple[Base, FaceModel]:
    """The base that is tuned, and the face model that rewards.

    Raises BadInput where the base has no recipe or folder, the judge gives the reward, the reward lacks the gradient
    that the method needs, or the sets are unfit.
    """
    from umo.training.sets import SPLITS, people_of, refuse_seen, refuse_shared

    base = chosen()
    if base.train is None:
        raise BadInput(f"params.yaml: bases.{params.base} has no recipe: add bases.{params.base}.train")
    if load("evaluate").model_dump()["judge"] == params.reward:
        raise BadInput(f"params.yaml: train.reward is '{params.reward}', which also evaluates: choose another")
    people = {split: people_of(products.exported(split)) for split in SPLITS}
    refuse_shared(products.EXPORTED, people, "export again with splits by person (dvc repro export)")
    refuse_seen(people["test"], base.folder, base.lora)
    if machine.accelerate is not None and not Path(machine.accelerate).is_file():
        raise BadInput(
            f"params.yaml: machine.accelerate '{machine.accelerate}' is no file: write it by accelerate config"
        )
    return base, faces.load_reward(params.reward, base.train.through_reward(method))


def _licences(base: Base) -> str:
    """As the result will state them."""
    return "; ".join([licences.of_base(base.folder), *([licences.of_lora(base.lora)] if base.lora else [])])


def _train(machine: Machine, shard: Shard, folder: Path) -> Counts:
    """Train in a folder of its own, where a killed run finds its checkpoints again; then hand over the result."""
    from umo.training.processes import check_batch

    kept, method = scratch(folder), cast(Method, shard.task)
    kept.mkdir(parents=True, exist_ok=True)
    if machine.processes == 1 and machine.accelerate is None:
        fit(method, kept)
    else:
        if machine.accelerate is None:
            check_batch(cast(Recipe, chosen().train), machine.processes)  # its line, without a launcher's report below
        launch = [sys.executable, "-m", "accelerate.commands.launch", *_launcher(machine)]
        if subprocess.run([*launch, "-m", "pipelines.train.stage", method, str(kept)], check=False).returncode:
            raise WorkFailed("train: one of the processes failed; its own message is above")
    for path in sorted((kept / "result").iterdir()):
        shutil.move(path, folder / path.name)
    shutil.copytree(live_folder(method, kept), folder / products.LIVE)
    shutil.rmtree(kept)
    made = json.loads((folder / products.TRAINING).read_text())
    unusable = sum(count for reasons in made["unusable"].values() for count in reasons.values())
    return Counts({"updates": made["updates"]}, {"skipped updates": made["skipped"], "sets without use": unusable})


def _launcher(machine: Machine) -> list[str]:
    """How accelerate starts the processes: by its own file, or so many on this machine."""
    if machine.accelerate is not None:
        return ["--config_file", machine.accelerate]
    here = {"num_machines": 1, "num_processes": machine.processes, "main_process_port": 0}  # 0: one that is free
    options = here | {"mixed_precision": "no", "dynamo_backend": "no"}  # said, so that it does not warn of its defaults
    return ["--multi_gpu", *(word for key, value in options.items() for word in (f"--{key}", str(value)))]


def fit(method: Method, folder: Path, until: int | None = None) -> None:
    """Train, with checkpoints in `folder`, and write the result to `folder/result`: what every process runs.

    Args:
        until: as `umo.training.run.fit` takes it.
    """
    from umo.customizers import Drawing
    from umo.training import run
    from umo.training.reading import open_sets

    params, machine, base = load("train"), load("machine"), chosen()
    assert isinstance(params, Params) and isinstance(machine, Machine) and base.train is not None
    how = Drawing(steps=base.steps, guidance=base.guidance)
    job = run.Job(base.folder, params.base, method, base.train, params.reward, base.lora, machine.device, how)
    sets = open_sets(str(products.EXPORTED))
    rows = {split: sets[split] for split in ("train", "validation")}
    run.fit(job, rows, folder, encoded_folder(base, params), live_folder(method, folder), until)


def live_folder(method: Method, kept: Path) -> Path:
    """Where the curves are while it trains: where `dvc plots` looks, unless a product of before stands there whole."""
    published = products.TRAINED / method
    return (kept if (published / products.LORA).exists() else published) / products.LIVE


def encoded_folder(base: Base, params: Params) -> Path:
    """Where encoded samples are kept, whatever the method: a folder for every base, face model, precision and code."""
    assert base.train is not None
    module = "umo.training.samples"
    model = [file_digest(path) for path in faces.load(params.reward).files]
    key = digest(weights_digest(base), model, keys.code(module), keys.versions(module), base.train.precision)
    return WORK / "train" / "encoded" / key[:16]


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
