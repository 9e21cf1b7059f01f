"""Checksums that are remembered must be those of the bytes that are there now."""

import hashlib
import os
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipelines.core import digests
from pipelines.core.digests import MEMORY, file_digest, remember_digest, tree_digest


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def reads(monkeypatch) -> list[Path]:
    """The files whose bytes were read."""
    read, real = [], digests.read_digest
    monkeypatch.setattr(digests, "read_digest", lambda path: read.append(path) or real(path))
    return read


@pytest.fixture
def settled(monkeypatch):
    """Files count as settled at once."""
    monkeypatch.setattr(digests, "SETTLED_NS", -(10**12))


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def restart() -> None:
    """What a new process would find."""
    digests._close()
    digests._open.clear()


def test_a_file_that_has_not_changed_is_read_once(reads, settled):
    path = Path("a.txt")
    path.write_text("one")
    assert file_digest(path) == file_digest(path) == sha256("one")
    restart()
    assert file_digest(path) == sha256("one")
    assert reads == [path]


def test_threads_share_what_is_remembered(reads, settled):
    """The file is opened in one thread, used in others and shut in a third."""
    paths = [Path(f"{k}.txt") for k in range(600)]
    for path in paths:
        path.write_text(path.name)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(file_digest, paths)) == [sha256(path.name) for path in paths]
    restart()
    reads.clear()
    assert [file_digest(path) for path in paths] == [sha256(path.name) for path in paths]
    assert reads == []


def test_a_file_is_the_same_under_another_name_and_another_file_is_not(reads, settled):
    Path("a.txt").write_text("one")
    file_digest(Path("a.txt"))
    Path("a.txt").rename("b.txt")
    Path("a.txt").write_text("two")
    # Renaming moves the time of change, so that the bytes are read again, and rightly.
    assert [file_digest(Path(name)) for name in ("a.txt", "b.txt")] == [sha256("two"), sha256("one")]


@pytest.mark.parametrize("change", ["size", "time", "time put back", "replaced", "replaced and time put back"])
def test_a_changed_file_is_read_again(change, settled):
    path = Path("a.txt")
    path.write_text("one")
    file_digest(path)
    before = path.stat()
    time.sleep(0.02)  # longer than the clock's tick
    text = "three" if change == "size" else "two"
    if change.startswith("replaced"):
        Path("new.txt").write_text(text)
        Path("new.txt").replace(path)
    else:
        path.write_text(text)
    if change.endswith("put back"):
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file_digest(path) == sha256(text)
    restart()
    assert file_digest(path) == sha256(text)


def test_what_has_just_been_written_is_not_remembered(reads, monkeypatch):
    """A second write within the same tick of the clock leaves size, times and inode as they were."""
    monkeypatch.setattr(digests, "SETTLED_NS", 10**12)  # however long this test takes
    path = Path("a.txt")
    path.write_text("one")
    first = path.stat()
    file_digest(path)
    with path.open("r+") as file:
        file.write("two")
    os.utime(path, ns=(first.st_atime_ns, first.st_mtime_ns))
    assert file_digest(path) == sha256("two")
    remember_digest(path, sha256("one"))
    assert file_digest(path) == sha256("two")
    assert len(reads) == 3


def test_a_link_that_was_just_made_does_not_make_a_file_unknown(reads, settled):
    path, link = Path("a.txt"), Path("b.txt")
    path.write_text("one")
    link.hardlink_to(path)
    remember_digest(path, sha256("one"))
    assert file_digest(link) == sha256("one")
    assert not reads


@pytest.mark.parametrize("damage", ["spoilt", "gone", "another table", "a folder"])
def test_a_damaged_memory_only_costs_time(damage, settled):
    path = Path("a.txt")
    path.write_text("one")
    file_digest(path)
    restart()
    MEMORY.unlink()
    if damage == "spoilt":
        MEMORY.write_bytes(b"no database " * 1000)
    elif damage == "another table":
        with sqlite3.connect(MEMORY) as connection:
            connection.execute("CREATE TABLE files (x)")
    elif damage == "a folder":
        MEMORY.mkdir()
    assert file_digest(path) == file_digest(path) == sha256("one")
    restart()
    assert file_digest(path) == sha256("one")


def test_a_locked_memory_is_not_waited_for_long(settled, monkeypatch):
    path = Path("a.txt")
    path.write_text("one")
    file_digest(path)
    digests._memory().flush()
    other = sqlite3.connect(MEMORY)
    other.execute("BEGIN EXCLUSIVE")
    restart()
    monkeypatch.setattr(digests, "PATIENCE", 0.01)
    assert file_digest(path) == sha256("one")
    other.close()


def test_each_workspace_has_its_own_memory(tmp_path, monkeypatch, settled):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        Path("a.txt").write_text(name)
        assert file_digest(Path("a.txt")) == sha256(name)
    restart()
    assert (tmp_path / "one" / MEMORY).exists() and (tmp_path / "two" / MEMORY).exists()


def test_a_tree_is_its_names_and_bytes(settled):
    for name, text in (("t/a", "one"), ("t/b/c", "two")):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    first = tree_digest(Path("t"))
    assert tree_digest(Path("t")) == first
    Path("t/b/c").rename("t/b/d")
    renamed = tree_digest(Path("t"))
    Path("t/b/d").rename("t/b/c")
    assert renamed != first == tree_digest(Path("t"))
