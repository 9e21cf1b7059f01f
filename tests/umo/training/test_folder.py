"""`umo train`: a LoRA from a folder of exported sets, or from what Hugging Face's `datasets` saved."""

import csv
import json
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

import datasets
from tests.conftest import BandJudge
from tests.umo.test_rows import memory
from tests.umo.training.conftest import SMALL, TRAIN, VALIDATION, photo, small_base
from umo import cli, customizers, faces
from umo.images import encode_png
from umo.rewards import MatchingReward
from umo.training.card import lora_card
from umo.training.curves import Curves, Tables
from umo.training.reading import open_sets
from umo.training.samples import Samples
from umo.training.sets import COLUMNS

LORA = "pytorch_lora_weights.safetensors"
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
NUMBERS = pa.list_(pa.float32())
SCHEMA = pa.schema(
    [
        ("set_id", pa.string()),
        ("prompt", pa.string()),
        ("references", pa.list_(PICTURE)),
        ("target", PICTURE),
        ("person_ids", pa.list_(pa.string())),
        ("target_landmarks", pa.list_(NUMBERS)),
        ("pool", pa.list_(pa.list_(PICTURE))),
        ("licence", pa.string()),
        ("n", pa.int8()),
    ]
)


def row(*people: str) -> dict:
    """A set of people who are colours."""

    def picture(*who: str) -> dict:
        return {"bytes": photo(*who), "path": None}

    points = [np.tile([32 * k + 16.0, 16.0], 5).astype(np.float32).tolist() for k in range(len(people))]
    return {
        "set_id": "+".join(people),
        "prompt": "A photo of one person in front of a plain blue background.",
        "references": [picture(one) for one in people],
        "target": picture(*people),
        "person_ids": list(people),
        "target_landmarks": points,
        "pool": [[picture(one)] for one in people],
        "licence": "CC0",
        "n": len(people),
    }


ROWS = {"train": [row(*people) for people in TRAIN[:4]], "validation": [row(*people) for people in VALIDATION[:2]]}


NOTHING = {"bytes": b"no picture", "path": None}
NO_PICTURES = ROWS | {"train": [one | {"target": NOTHING} for one in ROWS["train"]]}


def export(folder: Path, rows: dict[str, list[dict]] = ROWS, schema: pa.Schema = SCHEMA, **options: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, found in rows.items():
        pq.write_table(pa.Table.from_pylist(found, schema), folder / f"{split}-00000-of-00001.parquet", **options)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, exported sets, a recipe in a larger file."""
    root = tmp_path_factory.mktemp("world")
    small_base().save(root / "base")
    export(root / "sets")
    recipe = {**SMALL, "steps": 2, "batch": 2, "micro_batch": 2, "validate_every": 1}
    (root / "params.yaml").write_text(yaml.safe_dump({"bases": {"small": {"train": recipe}}}))
    return root


@pytest.fixture
def umo(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> Callable[..., tuple[int, str]]:
    """umo(out, KEY=VALUE, ...) -> exit code and stderr of `umo train` in the world; None leaves an option out."""
    faces._load.cache_clear()
    monkeypatch.setitem(faces.MODELS, "bands", lambda: BandJudge(tmp_path / "bands.weights"))
    still = BandJudge(tmp_path / "bands.weights")
    still.name, still.differentiable = "still", False
    monkeypatch.setitem(faces.MODELS, "still", lambda: still)

    def run(out: Path, *more: str, **changed: str | None) -> tuple[int, str]:
        given = {"base": "base", "data": "sets", "method": "mimr", "recipe": "params.yaml:bases.small.train"}
        options = given | {"reward": "bands", "out": str(out)} | changed
        words = [word for key, value in options.items() if value is not None for word in (f"--{key}", value)]
        monkeypatch.chdir(world)
        monkeypatch.setattr(sys, "argv", ["umo", "train", *words, *more])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return int(left.value.code or 0), capsys.readouterr().err

    return run


def test_it_leaves_a_lora_its_card_and_curves_and_nothing_else(umo, world: Path, tmp_path: Path) -> None:
    code, _ = umo(tmp_path / "out")
    assert code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {LORA, "README.md", "training.json", "live"}
    made = json.loads((tmp_path / "out/training.json").read_text())
    assert (made["base"], made["method"], made["reward"], made["updates"]) == ("base", "mimr", "bands", 2)
    assert made["attention"] == {"kernel": "native", "cudnn": True}
    assert set(made["people"]) == {person for people in TRAIN[:4] for person in people}
    assert "| `learning_rate` | 0.01 |" in (tmp_path / "out/README.md").read_text()
    assert made["licences"] == {"base": "unknown"}
    customizers.load(world / "base", tmp_path / "out")
    with (tmp_path / "out/live/plots/metrics/train/reward.tsv").open() as file:
        assert [line["step"] for line in csv.DictReader(file, delimiter="\t")] == ["1", "2"]


def test_sets_that_datasets_saved_train_the_same_lora(umo, world: Path, tmp_path: Path) -> None:
    image = datasets.Image()
    features = datasets.Features.from_arrow_schema(SCHEMA) | {
        "references": datasets.List(image),
        "target": image,
        "pool": datasets.List(datasets.List(image)),
    }
    saved = datasets.DatasetDict(
        {split: datasets.Dataset.from_list(rows, features=datasets.Features(features)) for split, rows in ROWS.items()}
    )
    saved.save_to_disk(tmp_path / "saved")
    assert umo(tmp_path / "out")[0] == umo(tmp_path / "same", data=str(tmp_path / "saved"))[0] == 0
    assert (tmp_path / "out" / LORA).read_bytes() == (tmp_path / "same" / LORA).read_bytes()


def padded(picture: bytes, count: int) -> bytes:
    """A PNG with bytes in it that no reader heeds."""
    data = np.random.default_rng(0).bytes(count)
    chunk = len(data).to_bytes(4, "big") + b"prVt" + data + zlib.crc32(b"prVt" + data).to_bytes(4, "big")
    return picture[:33] + chunk + picture[33:]  # behind the header


def test_pictures_are_read_when_they_are_needed(tmp_path: Path) -> None:
    """In the order of the files, and a row group at a time: what is held does not grow with the pictures."""
    rows = [row("ann") for _ in range(30)]
    for k, one in enumerate(rows):
        one["set_id"], one["target"]["bytes"] = f"s{k}", padded(photo("ann"), 1_000_000)
    export(tmp_path, {"train": rows}, row_group_size=1)
    reward = MatchingReward(BandJudge(tmp_path / "bands.weights"))
    base = small_base()
    base.encode(torch.zeros(1, 3, 64, 128))  # what is loaded at first is no picture
    with memory() as peak:
        samples = Samples(open_sets(str(tmp_path))["train"], base, reward, "references", tmp_path / "encoded")
        samples.prepare("encode")
        assert samples.batch([29, 0, 6]).names == ("s29", "s0", "s6")
        assert peak() < 30 * 1_000_000 / 3
    assert [entry.name for entry in samples.entries] == [f"s{k}" for k in range(30)]


def test_sets_that_cannot_be_used_are_left_out_and_told(umo, tmp_path: Path) -> None:
    black = {"bytes": encode_png(np.zeros((40, 40, 3), np.uint8)), "path": None}
    unfit = [row("dee") | {"references": [black]}, row("eve") | {"target": NOTHING}]
    sets = export(tmp_path / "sets", {"train": [unfit[0], *ROWS["train"], unfit[1]]})
    code, err = umo(tmp_path / "out", "--set", "validate_every=0", data=str(sets))
    told = [line for line in err.splitlines() if "cannot be used" in line]
    assert code == 0 and len(told) == 1
    assert told[0].startswith("train: 2 of 6 samples cannot be used: 1 no face in a photograph (first sample dee: ")
    made = json.loads((tmp_path / "out/training.json").read_text())
    assert made["unusable"] == {"train": {"no face in a photograph": 1, "a picture that cannot be read": 1}}
    assert made["samples"] == 4 and not {"dee", "eve"} & set(made["people"])
    plain = umo(tmp_path / "plain", "--set", "validate_every=0")[0]
    assert plain == 0 and (tmp_path / "plain" / LORA).read_bytes() == (tmp_path / "out" / LORA).read_bytes()


def test_values_go_before_the_file_and_the_file_before_defaults(umo, tmp_path: Path) -> None:
    assert umo(tmp_path / "out", "--set", "steps=1", "--set", "anchor=pool", method="sft")[0] == 0
    recipe = json.loads((tmp_path / "out/training.json").read_text())["recipe"]
    assert (recipe["steps"], recipe["anchor"], recipe["rank"], recipe["weight_decay"]) == (1, "pool", 2, 0.0)


def test_the_recipes_lambdas_are_those_of_the_reward(umo, tmp_path: Path) -> None:
    values = ("lambda_match=0", "lambda_mismatch=0", "steps=1")
    assert umo(tmp_path / "out", *(word for value in values for word in ("--set", value)))[0] == 0
    found = json.loads((tmp_path / "out/training.json").read_text())["validation"][0]
    assert found["validation/reward"] == 0
    assert found["validation/matched"] != 0 and found["validation/unmatched"] != 0


def test_our_reward_takes_its_parts_from_the_recipe(umo, tmp_path: Path) -> None:
    """And leaves out the sets that its anchor has no photographs for."""
    alone = row("ann") | {"pool": [[]]}
    sets = export(tmp_path / "sets", ROWS | {"train": [*ROWS["train"], alone]})
    values = "{ceiling: -1, stranger: 1, absent: 0, doubled: 0, surplus: 0}"
    given = {"data": str(sets), "method": "ours"}
    code, err = umo(tmp_path / "out", "--set", f"ours={values}", "--set", "steps=1", **given)
    assert code == 0, err
    assert "train: 1 of 5 samples cannot be used: 1 nothing for the anchor 'pool' (first sample ann: " in err
    found = json.loads((tmp_path / "out/training.json").read_text())
    assert found["unusable"]["train"] == {"nothing for the anchor 'pool'": 1}
    first = found["validation"][0]
    assert first["validation/reward"] == pytest.approx(-1), "everybody is over the ceiling, and nothing else counts"
    assert [first[f"validation/{what}"] for what in ("absent", "surplus", "placed")] == [0, 1, 0]
    code, err = umo(tmp_path / "bad", "--set", "ours={ceiling: 0.9}", **given)
    assert code == 2 and err.splitlines()[-1].endswith(
        "bands has no calibration, which ours.stranger: measured needs: give a number"
    )
    code, err = umo(tmp_path / "bad", "--set", "ours={absent: -1}", **given)
    assert code == 2 and "ours.absent" in err


class Killed(BaseException):
    """Nothing catches it."""


def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(umo, world: Path, tmp_path: Path, monkeypatch) -> None:
    from umo.training.trainer import Trainer

    assert umo(tmp_path / "whole", "--set", "checkpoint_every=1")[0] == 0
    real = Trainer._note

    def note(self, step: int, figures: dict) -> None:
        if step == 2:
            raise Killed  # what a kill leaves: the first update's checkpoint, and curves cut off
        real(self, step, figures)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_note", note)
        with pytest.raises(Killed):
            umo(tmp_path / "out", "--set", "checkpoint_every=1")
    assert not (tmp_path / "out" / LORA).exists()
    assert (tmp_path / "out/live/plots/metrics/train/reward.tsv").exists()  # they are there while it trains
    code, err = umo(tmp_path / "out", "--set", "checkpoint_every=1", "--set", "learning_rate=1")
    assert code == 2 and "a run with another recipe was begun there" in err
    code, err = umo(tmp_path / "out", "--set", "checkpoint_every=1", data=str(export(tmp_path / "other", changed())))
    assert code == 2 and "a run with another data was begun there" in err
    assert umo(tmp_path / "out", "--set", "checkpoint_every=1")[0] == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    code, err = umo(tmp_path / "out")
    assert code == 2 and "a training is finished there" in err
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def changed(split: str = "train", **values: object) -> dict[str, list[dict]]:
    """The sets, of which the first has other values."""
    first, *others = ROWS[split]
    return ROWS | {split: [{**first, "prompt": "Two people.", **values}, *others]}


def test_people_of_the_test_split_whom_the_base_has_seen_are_refused(umo, world: Path, tmp_path: Path) -> None:
    data = export(tmp_path / "sets", ROWS | {"test": [row("bob") | {"person_ids": ["zoe"]}]})
    seen = world / "base/people.json"
    seen.write_text('{"zoe": []}')
    code, err = umo(tmp_path / "out", data=str(data))
    seen.unlink()
    assert code == 2 and "1 people of the test split were trained on there (first zoe" in err
    assert not (tmp_path / "out").exists()


def test_what_was_begun_and_has_no_checkpoint_gives_way(umo, tmp_path: Path) -> None:
    code, err = umo(tmp_path / "out", "--set", "batch=3", "--set", "micro_batch=2")
    assert code == 2 and "batch 3 does not divide" in err
    assert umo(tmp_path / "out", "--set", "steps=1")[0] == 0


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (changed("validation", person_ids=["ann", "bob"]), "2 people are in the train and in the validation sets"),
        (ROWS | {"test": [row("bob")]}, "1 people are in the train and in the test sets (first bob): split by person"),
        ({"validation": ROWS["validation"]}, "no split 'train'"),
        ({"train": ROWS["train"]}, "validate_every is set and there are no validation samples"),
        (changed(prompt=None), "set ann+bob has no prompt"),
        (changed(references=ROWS["train"][0]["references"][:1]), "set ann+bob has 1 references of 2 people"),
        (NO_PICTURES, "nothing to train on: 4 of 4 samples cannot be used: 4 a picture that cannot be read (first"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unfit_sets_are_one_line(umo, tmp_path: Path, rows: dict, reason: str) -> None:
    code, err = umo(tmp_path / "out", data=str(export(tmp_path / "unfit", rows)))
    line = err.splitlines()[-1]  # above it may be a progress bar
    assert code == 2 and line.startswith("umo: ") and reason in line
    assert not (tmp_path / "out/training.json").exists()


@pytest.mark.parametrize(
    ("column", "put", "reason"),
    [
        ("pool", None, "column 'pool' is missing; it must hold list of list of picture"),
        ("prompt", pa.int64(), "column 'prompt' holds number; it must hold text"),
        ("target", pa.binary(), "column 'target' holds binary; it must hold picture"),
    ],
)
def test_unfit_columns_are_one_line(umo, tmp_path: Path, column: str, put: pa.DataType | None, reason: str) -> None:
    place = SCHEMA.get_field_index(column)
    schema = SCHEMA.remove(place) if put is None else SCHEMA.set(place, pa.field(column, put))
    rows = {split: [{**one, column: None} for one in found] for split, found in ROWS.items()}
    code, err = umo(tmp_path / "out", data=str(export(tmp_path / "unfit", rows, schema)))
    assert code == 2 and err.startswith("umo: ") and reason in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("objective", ["nft", "grpo"])
def test_a_reward_without_a_gradient_trains_what_needs_none(umo, tmp_path: Path, objective: str) -> None:
    values = {"group_size": 2, "gradient_first": 2, "checkpoint_every": 1}
    more = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    code, err = umo(tmp_path / "out", *more, reward="still", set=f"objective={objective}")
    assert code == 0, err
    made = json.loads((tmp_path / "out/training.json").read_text())
    assert (made["reward"], made["recipe"]["objective"], made["updates"]) == ("still", objective, 2)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"recipe": None}, "recipe: steps: field required; --set steps=NUMBER"),
        ({"recipe": "none.yaml"}, "--recipe none.yaml: no recipe there"),
        ({"recipe": "params.yaml:bases.other.train"}, "--recipe params.yaml:bases.other.train: no recipe there"),
        ({"recipe": "params.yaml"}, "recipe: steps: field required"),
        ({"set": "learning=1"}, "recipe: learning: extra inputs are not permitted"),
        ({"set": "rank=none"}, "recipe: rank: input should be a valid integer"),
        ({"set": "gradient_last=9"}, "gradient_first <= gradient_last <= rollout_steps must hold"),
        ({"set": "steps"}, "--set steps: give KEY=VALUE"),
        ({"reward": "still"}, "reward still has no gradient, which rerefl needs"),
        ({"reward": "other"}, "no face model 'other'"),
        ({"base": "sets"}, "sets: no diffusers folder"),
        ({"lora": "none.safetensors"}, "none.safetensors: no such file"),
        ({"data": "/nowhere/sets"}, "/nowhere/sets: no such folder"),
        ({"data": "base"}, "base: Hugging Face's datasets cannot load it"),
        ({"method": "grpo"}, "Invalid value for '--method'"),
    ],
    ids=str,
)
def test_unfit_options_are_refused(umo, tmp_path: Path, changed: dict, reason: str) -> None:
    code, err = umo(tmp_path / "out", **changed)
    assert code == 2 and reason in " ".join(err.replace("│", " ").split()) and "Traceback" not in err
    assert not (tmp_path / "out" / LORA).exists()


def test_two_at_once_do_not_share_a_folder(umo, tmp_path: Path) -> None:
    from filelock import FileLock

    (tmp_path / "out/.partial").mkdir(parents=True)
    with FileLock(tmp_path / "out/.partial/lock"):
        code, err = umo(tmp_path / "out")
    assert code == 1 and "another process trains into it" in err


def test_curves_without_dvclive_are_those_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("with", "without"):
        if name == "without":
            monkeypatch.setattr("umo.training.curves.find_spec", lambda module: None)
        (tmp_path / name / "plots/metrics/train").mkdir(parents=True)
        (tmp_path / name / "plots/metrics/train/old.tsv").write_text("of a run that was killed\n")
        curves = Curves(tmp_path / name)
        curves.log(0, {"validation/reward": 0.1})
        curves.log(1, {"reward": 1e-9, "skipped": 3})
        curves.log(2, {"reward": -0.25, "validation/reward": 2 / 3})
        curves.end()
    assert isinstance(curves.live, Tables)
    assert contents(tmp_path / "with") == contents(tmp_path / "without")


def test_columns_are_those_of_the_export() -> None:
    from pipelines.export.formats import parquet
    from umo.training.reading import _kind

    kinds = {field.name: _kind(field.type) for field in parquet.schema()}
    assert {column: kinds[column] for column in COLUMNS} == COLUMNS


@pytest.mark.parametrize("name", ["tiny-uno", "[flux] run", "no", "2019", "a: b", "- #1 'x'", "caf\udce9"])
def test_the_card_names_a_base_whatever_it_is_called(name: str) -> None:
    run = {"method": "mimr", "updates": 1, "samples": 1, "people": ["ann"], "skipped": 0, "chosen_update": 1}
    run |= {"licences": {"base": "apache-2.0", "lora": "unknown"}}
    run |= {"reward": "dlib", "validation": [], "recipe": {"steps": 1, "objective": "grpo"}}
    card = lora_card(run, name, ["CC0"])
    shown = name.replace("\udce9", "\\udce9")
    assert yaml.safe_load(card.encode().split(b"---")[1])["base_model"] == shown
    assert f"# mimr on {shown}\n\nGRPO (Flow-GRPO) with the multi-identity" in card
    assert "Licence of the base: apache-2.0. Licence of the LoRA that it goes on from: unknown.\n" in card
