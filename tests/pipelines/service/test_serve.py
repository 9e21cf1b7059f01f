"""make serve where it cannot work, and make stop; that it works is tested in test_flows.py."""

import os
import socket
import subprocess
import sys

import psutil
import pytest

from pipelines.service import serve
from pipelines.service.commands import end
from pipelines.service.serve import SERVES
from tests.pipelines.service.toy import free_port, until
from umo.errors import BadInput, WorkFailed

SLEEPS = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def port(toy, monkeypatch: pytest.MonkeyPatch) -> int:
    port = free_port()
    monkeypatch.setenv("PORT", str(port))
    return port


@pytest.mark.parametrize("text", ["http", "80", "65535", "99999"])
def test_what_is_no_port_is_refused(toy, monkeypatch, text):
    monkeypatch.setenv("PORT", text)
    with pytest.raises(BadInput, match=f"PORT={text}"):
        serve.serve()


def test_a_taken_port_is_refused(port):
    with socket.create_server(("127.0.0.1", port)), pytest.raises(BadInput, match=f"port {port} is taken"):
        serve.serve()
    assert serve.alive() == {}


def test_no_repository_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="not the top of a git repository"):
        serve.serve()


def test_half_started_all_is_ended_and_the_log_is_named(port, monkeypatch):
    """The server sleeps and is taken for ready; the file server dies with a line."""
    dies = [sys.executable, "-c", "raise SystemExit('no room here')"]
    monkeypatch.setattr(serve, "_commands", lambda root, port: {"server": [*SLEEPS, "server"], "files": dies})
    monkeypatch.setattr(serve.api, "call", lambda *args, **options: True)
    ended = []
    monkeypatch.setattr(serve, "end", lambda pid: (ended.append(pid), end(pid)))
    with pytest.raises(WorkFailed, match=r"files did not start \(no room here\).*\.prefect/logs/files\.log"):
        serve.serve()
    assert len(ended) == 2
    assert serve.alive() == {}


@pytest.fixture
def sleeper(toy):
    """Starts a process that sleeps, as a service of this repository or as nobody's."""
    started = []

    def start(name: str, url: str = "", **environ: str) -> subprocess.Popen:
        environ = os.environ | {"PREFECT_API_URL": url} | environ
        started.append(subprocess.Popen([*SLEEPS, name], env=environ))
        until(lambda: psutil.Process(started[-1].pid).cmdline()[1:] == [*SLEEPS[1:], name], 10)
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_stop_ends_exactly_what_was_started(toy, sleeper):
    here = {SERVES: str(toy.path.resolve())}
    own, run = sleeper("server", **here), sleeper("a run whose worker was killed", **here)
    others = [sleeper("worker"), sleeper("worker", **{SERVES: "/another/repository"})]
    assert serve.stop() == "ended: server"
    assert [process.poll() is None for process in (own, run, *others)] == [False, False, True, True]
    assert serve.stop() == "nothing runs here"


def test_it_stays_with_the_port_that_it_has(toy, port, monkeypatch, sleeper):
    sleeper("server", url := f"http://127.0.0.1:{port + 7}/api", **{SERVES: str(toy.path.resolve())})
    said = f"runs already at {url.removesuffix('/api')}: make stop first, or leave PORT"
    with pytest.raises(BadInput, match=said):
        serve.serve()
    monkeypatch.delenv("PORT")
    monkeypatch.setattr(serve, "_start", lambda root, port, there, begun: began.append((port, list(there))))
    monkeypatch.setattr(serve.api, "report_killed", lambda *args: None)
    began: list[tuple] = []
    assert f":{port + 7} " in serve.serve()  # what has died of it is started again there
    assert began == [(port + 7, ["server"])]


def test_a_database_of_the_environment_is_passed_on(toy, monkeypatch):
    address = "postgresql+asyncpg://umo@localhost/prefect"
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", address)
    environ = serve.settings(toy.path, 4300)
    assert environ["PREFECT_SERVER_DATABASE_CONNECTION_URL"] == address
    assert environ["PREFECT_SERVER_UI_API_URL"] == environ["PREFECT_API_URL"] == "http://127.0.0.1:4300/api"
    assert environ["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"


def test_half_a_minute_lies_between_two_tries_unless_otherwise_set(toy, monkeypatch):
    delay = "PREFECT_TASKS_DEFAULT_RETRY_DELAY_SECONDS"
    assert serve.settings(toy.path, 4300)[delay] == "30"
    monkeypatch.setenv(delay, "5")
    assert serve.settings(toy.path, 4300)[delay] == "5"
