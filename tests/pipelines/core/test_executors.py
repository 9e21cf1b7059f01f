"""Several processes: nothing lost, nothing doubled, whoever dies."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from pipelines.core import executors, shards
from pipelines.core.executors import Machine
from pipelines.core.shards import Shard, run
from tests.pipelines.core import shard_work
from tests.pipelines.core.shard_work import ERRORS, WHOLE, go, published, told_by_workers
from umo.errors import BadInput, WorkFailed

TWO = Machine(executor="process", workers=2)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_killed_worker_costs_a_retry_of_its_shard(capfd):
    assert go(shard_work.die_once, TWO).made == {"letters": 6}
    assert Path("died").exists() and published() == WHOLE
    lines = [line for line in capfd.readouterr().err.replace("\r", "\n").splitlines() if "died" in line]
    assert len(lines) == 1 and lines[0].startswith("ingest: a worker died; ")
    # The other worker may have been at most at one shard when its pool was ended.
    assert len(shard_work.done()) <= 7
    assert not list(shards.WORK.rglob("half.txt"))


@pytest.mark.parametrize("alone", [60.0, 0.0])
def test_light_work_starts_no_process_unless_it_takes_long(alone, monkeypatch):
    started = []
    monkeypatch.setattr(executors, "ALONE", alone)
    monkeypatch.setattr(executors, "_pool", lambda do, jobs, workers: started.append(list(jobs)) or iter(list(jobs)))
    done: list[str] = []
    executors.do_all("ingest", done.append, {name: name for name in "abc"}, TWO, light=True)
    assert (done, started) == ((["a", "b", "c"], []) if alone else (done, [list("abc")[len(done) :]]))
    assert len(done) + sum(map(len, started)) == 3


@pytest.mark.parametrize("took, in_processes", [(0.1, []), (100.0, list("abd"))])
def test_what_took_a_moment_before_starts_no_process(took, in_processes, monkeypatch):
    def in_a_pool(do, jobs, _):
        for name in list(jobs):
            executors._one(do, name, jobs[name])
            started.append(name)
            yield name

    def go_with(names: str, **versions: str) -> None:
        pieces = [Shard(name, {"x": versions.get(name, "1")}) for name in names]
        run("ingest", shard_work.letter, pieces, Path("out"), params=shard_work.Knob(), machine=TWO)

    started: list[str] = []
    monkeypatch.setattr(executors, "_pool", in_a_pool)
    go_with("abc")
    assert started == list("abc"), "who knows how long they take?"
    for path in shards.WORK.rglob(shards.MARKER):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": took}))
    started.clear()
    go_with("abcd", a="2", b="2")
    assert started == in_processes and shard_work.done() == list("abcabd")


def test_threads_work_beside_each_other():
    meeting = threading.Barrier(2, timeout=30)
    executors.do_all("x", lambda _: meeting.wait(), dict.fromkeys("abcd"), Machine(), threads=2)


def test_a_failure_in_a_thread_ends_the_work():
    done: list[int] = []

    def work(k: int) -> None:
        if k == 1:
            raise BadInput("one")
        done.append(k)
        time.sleep(0.01)

    with pytest.raises(BadInput, match="one"):
        executors.do_all("x", work, {str(k): k for k in range(500)}, Machine(), threads=2)
    assert len(done) < 400, "what had not begun is left"


def test_a_shard_that_kills_every_worker_is_given_up_and_the_others_are_kept(monkeypatch):
    monkeypatch.setattr(executors, "RETRIES", 2)
    with pytest.raises(WorkFailed, match=r"^ingest: a worker died 3 times at the same work: [^\n]*is kept$"):
        go(shard_work.always_die, TWO)
    assert not Path("out").exists()
    assert {path.read_text()[0] for path in shards.WORK.rglob("letter.txt")} == set("abdef")


@pytest.mark.parametrize("workers", [2, 3, 4, 6, 8])
def test_what_kills_its_pool_keeps_no_other_from_being_done(workers, monkeypatch):
    """In the worst order, which real processes meet only now and then: whatever is begun beside c dies with it."""
    finished = []

    def pool(do, jobs, at_once):
        names = list(jobs)
        for start in range(0, len(names), at_once):
            begun = names[start : start + at_once]
            if "c" in begun:
                raise BrokenProcessPool
            for name in begun:
                finished.append(name)
                yield name

    monkeypatch.setattr(executors, "_pool", pool)
    with pytest.raises(WorkFailed, match=r"^x: a worker died 4 times at the same work: "):
        executors.do_all("x", print, dict.fromkeys("abcdef"), Machine(executor="process", workers=workers))
    assert sorted(finished) == list("abdef")


@pytest.mark.parametrize(("names", "error", "line"), ERRORS)
def test_an_error_is_one_line_and_is_not_tried_again(names, error, line):
    with pytest.raises(error) as raised:
        go(shard_work.fail, TWO, names)
    assert str(raised.value) == line


def test_workers_share_the_cores_and_load_a_network_once(tmp_path):
    go(shard_work.describe_worker, TWO, "abcd")
    told = told_by_workers()
    assert len({(one["process"], one["network"]) for one in told}) == len({one["process"] for one in told})
    assert {one["folder"] for one in told} == {str(tmp_path)}


def test_workers_end_with_a_parent_that_is_killed():
    script = (
        "import sys, time; from pathlib import Path\n"
        "from pipelines.core.executors import Machine, do_all\n"
        "if __name__ == '__main__':\n"
        "    do_all('x', eval, {k: f\"open('{k}', 'w').write(str(__import__('os').getpid())) and"
        " __import__('time').sleep(60)\" for k in 'ab'}, Machine(executor='process', workers=2))\n"
    )
    Path("script.py").write_text(script)
    environment = os.environ | {"PYTHONPATH": str(shards.ROOT)}
    parent = subprocess.Popen([sys.executable, "script.py"], env=environment, stderr=subprocess.DEVNULL)
    wait_for(lambda: all(Path(name).exists() and Path(name).read_text() for name in "ab"))
    workers = [int(Path(name).read_text()) for name in "ab"]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_for(lambda: not any(alive(worker) for worker in workers))


def alive(process: int) -> bool:
    """Whether it runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # gone, or just going
        return False


def wait_for(happened, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)
