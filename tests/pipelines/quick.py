"""`dvc` without the second and a half that it takes to import itself: forked from a process that has.

A command's client hands its arguments, folder, environment and open files to that process, whose fork does the work and
dies with the client. Tests that kill DVC, and servers, start the real one.
"""

import atexit
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

CLIENT = """#!{python} -ISE
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect({address!r})
    socket.send_fds(connection, [b"."], [0, 1, 2])
    connection.sendall(json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode() + b"\\n")
    sys.exit(int(connection.makefile().readline() or 1))
"""


@cache
def dvc() -> str:
    """The command's path; the process behind it ends with this one."""
    folder = Path(tempfile.mkdtemp(prefix="umo-dvc-"))
    address, client = folder / "socket", folder / "dvc"
    client.write_text(CLIENT.format(python=sys.executable, address=str(address)))
    client.chmod(0o755)
    # Whoever looks for processes by their environment does not mean this one.
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("UMO_", "GIT_", "DVC_"))}
    server = subprocess.Popen([sys.executable, __file__, str(address)], env=environ, stdin=subprocess.DEVNULL)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(server.kill)
    while not address.exists():
        assert server.poll() is None, "the process that has DVC imported did not start"
        time.sleep(0.02)
    return str(client)


def serve(address: str) -> None:
    """Fork for every connection."""
    import dvc.cli.parser
    import dvc.repo
    import dvc.repo.experiments

    dvc.cli.parser.get_main_parser()
    parent = os.getppid()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{address}.new")
        listener.listen()
        Path(f"{address}.new").rename(address)
        listener.settimeout(5)
        while os.getppid() == parent:
            with suppress(TimeoutError):
                connection, _ = listener.accept()
                if not os.fork():
                    listener.close()
                    _work(connection)
                connection.close()


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
        from dvc.cli import main

        code = main(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
        stream.write(f"{code}\n")
        stream.flush()
    finally:
        os._exit(code)


def _end_with_client(connection: socket.socket) -> None:
    if not connection.recv(1):
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    serve(sys.argv[1])
