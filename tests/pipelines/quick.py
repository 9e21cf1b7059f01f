"""`dvc`, `python -m pipelines` and `umo` without the seconds in which they import their libraries.

A command's client hands its arguments, folder, environment and open files to a process that has imported them, whose
fork does the work and dies with the client. One such process serves all workers of the tests. Of this project's own
modules it keeps none: each fork loads those of its folder. Tests of servers, and of what is imported, start the real
ones.
"""

import atexit
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]
OURS = ("umo", "pipelines", "tests")
# With all that they import; then what these import in functions.
PRELOADED = (
    "dvc.api",
    "dvc.cachemgr",
    "dvc.data_cloud",
    "dvc.repo.experiments.queue.celery",
    "dvc.repo.plots",
    "dvc.utils.strictyaml",
    "dvc_studio_client.post_live_metrics",
    "dvc_task.app",
    "networkx",
    "ruamel.yaml",
    "s3fs",
    "great_expectations",
    "scipy.stats",
    "torch._dynamo",
    "diffusers.loaders.peft",
    "diffusers.models.autoencoders.autoencoder_asym_kl",
    "pipelines.validate.stage",
    "tests.umo.training.child",
)
CLIENT = """#!{python} -ISE
import json, os, socket, sys
arguments = {before!r} + sys.argv[1:]
if arguments[:1] == ["-u"]:
    del arguments[0]
if arguments[:1] not in (["dvc"], ["-m"], ["-c"]):
    os.execv({python!r}, [{python!r}, *arguments])
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect({address!r})
    socket.send_fds(connection, [b"."], [0, 1, 2])
    connection.sendall(json.dumps([arguments, os.getcwd(), dict(os.environ)]).encode() + b"\\n")
    code = connection.makefile().readline()
    if not code:  # it was killed
        os.kill(os.getpid(), 9)
    sys.exit(int(code))
"""


def dvc() -> str:
    """The command's path."""
    return str(programs() / "dvc")


def python() -> str:
    """The interpreter's path; of its options it knows `-m`, `-c` and `-u`, and leaves the rest to the real one."""
    return str(programs() / "python/python")


@cache
def programs() -> Path:
    """Where the clients are; `python` and `umo` in a folder of their own there."""
    workers = "PYTEST_XDIST_WORKER" in os.environ
    name = os.environ["PYTEST_XDIST_TESTRUNUID"] if workers else str(os.getpid())
    folder = Path(tempfile.gettempdir()) / f"umo-quick-{name}"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):
        if not (folder / "socket").exists():
            _start(folder, os.getppid() if workers else os.getpid())
    return folder


def _start(folder: Path, session: int) -> None:
    (folder / "python").mkdir()
    clients = {"dvc": ["dvc"], "python/python": [], "python/umo": ["-m", "umo.cli"]}
    for name, before in clients.items():
        address = str(folder / "socket")
        (folder / name).write_text(CLIENT.format(python=sys.executable, address=address, before=before))
        (folder / name).chmod(0o755)
    # Whoever looks for processes by their environment does not mean this one.
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("UMO_", "GIT_", "DVC_"))}
    server = subprocess.Popen(
        [sys.executable, __file__, str(folder), str(session)],
        env=environ | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    while not (folder / "socket").exists():
        assert server.poll() is None, "the process that has the libraries imported did not start"
        time.sleep(0.02)


def serve(folder: Path, session: int) -> None:
    """Fork for every connection, as long as the process `session` is there."""
    sys.path[0] = str(ROOT)
    for name in PRELOADED:
        import_module(name)
    import dvc.cli.parser

    dvc.cli.parser.get_main_parser()
    for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
        del sys.modules[name]
    del sys.path[0]
    sys.executable = str(folder / "python/python")  # of what a fork begins in turn
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket.new"))
        listener.listen()
        (folder / "socket.new").rename(folder / "socket")
        listener.settimeout(1)
        while Path(f"/proc/{session}").exists():
            with suppress(TimeoutError):
                connection, _ = listener.accept()
                if not os.fork():
                    listener.close()
                    _work(connection)
                connection.close()
    shutil.rmtree(folder)


def _work(connection: socket.socket) -> None:
    code = 1
    try:
        connection.settimeout(None)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _, files, _, _ = socket.recv_fds(connection, 1, 3)
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        stream = connection.makefile("rw")
        arguments, folder, environ = json.loads(stream.readline())
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environ)
        threading.Thread(target=_end_with_client, args=(connection,), daemon=True).start()
        code = _run(*arguments)
        sys.stdout.flush()
        sys.stderr.flush()
        stream.write(f"{code}\n")
        stream.flush()
    finally:
        os._exit(code)


def _run(kind: str, *arguments: str) -> int:
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    sys.path[:0] = [str(Path.cwd()), *filter(None, os.environ.get("PYTHONPATH", "").split(":"))]
    sys.argv = [kind, *arguments[1:]]
    try:
        if kind == "dvc":
            from dvc.cli import main

            return main(list(arguments))
        if kind == "-c":
            exec(compile(arguments[0], "<string>", "exec"), {"__name__": "__main__"})
        else:
            runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    return 0


def _end_with_client(connection: socket.socket) -> None:
    if not connection.recv(1):
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
