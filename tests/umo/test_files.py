"""Files and folders appear whole or not at all."""

from pathlib import Path

import pytest

from umo import files
from umo.files import clear, remove, replacing, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced(tmp_path):
    for text in ("one", "zwölf"):
        write_text(tmp_path / "a.txt", text)
        assert (tmp_path / "a.txt").read_text(encoding="utf-8") == text
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("renames", [False, True], ids=["swap", "two renames"])
def test_a_folder_takes_the_place_of_a_folder(tmp_path, monkeypatch, renames):
    if renames:
        monkeypatch.setattr(files.ctypes, "CDLL", lambda name: None)
    for text in ("one", "two"):
        with replacing(tmp_path / "a") as temporary:
            temporary.mkdir()
            (temporary / text).write_text(text)
        assert names(tmp_path / "a") == [text]
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("several", [False, True])
def test_after_an_error_nothing_has_changed(tmp_path, several):
    path = tmp_path / "a.txt"
    write_text(path, "one")

    def fail() -> None:
        with replacing(path, several=several) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "one" and names(tmp_path) == ["a.txt"]


def test_what_was_left_is_cleared_and_what_was_put_aside_comes_back(tmp_path):
    for name in (".a.tmp", ".a.old.tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / ".a.old.tmp/old").touch()
    clear(tmp_path / "a")
    assert names(tmp_path) == ["a"] and names(tmp_path / "a") == ["old"]


def test_of_a_link_the_link_is_removed(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to("a")
    remove(tmp_path / "b")
    assert names(tmp_path) == ["a"]
