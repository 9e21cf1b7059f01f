"""What dead runs leave in DVC's list of locks does not need a human; what living ones hold stays."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipelines.locks import RWLOCK, clear_stale, refuse_others
from pipelines.shards import only_writer
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


def test_a_second_writer_waits_for_the_first_and_not_for_a_dead_one():
    script = f"import sys, time, pathlib\nsys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
    script += "from pipelines.shards import only_writer\n"
    script += "with only_writer('ingest'):\n pathlib.Path('held').touch(); time.sleep({})"
    first = subprocess.Popen([sys.executable, "-c", script.format(3600)])
    while not Path("held").exists():
        time.sleep(0.02)
    second = subprocess.Popen([sys.executable, "-c", script.format(0)], stdout=subprocess.PIPE, text=True)
    assert second.stdout is not None
    assert "waiting" in second.stdout.readline()
    assert second.poll() is None
    with only_writer("measure"):
        first.kill()
        first.wait()
    assert second.wait(60) == 0
