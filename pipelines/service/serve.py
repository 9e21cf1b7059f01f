"""`make serve`, `make stop`: Prefect's server, the file server and a worker on this machine, in the background.

What was started is known by its environment, so that exactly that is ended, whichever terminal is gone. Everything of
Prefect's is under `.prefect/` in the repository: database, logs.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from subprocess import DEVNULL, STDOUT
from urllib.parse import urlsplit

import psutil

from pipelines.core.locks import alone
from pipelines.service import api, repository
from pipelines.service.commands import end, environment, marked
from pipelines.service.files import LOOPBACK
from pipelines.service.links import FILES_URL
from umo.errors import BadInput, WorkFailed

HOME = Path(".prefect")
POOL, GPU, PORT = "umo", "gpu", 4200
SERVES = "UMO_SERVES"  # in the environment of all that was started: the repository
# What a service's command line says third or fourth, in the order in which they start.
SIGNS = {"server": "server", "files": "pipelines.service.files", "worker": "worker"}
STARTS_WITHIN = 180.0  # seconds for a server that makes its database first; 20 on a quiet machine
QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_MARKUP": "false",  # a path's brackets are none
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "PREFECT_CLI_PROMPT": "false",
}
UNLESS_SET = {
    "PREFECT_TASKS_DEFAULT_RETRY_DELAY_SECONDS": "30",
    "PREFECT_WORKER_QUERY_SECONDS": "3",  # a run that is asked for begins soon; 10 is the default
}


def serve(root: Path = Path()) -> str:
    """Start what does not run yet; returns where the UI is.

    The port is PORT in the environment, or else that of what runs, or else 4200.

    Raises:
        BadInput: no repository, a port that is none or is taken, or it runs already on another.
        WorkFailed: something did not start; all that was started is ended again.
    """
    repository.check(root)
    asked = os.environ.get("PORT")
    if asked and not (asked.isdigit() and 1024 <= int(asked) < 65535):
        raise BadInput(f"PORT={asked}: not a port; name one between 1024 and 65534")
    (root / HOME / "logs").mkdir(parents=True, exist_ok=True)
    with alone("serve", root / HOME / "serve.lock"):
        there = alive(root)
        urls = [process.environ()["PREFECT_API_URL"] for process in there.values()]
        known = urlsplit(urls[0]).port if urls else None
        port = int(asked) if asked else known or PORT
        if known and known != port:
            raise BadInput(f"it runs already at http://{LOOPBACK}:{known}: make stop first, or leave PORT out")
        if there.keys() == SIGNS.keys():
            return f"runs already: http://{LOOPBACK}:{port}"
        begun: list[int] = []
        try:
            _start(root, port, there, begun)
        except BaseException:
            for pid in reversed(begun):
                end(pid)
            raise
        api.report_killed(f"http://{LOOPBACK}:{port}/api", print, root)
    return f"the UI is at http://{LOOPBACK}:{port} (logs: {HOME / 'logs'}; to end it: make stop)"


def stop(root: Path = Path()) -> str:
    """End what `serve` started, the worker and its flows first; returns what was ended."""
    with alone("stop", root / HOME / "serve.lock"):
        there = alive(root)
        for process in [*reversed(there.values()), *marked(SERVES, str(root.resolve()))]:
            end(process.pid)
    return f"ended: {', '.join(reversed(there))}" if there else "nothing runs here"


def alive(root: Path = Path()) -> dict[str, psutil.Process]:
    """Name -> process of what `serve` started and still lives."""
    found: dict[str, psutil.Process] = {}
    for process in marked(SERVES, str(root.resolve())):
        with suppress(psutil.NoSuchProcess):
            words = process.cmdline()[2:4]
            found |= {name: process for name, sign in SIGNS.items() if sign in words}
    return {name: found[name] for name in SIGNS if name in found}


def _commands(root: Path, port: int) -> dict[str, list[str]]:
    """Name -> command. The file server's port is the one above the server's."""
    prefect = [sys.executable, "-m", "prefect"]
    return {
        "server": [*prefect, "server", "start", "--host", LOOPBACK, "--port", str(port)],
        "files": [sys.executable, "-m", "pipelines.service.files", str(port + 1), str(repository.cache(root))],
        "worker": [*prefect, "worker", "start", "--pool", POOL, "--type", "process", "--name", socket.gethostname()],
    }


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
        SERVES: str(root.resolve()),
    }
    return {"PREFECT_TASKS_DEFAULT_RETRY_DELAY_SECONDS": "30"} | environment() | QUIET | own


def _start(root: Path, port: int, there: dict[str, psutil.Process], begun: list[int]) -> None:
    for name, own in (("server", port), ("files", port + 1)):
        if name not in there and _listens(own):
            raise BadInput(f"port {own} is taken: end what listens there, or choose another with PORT=...")
    environ = settings(root, port)
    url = environ["PREFECT_API_URL"]
    ready: dict[str, Callable[[], object]] = {
        "server": lambda: api.call(url, "GET", "health", timeout=2),
        "files": lambda: _listens(port + 1),
        "worker": lambda: api.call(url, "GET", f"work_pools/{POOL}", timeout=2),
    }
    for name, command in _commands(root, port).items():
        if name in there:
            continue
        log = root / HOME / "logs" / f"{name}.log"
        with log.open("ab") as out:  # in a session of its own, for the terminal may go
            process = subprocess.Popen(
                command, cwd=root, env=environ, stdin=DEVNULL, stdout=out, stderr=STDOUT, start_new_session=True
            )
        begun.append(process.pid)
        _wait(name, process, ready[name], log)
    api.call(url, "POST", "concurrency_limits/", {"tag": GPU, "concurrency_limit": 1})
    _deploy(root, environ)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((LOOPBACK, port)) == 0


def _wait(name: str, process: subprocess.Popen, ready: Callable[[], object], log: Path) -> None:
    deadline = time.monotonic() + STARTS_WITHIN
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise WorkFailed(f"{name} did not start ({_last_line(log)}); all is ended again; its log: {log}")
        with suppress(OSError):
            if ready():
                return
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
