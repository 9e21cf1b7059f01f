"""What dead runs leave of DVC's does not need a human; what living ones hold stays."""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pipelines.service.leftovers import ASIDE, DVC_LOCK, RUNS, RWLOCK, clear_stale, refuse_others
from tests.pipelines import quick
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


def test_a_record_of_nothing_goes_and_dvc_runs_again(folder_of_dvc):
    """DVC makes the folder of a stage's record, then writes the record; a kill between the two stops it for good."""
    run = folder_of_dvc
    assert run("repro").returncode == 0
    record = next(RUNS.glob("??/*/*"))
    record.unlink()
    Path("dvc.lock").unlink()
    failed = run("repro")
    assert failed.returncode and "join() argument must be" in failed.stderr, "DVC has mended it: clear_stale need not"
    write({"b": living()}, {})
    clear_stale()
    RWLOCK.unlink()
    with DVC_LOCK.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(WorkFailed, match="a DVC command is at work"):
            refuse_others()
    assert record.parent.exists(), "a living run may be about to write into it"
    assert "1 empty records" in clear_stale()
    assert run("repro").returncode == 0


@pytest.mark.parametrize("cut", [0, 10, 60])
def test_half_of_dvc_lock_is_put_aside_and_nothing_is_made_again(folder_of_dvc, cut):
    run, lock = folder_of_dvc, Path("dvc.lock")
    assert run("repro").returncode == 0
    whole = lock.read_text()
    lock.write_text(whole[:cut])
    assert run("status").returncode, "DVC reads it: clear_stale need not"
    assert "half-written" in clear_stale()
    again = run("repro")
    assert again.returncode == 0 and "skipping run" in again.stdout
    assert lock.read_text() == whole
    assert ASIDE.read_text() == whole[:cut]
    assert "half-written" not in clear_stale()


def test_a_conflict_of_a_merge_in_dvc_lock_is_left_to_its_user(folder_of_dvc):
    folder_of_dvc("repro")
    Path("dvc.lock").write_text(text := "<<<<<<< HEAD\n" + Path("dvc.lock").read_text())
    assert "half-written" not in clear_stale()
    assert Path("dvc.lock").read_text() == text


@pytest.fixture
def folder_of_dvc() -> Callable[[str], subprocess.CompletedProcess[str]]:
    """DVC in a folder of one stage."""

    def run(command: str, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([quick.dvc(), command, *options], capture_output=True, text=True, check=False)

    assert run("init", "--no-scm", "--force").returncode == 0
    stage = {"cmd": "cp a b", "deps": ["a"], "outs": ["b"]}
    Path("dvc.yaml").write_text(json.dumps({"stages": {"copy": stage}}))
    Path("a").write_text("x")
    return run
