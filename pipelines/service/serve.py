"""`make serve`, `make stop`: Prefect's server, the file server and a worker on this machine, in the background.

What was started is noted with its process id and start time, so that exactly that is ended, whichever terminal is
gone. Everything of Prefect's is under `.prefect/` in the repository: database, logs, this note.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from pipelines.core.locks import alone
from pipelines.service import api, repository
from pipelines.service.commands import end, environment
from pipelines.service.files import LOOPBACK
from pipelines.service.links import FILES_URL
from pipelines.service.writer import birth, lives
from umo.errors import BadInput, WorkFailed
from umo.files import write_text

HOME = Path(".prefect")
POOL, GPU = "umo", "gpu"
PORT = 4200
STARTS_WITHIN = 180.0  # seconds for a server that makes its database first; 20 on a quiet machine
QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "PREFECT_CLI_PROMPT": "false",
    "PREFECT_WORKER_QUERY_SECONDS": "3",  # a run that is asked for begins soon; 10 is the default
}


@dataclass(frozen=True)
class Service:
    """A process that was started; `started` tells it from a later one with the same id."""

    name: str
    pid: int
    started: str

    def lives(self) -> bool:
        """Whether it is still there."""
        return lives(self.pid, self.started)


@dataclass(frozen=True)
class Note:
    """What runs; the file server's port is the one above the server's."""

    port: int
    services: tuple[Service, ...] = ()

    @property
    def ui(self) -> str:
        """Where people look."""
        return f"http://{LOOPBACK}:{self.port}"

    @staticmethod
    def read(root: Path) -> "Note | None":
        """None where nothing was started."""
        try:
            found = json.loads((root / HOME / "serve.json").read_text())
            return Note(found["port"], tuple(Service(**service) for service in found["services"]))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def write(self, root: Path) -> None:
        """Replace it whole."""
        write_text(root / HOME / "serve.json", json.dumps(asdict(self)))

    def alive(self) -> dict[str, Service]:
        """By name."""
        return {service.name: service for service in self.services if service.lives()}


def serve(root: Path = Path()) -> str:
    """Start what does not run yet; returns where the UI is.

    The port is PORT in the environment, or else that of what runs, or else 4200.

    Raises:
        BadInput: no repository, a port that is none or is taken, or it runs already on another.
        WorkFailed: something did not start; all that was started is ended again.
    """
    repository.check(root)
    asked = _asked_port()
    (root / HOME / "logs").mkdir(parents=True, exist_ok=True)
    with alone("serve", root / HOME / "serve.lock"):
        note = Note.read(root) or Note(PORT)
        there = note.alive()
        port = asked or (note.port if there else PORT)
        if there and note.port != port:
            raise BadInput(f"it runs already at {note.ui}: make stop first, or leave PORT out")
        wanted = _commands(root, port)
        if there.keys() == wanted.keys():
            return f"runs already: {note.ui}"
        begun: list[Service] = []
        try:
            _start(root, Note(port, tuple(there.values())), wanted, begun)
        except BaseException:
            for service in reversed(begun):
                end(service.pid)
            Note(port, tuple(there.values())).write(root)
            raise
        api.report_killed(f"http://{LOOPBACK}:{port}/api", print, root)
    return f"the UI is at http://{LOOPBACK}:{port} (logs: {HOME / 'logs'}; to end it: make stop)"


def stop(root: Path = Path()) -> str:
    """End what `serve` started, the worker and its flows first; returns what was ended."""
    (root / HOME).mkdir(exist_ok=True)
    with alone("stop", root / HOME / "serve.lock"):
        note = Note.read(root)
        there = list(note.alive().values()) if note else []
        for service in reversed(there):
            end(service.pid)
        (root / HOME / "serve.json").unlink(missing_ok=True)
    return f"ended: {', '.join(service.name for service in there)}" if there else "nothing runs here"


def _asked_port() -> int | None:
    """PORT in the environment; None where it says nothing."""
    text = os.environ.get("PORT")
    if not text:
        return None
    if not text.isdigit() or not 1024 <= int(text) < 65535:
        raise BadInput(f"PORT={text}: not a port; name one between 1024 and 65534")
    return int(text)


def _commands(root: Path, port: int) -> dict[str, list[str]]:
    """Name -> command, in the order in which they start."""
    prefect = [sys.executable, "-m", "prefect"]
    return {
        "server": [*prefect, "server", "start", "--host", LOOPBACK, "--port", str(port)],
        "files": [sys.executable, "-m", "pipelines.service.files", str(port + 1), str(_cache(root))],
        "worker": [*prefect, "worker", "start", "--pool", POOL, "--type", "process", "--name", socket.gethostname()],
    }


def _cache(root: Path) -> Path:
    """DVC's, which may lie elsewhere."""
    from dvc.config import Config

    found = Config(str((root / ".dvc").resolve()), validate=False).get("cache", {}).get("dir")
    return (root / ".dvc" / found).resolve() if found else (root / ".dvc/cache").resolve()


def settings(root: Path, port: int) -> dict[str, str]:
    """The environment of all of them. A database named in the environment (Postgres) stays named."""
    url = f"http://{LOOPBACK}:{port}/api"
    own = {
        "PREFECT_HOME": str((root / HOME).resolve()),
        "PREFECT_API_URL": url,
        "PREFECT_SERVER_UI_API_URL": url,  # without it the UI is blank on another port than 4200
        # Only its own pages may ask the server: another that is open in the browser must not start a flow.
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://{LOOPBACK}:{port},http://localhost:{port}",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(root.resolve()), os.environ.get("PYTHONPATH")])),
        FILES_URL: f"http://{LOOPBACK}:{port + 1}",
    }
    return environment() | QUIET | own


def _start(root: Path, there: Note, wanted: dict[str, list[str]], begun: list[Service]) -> None:
    names = there.alive()
    _refuse_taken([port for name, port in (("server", there.port), ("files", there.port + 1)) if name not in names])
    environ = settings(root, there.port)
    url = environ["PREFECT_API_URL"]
    ready: dict[str, Callable[[], object]] = {
        "server": lambda: api.call(url, "GET", "health", timeout=2),
        "files": lambda: _listens(there.port + 1),
        "worker": lambda: api.call(url, "GET", f"work_pools/{POOL}", timeout=2),
    }
    for name, command in wanted.items():
        if name in names:
            continue
        log = root / HOME / "logs" / f"{name}.log"
        with log.open("ab") as out:
            process = subprocess.Popen(
                command,
                cwd=root,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # the terminal may go
            )
        begun.append(Service(name, process.pid, birth(process.pid)))
        Note(there.port, (*there.services, *begun)).write(root)
        _wait(name, process, ready[name], log)
    api.call(url, "POST", "concurrency_limits/", {"tag": GPU, "concurrency_limit": 1})
    _deploy(root, environ)


def _refuse_taken(ports: list[int]) -> None:
    for port in ports:
        if _listens(port):
            raise BadInput(f"port {port} is taken: end what listens there, or choose another with PORT=...")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((LOOPBACK, port)) == 0


def _wait(name: str, process: subprocess.Popen, ready: Callable[[], object], log: Path) -> None:
    deadline = time.monotonic() + STARTS_WITHIN
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise WorkFailed(f"{name} did not start ({_last_line(log)}); all is ended again; its log: {log}")
        try:
            if ready():
                return
        except OSError:
            pass
        time.sleep(0.3)
    raise WorkFailed(f"{name} does not answer after {STARTS_WITHIN:.0f} s; all is ended again; its log: {log}")


def _deploy(root: Path, environ: dict[str, str]) -> None:
    """The deployments and schedules of prefect.yaml; those that are there are brought up to date."""
    log = root / HOME / "logs" / "deploy.log"
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True, check=False)
    log.write_text(done.stdout + done.stderr)
    if done.returncode:
        raise WorkFailed(f"prefect deploy failed ({_last_line(log)}); all is ended again; its log: {log}")


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip(" ╭╮╰╯─│")]
    return lines[-1].strip("│ ") if lines else "it said nothing"
