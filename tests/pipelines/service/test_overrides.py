"""Other values for one run: what they may be, how they are written, and that a kill loses nothing."""

import difflib
import sys
from pathlib import Path

import pytest
import yaml

from pipelines.core.shards import ROOT
from pipelines.service import graph, overrides
from pipelines.service.form import DataOverrides, TrainingOverrides
from pipelines.service.overrides import Note, overridden
from umo.errors import BadInput, WorkFailed

SHIPPED = (ROOT / "params.yaml").read_text()
HERE = Path()


def begin(values: dict, stages=("curate",), flow="build_dataset") -> None:
    """As a flow does."""
    overrides.recover(print, HERE, (), values, flow)
    if values:
        overrides.begin(values, flow, list(stages), graph.look()[0].kept, print, HERE)


def restore() -> None:
    overrides.restore(print, HERE)


def save(name: str = "tried") -> None:
    overrides.save(name, ["ingest", "curate"], graph.look()[0].kept, print, HERE)


def test_comments_and_all_else_stay():
    text = overridden(SHIPPED, {"curate.min_cosine": 0.62, "export.formats": ["parquet"]})
    changed = [line for line in difflib.ndiff(SHIPPED.splitlines(), text.splitlines()) if line[0] in "+-"]
    gone = [line.partition(":")[0] for line in changed if line[0] == "-"]
    assert gone == ["-   min_cosine", "-   formats"]
    added = [line.partition("#")[0].rstrip() for line in changed if line[0] == "+"]
    assert added == ["+   min_cosine: 0.62", "+   formats:", "+     - parquet"]
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


def test_the_knobs_mean_the_base_that_is_trained_in_this_run():
    given = TrainingOverrides(steps=9, set={"train.base": "flux-uno"}).values("tiny-uno")
    assert given == {"bases.flux-uno.train.steps": 9, "train.base": "flux-uno"}


def test_nothing_given_is_nothing_changed(toy):
    assert DataOverrides().values("tiny-uno") == {}
    begin({})
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
    begin({"curate.min_cosine": 0.2})
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
    begin({"curate.min_cosine": 0.2})  # though the tree is dirty now
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
    begin({})
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
    save()
    restore()
    toy.run("dvc", "exp", "apply", "tried")
    assert (toy.path / "datasets/splits.csv").read_text().endswith("20\n")
    assert "min_cosine: 0.2" in (toy.path / "params.yaml").read_text()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("brown-otter", "brown-otter-3f2a"), ("What if? 0.5/0.6", "What-if-0-5-0-6-3f2a"), ("…", "run-3f2a")],
)
def test_any_name_of_a_run_is_one_of_an_experiment(name, expected):
    assert overrides.experiment(name, "3f2a-9b") == expected


@pytest.mark.parametrize("command", [["forget"], ["release", "1.0.0"]])
def test_a_command_by_hand_is_refused_until_all_is_put_back(toy, command):
    begin({"curate.min_cosine": 0.2})
    toy.repro("curate")
    done = toy.run("python", "-m", "pipelines", *command, check=False)
    assert done.returncode == BadInput.exit_code
    assert "a run with curate.min_cosine = 0.2 was interrupted: put back what it changed first" in done.stderr
    toy.run("python", "-m", "pipelines.service.overrides")
    assert toy.dirty() == []
    assert Note.read() is None


KILLED = """
import os, sys
from dvc.cli import main
from dvc.repo.experiments.executor.base import BaseExecutor
whole = BaseExecutor.commit.__func__
def commit(cls, *args, **options):
    if {after}:
        whole(cls, *args, **options)
    os.kill(os.getpid(), 9)
BaseExecutor.commit = classmethod(commit)
main(sys.argv[1:])
"""


@pytest.mark.parametrize(("branch", "after"), [(True, False), (True, True), (False, True)])
def test_a_kill_while_the_result_is_saved_leaves_head_where_it_was(toy, monkeypatch, after, branch):
    if not branch:
        toy.run("git", "checkout", "--quiet", "--detach")
    before, head = toy.products(), toy.run("git", "log", "-1", "--format=%H %D").stdout
    begin({"curate.min_cosine": 0.2})
    toy.repro("curate")
    monkeypatch.setattr(overrides, "dvc", lambda *args: [sys.executable, "-c", KILLED.format(after=after), *args])
    with pytest.raises(WorkFailed, match="could not be saved"):
        save()
    monkeypatch.undo()
    monkeypatch.chdir(toy.path)
    begin({"curate.min_cosine": 0.2})  # the same goes on, and can be saved
    save()
    restore()
    assert toy.run("git", "log", "-1", "--format=%H %D").stdout == head
    assert toy.products() == before
    assert toy.dirty() == []


def test_only_the_products_of_its_stages_are_put_back(toy):
    """A picture among others that DVC knows, and which was not told to DVC yet."""
    photos = toy.path / "datasets/photos"
    photos.mkdir()
    (photos / "1.jpg").write_text("one")
    toy.run("dvc", "add", "datasets/photos")
    toy.commit("photos")
    (photos / "2.jpg").write_text("two")
    begin({"curate.min_cosine": 0.2})
    toy.repro("curate")
    restore()
    assert (photos / "2.jpg").read_text() == "two"
    assert (toy.path / "datasets/curated/funnel.json").read_text().count('"kept": 20') == 0


@pytest.mark.parametrize("values", [{}, {"curate.min_cosine": 0.2}])
def test_a_lock_file_that_a_kill_cut_off_is_put_back(toy, values):
    before = toy.products()
    begin({"curate.min_cosine": 0.2})
    toy.repro("curate")
    lock = toy.path / "dvc.lock"
    lock.write_text(lock.read_text()[:150])
    begin(values)
    restore()
    assert toy.products() == before
    assert toy.dirty() == []


def test_what_was_edited_by_hand_meanwhile_is_kept_beside(toy):
    begin({"curate.min_cosine": 0.2})
    params = toy.path / "params.yaml"
    params.write_text(params.read_text() + "# mine\n")
    begin({"curate.min_cosine": 0.2})  # after a kill
    params.write_text(params.read_text() + "# mine again\n")
    restore()
    assert (toy.path / "params.yaml.mine").read_text().endswith("# mine\n")
    assert (toy.path / "params.yaml.mine1").read_text().endswith("# mine again\n")
    assert toy.dirty() == ["?? params.yaml.mine", "?? params.yaml.mine1"]


def test_a_commit_by_hand_meanwhile_does_not_make_the_values_stay(toy):
    before = (toy.path / "params.yaml").read_bytes()
    begin({"curate.min_cosine": 0.2})
    toy.commit("mine, and the run's values too")
    lines = []
    overrides.restore(lines.append, HERE)
    assert (toy.path / "params.yaml").read_bytes() == before
    assert "committed by hand during the run: params.yaml; here as before the run: git diff HEAD" in lines


def test_what_dvc_runs_holds_the_writers_lock_too(toy, monkeypatch):
    held = []
    monkeypatch.setattr(overrides, "follow", lambda command, hear, root, hold: held.append((command[3], hold)))
    begin({"curate.min_cosine": 0.2})
    overrides.save("tried", ["curate"], [], print, HERE, [7])
    overrides.restore(print, HERE, [7])
    assert held == [("exp", [7]), ("checkout", [7])]


def test_why_it_could_not_be_saved_is_dvcs_own_line(toy, monkeypatch):
    says = "print('ERROR: no space'); print('Having any troubles? Hit us up'); raise SystemExit(255)"
    monkeypatch.setattr(overrides, "dvc", lambda *args: [sys.executable, "-c", says])
    with pytest.raises(WorkFailed, match=r"^the result could not be saved: no space$"):
        save()


def test_a_kill_while_all_is_put_back_is_made_good_by_the_next(toy, monkeypatch):
    before = toy.products()
    begin({"curate.min_cosine": 0.2})
    toy.repro("curate")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(overrides, "follow", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        restore()
    assert toy.products() != before
    begin({})
    assert toy.products() == before
    assert toy.dirty() == []
