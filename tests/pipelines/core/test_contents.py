"""What lies in the sources, for DVC: everything that `ingest` would see changes it, and nothing stops it."""

import json
import os
from pathlib import Path

import pytest

from pipelines.core.contents import CONTENTS, contents, write_contents
from umo.errors import BadInput


@pytest.fixture
def album(tmp_path: Path, monkeypatch) -> Path:
    """Two pictures, one behind a linked folder, which is the current folder's source `a`."""
    monkeypatch.chdir(tmp_path)
    for file in ("datasets/photos/a/own/1.png", "nas/2.png"):
        Path(file).parent.mkdir(parents=True)
        Path(file).write_text(file)
    album = tmp_path / "datasets/photos/a"
    (album / "linked").symlink_to(tmp_path / "nas")
    Path("datasets/sources.yaml").write_text("a: {path: datasets/photos/a, licence: CC0}\nb: {package: p, path: x}\n")
    return album


def test_whatever_ingest_would_see_changes_it(album: Path) -> None:
    changes = [
        lambda: (album / "own/1.png").write_text("another picture"),
        lambda: (album.parents[2] / "nas/3.png").write_text("new behind a link"),
        lambda: (album / "own/1.png").rename(album / "own/renamed.png"),
        lambda: (album / "gone.png").symlink_to("/nowhere/gone.png"),
        lambda: (album / ".#1.png").symlink_to("me@host.12:34"),
        lambda: Path(os.fsdecode(os.fsencode(album) + b"/caf\xe9.png")).write_text("x"),
        lambda: Path(os.fsdecode(os.fsencode(album) + b"/d\xe9")).mkdir(),
        lambda: (album / "again").symlink_to(album),
        lambda: os.mkfifo(album / "pipe.png"),
        lambda: (album / "linked").unlink(),
    ]
    seen = [contents(album)]
    for change in changes:
        change()
        assert contents(album) == contents(album)
        seen.append(contents(album))
    assert len(set(seen)) == len(changes) + 1
    assert contents(album) != contents(album / "own") != contents(album / "own/renamed.png") != contents(album / "no")


def test_neither_the_place_nor_the_time_matters(album: Path, tmp_path: Path) -> None:
    before = contents(album)
    os.utime(album / "own/1.png", (1, 1))
    album.rename(tmp_path / "elsewhere")
    assert contents(tmp_path / "elsewhere") == before
    (tmp_path / "link").symlink_to("elsewhere")
    assert contents(tmp_path / "link") == before


def test_a_digest_a_source_and_no_name_of_a_file(album: Path) -> None:
    assert write_contents().endswith("1 sources of photographs")
    assert json.loads(CONTENTS.read_text()) == {"a": contents(album)}
    Path("datasets/sources.yaml").write_text("u: {path: nas/uno.json, licence: CC0}")  # its pictures lie beside it
    write_contents()
    assert json.loads(CONTENTS.read_text()) == {"u": contents(Path("nas"))}


def test_a_machine_without_the_photographs_keeps_what_another_wrote(album: Path) -> None:
    write_contents()
    written = CONTENTS.read_text()
    album.rename("away")
    assert "kept" in write_contents()
    assert CONTENTS.read_text() == written
    Path(".work/ingest").mkdir(parents=True)  # they were here
    write_contents()
    assert json.loads(CONTENTS.read_text()) == {"a": contents(album)}


def test_sources_that_cannot_be_read_are_refused(album: Path) -> None:
    Path("datasets/sources.yaml").write_text("no: {path: x}")
    with pytest.raises(BadInput, match=r"sources.yaml:1: the key no"):
        write_contents()
    assert not CONTENTS.exists()
