"""No photograph is named in a line that Prefect keeps."""

import pytest

from pipelines.service import graph
from pipelines.service.privacy import without_places


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("ingest: mine/ann smith/1.jpg: truncated or corrupt (7 bytes): copy it", "ingest: mine/…: truncated or"),
        ("ingest: mine/ann: smith, 1.jpg: not an image: convert it", "ingest: mine/…: not an image: convert it"),
        ("ingest: mine/ann: empty file (0 bytes): copy it", "ingest: mine/…: empty file (0 bytes): copy it"),
        ("ingest: b/1.jpg: the same bytes as mine/ann/2.jpg; one copy is kept", "the same bytes as another; one copy"),
        ("ingest: datasets/photos/ann, too/list.csv: no column 'path'", "ingest: datasets/…: no column 'path'"),
        ("original, refused by ingest from now on: /home/ann smith/photos/3.jpg: delete it", "now on: /…: delete it"),
        ("[Errno 2] No such file or directory: '/home/ann/3.jpg'", "No such file or directory: '/…"),
    ],
)
def test_names_go_and_the_reason_stays(line, kept):
    assert "ann" not in without_places(line)
    assert kept in without_places(line)


@pytest.mark.parametrize(
    "line",
    [
        "ingest: 3 pictures; turned away: 2 duplicate -> datasets/ingested",
        "ingest: .work/ingest holds 3 MiB (make clean-work)",
        'File "/opt/umo/pipelines/ingest/stage.py", line 3, in run',
        "ERROR: failed to reproduce 'ingest': failed to run: python -m pipelines ingest, exited with 2",
    ],
)
def test_other_lines_stay(line):
    assert without_places(line) == line


def test_what_ingest_prints_is_heard_without_names(toy, monkeypatch):
    said = ["ingest: mine/ann/1.jpg: not an image", "ingest: mine/ann/2.jpg: unreadable", "ERROR: exited with 1"]
    monkeypatch.setattr(graph, "follow", lambda command, hear, *rest: [hear(line) for line in said])
    lines = []
    with pytest.raises(graph.WorkFailed) as error:
        graph.reproduce("ingest", lines.append)
    assert not any("ann" in line for line in [*lines, str(error.value)])
    assert str(error.value) == "ingest: mine/…: unreadable"
