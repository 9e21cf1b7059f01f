"""`python -m pipelines` for DVC in a process that has its libraries loaded: this one.

Loading torch, diffusers, transformers and peft takes some ten seconds, and `dvc repro` begins thirty stages. Tests
that kill a stage, or change its code, start it as DVC does.
"""

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from unittest import mock

from pipelines.__main__ import main

# The `python` of that command: what is not a stage is left to the interpreter.
CLIENT = """#!/bin/sh
exec {python} -ISE -c '
import json, os, socket, sys
python, address, arguments = sys.argv[1], sys.argv[2], sys.argv[3:]
if arguments[:2] != ["-m", "pipelines"]:
    os.execv(python, [python, *arguments])
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(address)
    asked = [arguments[2:], os.getcwd(), {{key: value for key, value in os.environ.items() if key[:4] == "DVC_"}}]
    connection.sendall(json.dumps(asked).encode() + b"\\n")
    code, out, err = json.loads(connection.makefile().readline())
print(out, end="")
print(err, end="", file=sys.stderr)
sys.exit(code)
' {python} {address} "$@"
"""


def run(command: Sequence[str], path: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """The command in a folder; the stages that it begins are run here, one after another."""
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.socket(socket.AF_UNIX) as listener,
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as err,
    ):
        address, client = Path(folder) / "socket", Path(folder) / "python"
        client.write_text(CLIENT.format(python=sys.executable, address=address))
        client.chmod(0o755)
        listener.bind(str(address))
        listener.listen()
        listener.settimeout(0.1)
        found = {**environment, "PATH": f"{folder}:{environment['PATH']}"}
        process = subprocess.Popen(command, cwd=path, env=found, stdout=out, stderr=err, text=True)
        while process.poll() is None:
            with contextlib.suppress(TimeoutError):
                connection, _ = listener.accept()
                with connection, connection.makefile("rw") as stream:
                    stream.write(json.dumps(stage(*json.loads(stream.readline()))) + "\n")
        for file in (out, err):
            file.seek(0)
        return subprocess.CompletedProcess(command, process.returncode, out.read(), err.read())


def stage(
    arguments: Sequence[str], where: Path | str, variables: Mapping[str, str] = MappingProxyType({})
) -> tuple[int, str, str]:
    """`python -m pipelines ...` in a folder: its exit code, and what it wrote to stdout and stderr."""
    out, err, here = io.StringIO(), io.StringIO(), Path.cwd()
    os.chdir(where)
    try:
        with mock.patch.dict(os.environ, variables), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main(list(arguments))
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else 1
    finally:
        os.chdir(here)
    return code, out.getvalue(), err.getvalue()
