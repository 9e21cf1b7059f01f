"""One writer a workspace: who is refused, who waits, and what is left by the killed."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from pipelines.service import api, commands, writer
from pipelines.service.leftovers import DVC_LOCK
from pipelines.service.writer import Run
from tests.pipelines.service.toy import until
from umo.errors import WorkFailed

HOLD = """
import subprocess, sys, time
from pipelines.service import writer
with writer.writing(writer.Run("reproduce", "first")):
    if sys.argv[1:]:
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def hold(workspace: Path):
    """Start a process that writes in the workspace, or one with a child of its own that holds on."""
    started = []

    def start(*arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-c", HOLD, *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()


def me() -> Run:
    return Run("build_dataset", "second")


def test_a_second_is_refused_in_a_line(hold):
    first = hold()
    with (
        pytest.raises(WorkFailed, match=rf"the flow reproduce \(run first, process {first.pid}\) is at work") as error,
        writer.writing(me()),
    ):
        pass
    assert "\n" not in str(error.value)


def test_a_second_waits_and_says_so_once(hold):
    first, said = hold(), []

    def log(line: str) -> None:
        said.append(line)
        first.kill()

    with writer.writing(me(), 1, log):
        assert "run second" in writer.LOCK.read_text()
    assert len(said) == 1
    assert "waiting for at most 1 minutes" in said[0]


def test_a_killed_one_leaves_no_lock(hold):
    first = hold()
    first.kill()
    first.wait()
    with writer.writing(me()):
        pass


def test_what_a_killed_one_left_at_work_still_holds(hold):
    first = hold("with a child")
    first.kill()
    first.wait()
    with pytest.raises(WorkFailed, match="was killed, and the stage that it began is"), writer.writing(me()):
        pass


def test_a_dvc_command_by_hand_is_waited_for(workspace):
    (workspace / ".dvc/tmp").mkdir(parents=True)
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    process = subprocess.Popen(command)
    rwlock = workspace / ".dvc/tmp/rwlock"
    until(lambda: commands.psutil.Process(process.pid).cmdline() == command, 10)
    rwlock.write_text(json.dumps({"write": {"/x": {"pid": process.pid, "cmd": " ".join(command[1:])}}}))
    try:
        with pytest.raises(WorkFailed, match=f"process {process.pid}"), writer.writing(me()):
            pass
    finally:
        process.kill()
        process.wait()
    with writer.writing(me()):  # its entry is that of a dead process now
        assert "/x" not in rwlock.read_text()


def test_a_repository_that_dvc_has_locked_is_waited_for(workspace):
    from dvc.lock import Lock

    (workspace / ".dvc/tmp").mkdir(parents=True)
    lock, said = Lock(str(workspace / DVC_LOCK)), []
    lock.lock()
    with writer.writing(me(), 1, lambda line: (said.append(line), lock.unlock())):
        assert said == ["a DVC command is at work in this workspace: waiting for at most 1 minutes"]


def test_only_the_killed_stay_noted(workspace):
    with writer.noted(me()):
        assert writer.killed() == []
    assert list(writer.RUNS.iterdir()) == []
    note = writer.noted(gone := Run("reproduce", "third"))
    note.__enter__()
    assert writer.killed() == []
    writer.RUNS.joinpath("third.lock").unlink()  # as the kernel does when its process is killed
    assert writer.killed() == [gone]
    writer.settled(gone)
    assert writer.killed() == []
    note.gen.close()


def test_what_is_killed_stays_noted_while_no_server_can_be_told(workspace):
    writer.RUNS.mkdir(parents=True)
    (writer.RUNS / "third.json").write_text('{"flow": "reproduce", "run_id": "third", "pid": 1}')
    api.report_killed(None, print)
    assert [run.run_id for run in writer.killed()] == ["third"]


@pytest.mark.parametrize("command", ["forget", "release"])
def test_a_command_by_hand_is_refused_while_a_flow_is_at_work(hold, toy, command, monkeypatch):
    monkeypatch.chdir(toy.path)
    done = toy.run("python", "-m", "pipelines", command, *["1.0.0"][: command == "release"], check=False)
    assert "is at work in this workspace" not in done.stderr
    first = hold()
    done = toy.run("python", "-m", "pipelines", command, *["1.0.0"][: command == "release"], check=False)
    assert done.returncode == WorkFailed.exit_code
    said = f"{command}: the flow reproduce (run first, process {first.pid}) is at work in this workspace: wait for it"
    assert said in done.stderr


def test_a_flow_waits_for_a_command_by_hand(workspace, monkeypatch):
    with (
        writer.writing(Run("forget")),
        monkeypatch.context() as elsewhere,
        pytest.raises(WorkFailed, match=rf"forget \(process {os.getpid()}\) is at work"),
    ):
        elsewhere.delenv(writer.WRITES)  # a process of its own does not have it
        with writer.writing(me()):
            pass


def test_what_a_flow_starts_is_no_other(workspace, monkeypatch):
    script = "from pipelines.service.writer import Run, writing\nwith writing(Run('forget')): print('at work')"
    lines = []
    with writer.writing(me()):
        assert commands.follow([sys.executable, "-c", script], lines.append) == 0
        with monkeypatch.context() as elsewhere:
            elsewhere.delenv(writer.WRITES)  # somebody's in a terminal
            assert commands.follow([sys.executable, "-c", script], lines.append) != 0
    assert lines[0] == "at work"
    assert "is at work in this workspace: wait for it" in lines[-1]


def test_nothing_that_is_removed_lets_a_second_in(workspace, hold):
    """make clean-work, and a forget, which takes what it finds in .work."""
    hold()
    shutil.rmtree(workspace / ".work", ignore_errors=True)
    with pytest.raises(WorkFailed, match="is at work in this workspace"), writer.writing(me()):
        pass


def test_commands_end_with_all_that_they_began(workspace):
    """A cancelled flow leaves no stage at work."""
    script = (
        "import subprocess, sys, time; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); time.sleep(60)"
    )
    found = []

    def hear(line: str) -> None:
        found.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        commands.follow([sys.executable, "-c", script], hear)
    assert not commands.psutil.pid_exists(found[0])


@pytest.mark.parametrize(("every", "heard"), [(60, ["one", "two"]), (0, ["one", "draw: 50%|###  | 1/2", "two"])])
def test_of_a_progress_bar_a_line_is_heard_now_and_then(workspace, monkeypatch, every, heard):
    monkeypatch.setattr(commands, "PROGRESS_EVERY", every)
    lines = []
    script = "print('one'); print('draw: 50%|###  | 1/2'); print(); print('two'); raise SystemExit(3)"
    assert commands.follow([sys.executable, "-c", script], lines.append) == 3
    assert lines == heard
