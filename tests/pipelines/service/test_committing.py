"""Committing what a run made, and nothing else."""

import pytest

from pipelines.service import graph, repository
from umo.errors import BadInput


def test_only_what_the_stages_wrote_is_committed(toy):
    (toy.path / "datasets/photos.txt").write_text("ann\nbob\n")
    toy.commit("a photograph")
    (toy.path / "notes.txt").write_text("mine")
    toy.run("git", "add", "notes.txt")
    toy.repro("export")
    assert repository.commit("nightly", graph.look().kept, print)
    changed = toy.run("git", "show", "--name-only", "--format=%s").stdout.split()
    assert changed == ["nightly", "datasets/splits.csv", "dvc.lock"]
    assert toy.dirty() == ["A  notes.txt"]
    assert not repository.commit("nothing", graph.look().kept, print)
    assert toy.run("git", "log", "-1", "--format=%s").stdout == "nightly\n"


def test_a_run_of_uncommitted_code_is_not_committed(toy):
    (toy.path / "stage.py").write_text((toy.path / "stage.py").read_text() + "# mine\n")
    with pytest.raises(BadInput, match=r"needs a clean tree, and stage\.py is not committed"):
        repository.refuse_other_changes(graph.look().kept)


def test_the_tombstones_of_a_forget_do_not_keep_the_next_night_from_committing(toy):
    tombstones = toy.path / "datasets/tombstones.csv"
    tombstones.write_text("image_id\n")
    toy.commit("nobody yet")
    tombstones.write_text("image_id\n1\n")
    repository.refuse_other_changes(graph.look().kept)
    assert repository.commit("nightly", graph.look().kept, print)
    assert toy.dirty() == []


def test_nothing_is_committed_on_no_branch(toy):
    toy.run("git", "checkout", "--quiet", "--detach")
    with pytest.raises(BadInput, match="commit needs a branch"):
        repository.refuse_other_changes(graph.look().kept)
    (toy.path / "datasets/splits.csv").write_text("changed\n")
    with pytest.raises(BadInput, match="commit needs a branch"):
        repository.commit("nightly", graph.look().kept, print)
