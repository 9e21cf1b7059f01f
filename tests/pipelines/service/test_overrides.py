"""Other values for one run: what they may be, and that nothing of the workspace that people edit is touched."""

import sys
from pathlib import Path

import pytest
import yaml

from pipelines.core.shards import ROOT, WORK
from pipelines.service import graph, overrides
from pipelines.service.form import DataOverrides, TrainingOverrides
from pipelines.service.overrides import SPACE
from umo.errors import BadInput, WorkFailed

SHIPPED = (ROOT / "params.yaml").read_text()
VALUES = {"curate.min_cosine": 0.2}


def workspace(values=None):
    """As a flow does."""
    return overrides.workspace(values or VALUES, graph.look(), print)


def save(space: Path, name: str = "tried") -> None:
    overrides.save(name, ["ingest", "curate"], graph.look().kept, print, space)


def test_the_values_are_changed_and_comments_stay(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text(SHIPPED)
    overrides.override(file, {"curate.min_cosine": 0.62, "export.formats": ["parquet"]})
    expected = yaml.safe_load(SHIPPED)
    expected["curate"]["min_cosine"], expected["export"]["formats"] = 0.62, ["parquet"]
    assert yaml.safe_load(file.read_text()) == expected
    comments = [line.partition("# ")[2] for line in SHIPPED.splitlines() if "# " in line]
    assert [line.partition("# ")[2] for line in file.read_text().splitlines() if "# " in line] == comments


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
        set={"ingest.shard_size": 3},
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


def test_nothing_given_is_nothing_changed():
    assert DataOverrides().values("tiny-uno") == {}


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
    with pytest.raises(BadInput, match=said), workspace(values):
        pass
    assert toy.dirty() == []
    assert not SPACE.exists()


def test_the_workspace_that_people_edit_is_not_touched_and_the_result_is_kept(toy):
    """Neither while the run is at work nor afterwards."""
    before = toy.products() | {"params.yaml": (toy.path / "params.yaml").read_bytes()}
    with workspace() as space:
        assert graph.changed(space) == {"curate"}
        graph.reproduce("curate", print, space)
        assert toy.products() | {"params.yaml": (toy.path / "params.yaml").read_bytes()} == before
        assert toy.dirty() == []
        save(space)
    assert toy.products() | {"params.yaml": (toy.path / "params.yaml").read_bytes()} == before
    assert toy.dirty() == []
    assert toy.repro() == []
    assert toy.run("git", "worktree", "list").stdout.count("\n") == 1
    toy.run("dvc", "exp", "apply", "tried")
    assert (toy.path / "datasets/splits.csv").read_text().endswith("20\n")
    assert "min_cosine: 0.2" in (toy.path / "params.yaml").read_text()
    assert '"kept": 20' in (toy.path / "datasets/curated/funnel.json").read_text()


def test_what_is_not_committed_takes_part_and_stays(toy):
    """As in `dvc exp run`: code, staged files, and those that git does not know."""
    stage = toy.path / "stage.py"
    stage.write_text(stage.read_text().replace("says hello", "says good day"))
    (toy.path / "staged.txt").write_text("mine")
    toy.run("git", "add", "staged.txt")
    (toy.path / "loose.txt").write_text("mine too")
    dirty, lines = toy.dirty(), []
    with workspace() as space:
        graph.reproduce("curate", lines.append, space)
        assert (space / "staged.txt").read_text() == "mine"
        assert (space / "loose.txt").read_text() == "mine too"
        save(space)
    assert "curate says good day" in lines
    assert toy.dirty() == dirty
    kept = toy.run("git", "for-each-ref", "--format=%(objectname)", "refs/exps/**/tried").stdout.split()
    assert "says good day" in toy.run("git", "show", f"{kept[0]}:stage.py").stdout


def test_nothing_that_git_does_not_know_is_written_through(toy):
    """A repository in which nothing was ever committed of what the stages write: those files are there, unknown."""
    names = ("dvc.lock", "datasets/splits.csv", "runs/evaluate/mimr/metrics.json")
    toy.run("git", "rm", "--quiet", "--cached", *names)
    toy.commit("nothing made", all=False)
    before = {name: (toy.path / name).read_bytes() for name in names}
    with workspace() as space:
        graph.reproduce("curate", print, space)
        save(space)
        assert (space / "datasets/splits.csv").read_text() == "kept\n50\n20\n"
    assert {name: (toy.path / name).read_bytes() for name in names} == before


def test_photographs_and_finished_work_are_shared(toy):
    """Pictures that git does not keep are the same to DVC, folders of them too; they are not copied."""
    photos = toy.path / "datasets/photos"
    (photos / "mine").mkdir(parents=True)
    (photos / ".gitignore").write_text("/mine\n")
    (photos / "mine/1.jpg").write_text("one")
    graph_file = toy.path / "dvc.yaml"
    graph_file.write_text(graph_file.read_text().replace("- datasets/photos.txt", "- datasets/photos"))
    (toy.path / WORK).mkdir(exist_ok=True)
    toy.repro("ingest")
    toy.commit("photos")
    with workspace() as space:
        assert "ingest" not in graph.changed(space)
        assert (space / "datasets/photos/mine/1.jpg").is_symlink()
        (space / WORK / "finished").write_text("a shard")
    assert (toy.path / WORK / "finished").read_text() == "a shard"
    assert (photos / "mine/1.jpg").read_text() == "one"


def test_what_a_killed_run_left_is_gone_before_the_next(toy):
    left = workspace()
    left.__enter__()  # never left: it was killed
    assert SPACE.exists()
    with workspace({"curate.min_cosine": 0.3}) as space:
        assert "min_cosine: 0.3" in (space / "params.yaml").read_text()
    left.gen.close()
    assert not SPACE.exists()
    assert toy.dirty() == []


def test_another_cache_and_ones_own_settings_are_used(toy, tmp_path):
    cache = tmp_path / "elsewhere"
    (toy.path / ".dvc/cache").rename(cache)
    toy.run("dvc", "config", "--local", "cache.dir", str(cache))
    toy.run("dvc", "config", "--local", "core.autostage", "true")
    with workspace() as space:
        assert graph.changed(space) == {"curate"}
        assert "autostage = true" in (space / ".dvc/config.local").read_text()
        assert not (space / ".dvc/cache").exists()


def test_forget_finds_no_workspace_of_a_killed_run(toy):
    """It holds pictures."""
    left = workspace()
    left.__enter__()
    toy.run("python", "-m", "pipelines", "forget", "--dry-run", check=False)
    assert not SPACE.exists()
    left.gen.close()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("brown-otter", "brown-otter-3f2a"), ("What if? 0.5/0.6", "What-if-0-5-0-6-3f2a"), ("…", "run-3f2a")],
)
def test_any_name_of_a_run_is_one_of_an_experiment(name, expected):
    assert overrides.experiment(name, "3f2a-9b") == expected


def test_why_it_could_not_be_saved_is_dvcs_own_line(toy, monkeypatch):
    says = "print('ERROR: no space'); print('Having any troubles? Hit us up'); raise SystemExit(255)"
    monkeypatch.setattr(overrides, "dvc", lambda *args: [sys.executable, "-c", says])
    with pytest.raises(WorkFailed, match=r"^the result could not be saved: no space$"):
        save(toy.path)
