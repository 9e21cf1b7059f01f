"""make serve where it cannot work, and make stop; that it works is tested in test_flows.py."""

import os
import socket
import subprocess
import sys

import psutil
import pytest

from pipelines.service import serve
from pipelines.service.serve import HOME, Note, Service
from pipelines.service.writer import birth
from tests.pipelines.service.toy import free_port
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
    assert Note.read(serve.Path()).alive() == {}


def test_no_repository_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="not the top of a git repository"):
        serve.serve()


def test_half_started_all_is_ended_and_the_log_is_named(port, monkeypatch):
    """The server sleeps and is taken for ready; the file server dies with a line."""
    dies = [sys.executable, "-c", "raise SystemExit('no room here')"]
    monkeypatch.setattr(serve, "_commands", lambda root, port: {"server": SLEEPS, "files": dies})
    monkeypatch.setattr(serve.api, "call", lambda *args, **options: True)
    started = []
    monkeypatch.setattr(serve, "Service", lambda *args: started.append(Service(*args)) or started[-1])
    with pytest.raises(WorkFailed, match=r"files did not start \(no room here\).*\.prefect/logs/files\.log"):
        serve.serve()
    assert [service.name for service in started] == ["server", "files"]
    assert not any(service.lives() for service in started)


def test_stop_ends_exactly_what_was_started(toy):
    (toy.path / HOME).mkdir()
    own, other = subprocess.Popen(SLEEPS), subprocess.Popen(SLEEPS)
    try:
        services = (
            Service("server", own.pid, birth(own.pid)),
            Service("worker", other.pid, birth(os.getpid())),  # the id is another's now
        )
        Note(4200, services).write(toy.path)
        assert serve.stop() == "ended: server"
        assert not psutil.pid_exists(own.pid)
        assert other.poll() is None
        assert serve.stop() == "nothing runs here"
    finally:
        for process in (own, other):
            process.kill()
            process.wait()


def test_it_stays_with_the_port_that_it_has(toy, port, monkeypatch):
    (toy.path / HOME).mkdir()
    process = subprocess.Popen(SLEEPS)
    try:
        Note(port + 7, (Service("server", process.pid, birth(process.pid)),)).write(toy.path)
        with pytest.raises(
            BadInput, match=f"runs already at http://127.0.0.1:{port + 7}: make stop first, or leave PORT"
        ):
            serve.serve()
        monkeypatch.delenv("PORT")
        monkeypatch.setattr(serve, "_start", lambda root, note, wanted, begun: began.append(note.port))
        monkeypatch.setattr(serve.api, "report_killed", lambda *args: None)
        began: list[int] = []
        assert f":{port + 7} " in serve.serve()  # what has died of it is started again there
        assert began == [port + 7]
    finally:
        process.kill()
        process.wait()


def test_a_database_of_the_environment_is_passed_on(toy, monkeypatch):
    address = "postgresql+asyncpg://umo@localhost/prefect"
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", address)
    environ = serve.settings(toy.path, 4300)
    assert environ["PREFECT_SERVER_DATABASE_CONNECTION_URL"] == address
    assert environ["PREFECT_SERVER_UI_API_URL"] == environ["PREFECT_API_URL"] == "http://127.0.0.1:4300/api"
    assert environ["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
