"""The train stage in the finished workspace: what it leaves, what it refuses, several processes."""

import csv
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from pipelines.core import products
from umo import customizers
from umo.errors import BadInput
from umo.training import checkpoints

METHODS = ("sft", "mimr", "ours")  # of the default graph


def lora(workspace, method: str) -> dict[str, torch.Tensor]:
    return load_file(workspace.path / products.TRAINED / method / products.LORA)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_leaves_its_lora_card_and_curves(repro, method):
    folder = repro.path / products.TRAINED / method
    run = json.loads((folder / products.TRAINING).read_text())
    assert run["updates"] == 3 and run["method"] == method and run["reward"] == "opencv_zoo"
    assert [row["update"] for row in run["validation"]] == [0, 2, 3]
    trained = {person for row in exported(repro, "train") for person in row["person_ids"]}
    assert set(run["people"]) == trained
    card = (folder / "README.md").read_text()
    assert "base_model: tiny-uno" in card and f"{len(trained)} people" in card and "| `learning_rate` | " in card
    curve = folder / products.LIVE / "plots/metrics/train/diffusion_loss.tsv"
    with curve.open() as file:
        assert [row["step"] for row in csv.DictReader(file, delimiter="\t")] == ["1", "2", "3"]
    assert (folder / products.LIVE / "plots/metrics/train/reward.tsv").exists() == (method != "sft")


def exported(workspace, split: str) -> list[dict]:
    files = sorted((workspace.path / products.EXPORTED).glob(f"{split}-*.parquet"))
    return [row for file in files for row in pq.read_table(file, columns=["person_ids"]).to_pylist()]


def test_methods_differ_and_their_loras_fit_the_base(repro):
    found = {method: lora(repro, method) for method in METHODS}
    first = next(key for key in found["sft"] if key.endswith("lora_B.weight"))
    assert not torch.equal(found["sft"][first], found["mimr"][first])
    assert not torch.equal(found["ours"][first], found["mimr"][first])
    base = repro.path / "models/tiny-uno"
    customizers.load(base, repro.path / products.TRAINED / "mimr")
    other = base.rename(base.with_name("other-base"))
    try:
        with pytest.raises(BadInput, match=r"tiny-uno.*other-base"):
            customizers.load(other, repro.path / products.TRAINED / "mimr")
    finally:
        other.rename(base)


@pytest.mark.long
def test_two_processes_train_the_same_lora(workspace):
    alone = lora(workspace, "sft")
    shutil.rmtree(workspace.path / ".work/train")
    workspace.params(machine={"processes": 2}, bases={"tiny-uno": {"train": {"micro_batch": 1}}})
    workspace.run("python", "-m", "pipelines", "train", "--of", "sft")
    for key, value in lora(workspace, "sft").items():
        torch.testing.assert_close(
            value, alone[key], rtol=0, atol=2e-3
        )  # Adam makes of rounding what it makes of signal


def test_a_checkpoint_of_a_killed_stage_is_taken_up(workspace):
    whole = lora(workspace, "sft")
    (marker,) = [path for path in (workspace.path / ".work/train").glob("*/marker.json") if of_method(path, "sft")]
    shutil.rmtree(marker.parent)
    workspace.params(machine={"device": "cpu"})
    # A run that stops after its first update: its checkpoint is then that of a killed one.
    stopped = workspace.run("python", "-c", KILLED, check=False)
    assert stopped.returncode == -9
    (kept,) = (workspace.path / ".work/train").glob("*.partial/checkpoints")
    assert len(checkpoints.find(kept)) == 2
    workspace.stage("train", "--of", "sft", check=True)
    assert all(torch.equal(value, whole[key]) for key, value in lora(workspace, "sft").items())


KILLED = """
import os, signal
from umo.training.trainer import Trainer
real = Trainer._note
def note(self, step, row):
    real(self, step, row)
    if step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
Trainer._note = note
from pipelines.__main__ import main
main(["train", "--of", "sft"])
"""


def of_method(marker: Path, method: str) -> bool:
    return json.loads((marker.parent / products.TRAINING).read_text())["method"] == method


def rewrite(workspace, split: str, change) -> None:
    """Change the first file of a split's sets."""
    path = min((workspace.path / products.EXPORTED).glob(f"{split}-*.parquet"))
    table = pq.read_table(path)
    path.unlink()  # DVC's and the shard's links stay as they are
    pq.write_table(change(table), path)


def refused(workspace, *parts: str, of: str = "mimr") -> None:
    done = workspace.stage("train", "--of", of)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    line = next(line for line in done.stderr.splitlines() if line.startswith("train@"))
    assert all(part in line for part in parts), line


def test_unfit_sets_are_refused_before_the_first_update(workspace):
    test_person = exported(workspace, "test")[0]["person_ids"][0]

    def with_test_person(table):
        people = table["person_ids"].to_pylist()
        people[0][0] = test_person
        return table.set_column(table.schema.get_field_index("person_ids"), "person_ids", [people])

    rewrite(workspace, "train", with_test_person)
    refused(workspace, "1 people are in the train and in the test sets", test_person, "export again")
    for path in (workspace.path / products.EXPORTED).glob("validation-*.parquet"):
        path.unlink()
    refused(workspace, "no split 'validation'")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"train": {"reward": "dlib"}}, ("train.reward is 'dlib', which also evaluates",)),
        ({"evaluate": {"judge": "opencv_zoo"}}, ("train.reward is 'opencv_zoo', which also evaluates",)),
        ({"train": {"base": "flux-uno"}}, ("models/flux-uno",)),
        ({"train": {"base": "nothing"}}, ("no base 'nothing'", "tiny-uno")),
        ({"bases": {"tiny-uno": {"train": {"gradient_last": 13}}}}, ("bases.tiny-uno.train", "gradient_last")),
        ({"bases": {"tiny-uno": {"train": {"learning": 1}}}}, ("unknown key 'bases.tiny-uno.train.learning'",)),
        ({"bases": {"tiny-uno": {"train": {"batch": 3, "micro_batch": 2}}}}, ("batch 3 does not divide",)),
        ({"machine": {"accelerate": "two.yaml"}}, ("machine.accelerate 'two.yaml' is no file",)),
        ({"machine": {"device": "cuda"}}, ("device cuda: not to be had here",)),
    ],
    ids=str,
)
def test_unfit_params_are_one_line(workspace, change, parts):
    if "machine" in change and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    shutil.rmtree(workspace.path / ".work/train")  # or it is found done
    workspace.params(**change)
    refused(workspace, *parts)
