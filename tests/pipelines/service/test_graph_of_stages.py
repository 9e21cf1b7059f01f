"""The graph as DVC sees it, one stage run, and what a failed one is said to be."""

import subprocess

import pytest

from pipelines.service import graph
from tests.pipelines.service.toy import DATA
from umo.errors import BadInput, WorkFailed


def test_order_and_what_is_kept(toy):
    every = graph.look()
    assert list(every.before) == [*DATA, "cases", "train@mimr", "compare"]
    assert every.up_to("export") == DATA
    assert every.after("export") == ["cases", "train@mimr", "compare"]
    assert every.kept == ("datasets/splits.csv", "runs/evaluate/mimr/metrics.json")
    assert every.cached >= {"datasets/curated", "runs/train/mimr"}
    assert graph.changed() == set()


def test_the_projects_own_graph_has_no_frozen_stage():
    every = graph.look()
    assert not any("pretrain" in stage for stage in every.before)
    assert {"ingest", "train@mimr", "report"} <= every.before.keys()
    known = subprocess.run(["git", "ls-files", "--", *every.kept], capture_output=True, text=True, check=True)
    assert known.stdout.splitlines() == list(every.kept)


def test_stale_at_the_start_and_stale_after_another(toy):
    (toy.path / "datasets/photos.txt").write_text("ann\nbob\n")
    assert graph.changed() == {"ingest"}
    lines = []
    graph.reproduce("ingest", lines.append)
    assert "ingest says hello" in lines
    assert graph.changed(graph.Path(), "curate") == {"curate"}
    graph.reproduce("curate", lines.append)
    assert graph.changed(graph.Path(), "validate") == set()  # curate made the same as before


def test_a_broken_file_is_told_in_a_line(toy):
    (toy.path / "dvc.yaml").write_text("stages: {ingest: {cmd: 3}}")
    with pytest.raises(BadInput) as error:
        graph.look()
    assert "\n" not in str(error.value)


def failed(*lines: str) -> BadInput | WorkFailed:
    return graph.failure("train@mimr", lines)


def test_a_failed_stage_speaks_for_itself():
    error = failed(
        "Running stage 'train@mimr':",
        "train@mimr: the sets are unfit",
        "ERROR: failed to reproduce 'train@mimr': failed to run: python -m pipelines train, exited with 2",
    )
    assert isinstance(error, BadInput)
    assert str(error) == "train@mimr: the sets are unfit"
    error = failed("train@mimr: diverged", "ERROR: failed to run: python -m pipelines train, exited with 1")
    assert isinstance(error, WorkFailed)
    assert not isinstance(error, graph.Interrupted)


@pytest.mark.parametrize("code", [-9, 137])
def test_a_killed_stage_may_be_tried_again(code):
    error = failed("train@mimr: 3 of 9", f"ERROR: failed to run: python -m pipelines train, exited with {code}")
    assert isinstance(error, graph.Interrupted)
    assert "killed" in str(error)


def test_a_stage_that_another_process_holds_may_be_tried_again():
    assert isinstance(failed("ERROR: 'runs/train/mimr' is busy, it is being blocked by:"), graph.Interrupted)


def test_a_command_without_a_word_still_has_a_line():
    assert str(failed()) == "train@mimr: dvc repro failed without a word"
