"""Other values for one run: what they may be, how they are written, and that a kill loses nothing."""

from pathlib import Path

import pytest
import yaml

from pipelines.operations import graph, overrides
from pipelines.operations.overrides import DataOverrides, Note, TrainingOverrides, overridden
from pipelines.shards import ROOT
from umo.errors import BadInput

SHIPPED = (ROOT / "params.yaml").read_text()
HERE = Path()


def begin(values: dict, stages=("curate",)) -> bool:
    every, _ = graph.look()
    return overrides.begin(values, list(stages), every.kept, print, HERE)


def restore() -> None:
    overrides.restore(graph.look()[0].kept, print, HERE)


def test_comments_and_all_else_stay():
    text = overridden(SHIPPED, {"curate.min_cosine": 0.62, "export.formats": ["parquet"]})
    assert "# every knob" in text.lower()
    differing = set(text.splitlines()) - set(SHIPPED.splitlines())
    assert "  min_cosine: 0.62" in differing
    assert "# machine is no part of any result" in text
    expected = yaml.safe_load(SHIPPED)
    expected["curate"]["min_cosine"], expected["export"]["formats"] = 0.62, ["parquet"]
    assert yaml.safe_load(text) == expected


def test_every_field_of_the_form_is_a_key_of_params():
    given = TrainingOverrides(
        min_cosine=0.1,
        max_cross_cosine=0.2,
        train_scenes=3,
        formats=["parquet"],
        steps=5,
        learning_rate=0.1,
        reward_weight=0.5,
        cases_per_n=6,
        seeds=7,
        set={"ingest.shards": 3},
    )
    values = given.values("tiny-uno")
    assert values["bases.tiny-uno.train.steps"] == 5
    assert len(values) == len(TrainingOverrides.model_fields)
    shipped = yaml.safe_load(SHIPPED)
    for key in values:
        node = shipped
        for part in key.split("."):
            node = node[part]  # a KeyError names a field that leads nowhere


def test_nothing_given_is_nothing_changed(toy):
    assert DataOverrides().values("tiny-uno") == {}
    assert begin({}) is False
    assert toy.dirty() == []


@pytest.mark.parametrize("key", ["min_cosine", "cases.per_n"])
def test_a_value_of_no_stage_of_the_flow_is_refused(key):
    with pytest.raises(BadInput, match=key):
        overrides.refuse_foreign({key: 1}, ["curate", "measure@ingested"], "build_dataset")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"curate.min_cosin": 1}, "overrides: unknown key 'curate.min_cosin'; did you mean 'min_cosine'"),
        ({"curate.min_cosine": "much"}, "'curate.min_cosine'"),
        ({"curate.seed.deeper": 1}, "'curate.seed.deeper' is no key"),
    ],
)
def test_an_unfit_value_changes_nothing(toy, values, said):
    with pytest.raises(BadInput, match=said):
        begin(values)
    assert toy.dirty() == []
    assert Note.read() is None


def test_it_is_put_back_to_the_byte(toy):
    before = toy.products() | {"params.yaml": (toy.path / "params.yaml").read_bytes()}
    assert begin({"curate.min_cosine": 0.2})
    toy.repro("curate")
    assert toy.products() != before
    restore()
    assert toy.products() | {"params.yaml": (toy.path / "params.yaml").read_bytes()} == before
    assert toy.dirty() == []
    assert Note.read() is None


def test_products_that_were_not_there_are_gone_again(toy):
    """A workspace in which nothing was ever made: its lock file and the files of git's are not committed."""
    toy.run("git", "rm", "--quiet", "--cached", "dvc.lock", "runs/evaluate/mimr/metrics.json")
    for name in ("dvc.lock", "runs/evaluate/mimr/metrics.json"):
        (toy.path / name).unlink()
    toy.commit("nothing made")
    begin({"curate.min_cosine": 0.2})
    toy.repro()
    restore()
    assert not (toy.path / "dvc.lock").exists()
    assert not (toy.path / "runs/evaluate/mimr/metrics.json").exists()
    assert toy.dirty() == []


def test_after_a_kill_the_same_values_go_on(toy):
    begin({"curate.min_cosine": 0.2})
    toy.repro("curate")
    made = toy.products()
    assert begin({"curate.min_cosine": 0.2})  # though the tree is dirty now
    assert toy.products() == made


def test_after_a_kill_other_values_begin_from_what_was(toy):
    before = toy.products()
    begin({"curate.min_cosine": 0.2})
    toy.repro("curate")
    begin({"curate.min_cosine": 0.3})
    assert yaml.safe_load((toy.path / "params.yaml").read_text())["curate"]["min_cosine"] == 0.3
    assert toy.products() == before


def test_a_run_without_values_puts_back_what_was_left(toy):
    before = toy.products()
    begin({"curate.min_cosine": 0.2})
    toy.repro("curate")
    assert begin({}) is True
    assert toy.products() == before
    assert toy.dirty() == []


@pytest.mark.parametrize("name", ["params.yaml", "dvc.lock", "datasets/splits.csv"])
def test_what_is_not_committed_would_be_lost_and_is_refused(toy, name):
    with (toy.path / name).open("a") as file:
        file.write("# mine\n")
    with pytest.raises(BadInput, match=f"needs a clean tree, and {name}"):
        begin({"curate.min_cosine": 0.2})
    assert (toy.path / name).read_text().endswith("# mine\n")


def test_other_changes_of_the_user_stay(toy):
    (toy.path / "stage.py").write_text((toy.path / "stage.py").read_text() + "# mine\n")
    begin({"curate.min_cosine": 0.2})
    restore()
    assert (toy.path / "stage.py").read_text().endswith("# mine\n")


def test_the_result_is_kept_with_its_ledger(toy):
    begin({"curate.min_cosine": 0.2})
    toy.repro("curate")
    overrides.keep("tried", ["ingest", "curate"], graph.look()[0].kept, print, HERE)
    restore()
    toy.run("dvc", "exp", "apply", "tried")
    assert (toy.path / "datasets/splits.csv").read_text().endswith("20\n")
    assert "min_cosine: 0.2" in (toy.path / "params.yaml").read_text()


@pytest.mark.parametrize(
    ("name", "expected"), [("brown-otter", "brown-otter"), ("What if? 0.5/0.6", "What-if-0-5-0-6"), ("…", "run")]
)
def test_any_name_of_a_run_is_one_of_an_experiment(name, expected):
    assert overrides.experiment(name) == expected
