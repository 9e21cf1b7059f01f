"""What dead runs leave in DVC's list of locks does not need a human; what living ones hold stays."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipelines.dvc_locks import RWLOCK, clear_stale, refuse_others
from umo.errors import WorkFailed


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    RWLOCK.parent.mkdir(parents=True)


def write(write: dict, read: dict) -> None:
    RWLOCK.write_text(json.dumps({"write": write, "read": read}))


def dead() -> dict:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return {"pid": process.pid, "cmd": "dvc repro"}


def living() -> dict:
    return {"pid": os.getpid(), "cmd": " ".join(psutil.Process().cmdline())}


def test_entries_of_dead_processes_go_and_those_of_living_ones_stay():
    write({"a": dead(), "b": living()}, {"c": [dead(), living()], "d": [dead()]})
    assert "removed" in clear_stale()
    assert json.loads(RWLOCK.read_text()) == {"write": {"b": living()}, "read": {"c": [living()]}}
    with pytest.raises(WorkFailed, match=f"process {os.getpid()}"):
        refuse_others()


def test_another_process_with_the_number_of_a_dead_one_is_not_taken_for_it():
    write({"a": {"pid": os.getpid(), "cmd": "/usr/bin/dvc repro"}}, {})
    refuse_others()
    assert json.loads(RWLOCK.read_text()) == {}


@pytest.mark.parametrize("text", ["", '{"write": {"a"', "[]"])
def test_a_half_written_list_is_removed(text):
    RWLOCK.write_text(text)
    assert "half-written" in clear_stale()
    assert not RWLOCK.exists()


def test_nothing_to_do():
    assert "nothing" in clear_stale()
    assert not RWLOCK.exists()
