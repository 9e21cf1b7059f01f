"""Commands run beside this process, whose lines are heard as they come and which do not outlive their reader."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT

import psutil

from umo.errors import BadInput, WorkFailed

PATIENCE = 10.0  # seconds between asking a process to end and ending it
PROGRESS_EVERY = 30.0  # seconds between two lines of a progress bar that are heard
IDENTITY = {"NAME": "umo flows", "EMAIL": "flows@localhost"}


def dvc(*arguments: str) -> list[str]:
    """A DVC command, by the interpreter that runs this."""
    return [sys.executable, "-m", "dvc", *arguments]


def ask(*arguments: str, root: Path = Path()) -> str:
    """What a DVC command prints; BadInput with what it said where it fails, WorkFailed where another holds the
    repository.
    """
    command = dvc(*arguments)
    done = subprocess.run(command, cwd=root, env=environment(), capture_output=True, errors="replace", check=False)
    if done.returncode:
        why = done.stderr.partition("ERROR: ")[2] or done.stderr
        if "Unable to acquire lock" in why:
            raise WorkFailed("another DVC command is at work here: wait for it")
        raise BadInput(f"{root.resolve()}: {' '.join(why.split())}")
    return done.stdout


def environment() -> dict[str, str]:
    """The interpreter that runs this comes first; commits have an author where git knows none."""
    found = dict(os.environ)
    found["PATH"] = f"{Path(sys.executable).parent}:{found.get('PATH', os.defpath)}"
    for key, value in IDENTITY.items():
        if subprocess.run(["git", "config", f"user.{key.lower()}"], capture_output=True, check=False).returncode:
            found = {f"GIT_AUTHOR_{key}": value, f"GIT_COMMITTER_{key}": value} | found
    return found


def follow(command: Sequence[str], hear: Callable[[str], None], root: Path = Path()) -> int:
    """Run a command; its lines go to `hear`, those of progress bars now and then. Returns its exit code.

    It stays in this process's group, so that who kills the group kills it too. Where hearing is interrupted, it and
    all that it started are ended.
    """
    process = subprocess.Popen(
        command, cwd=root, env=environment(), stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, text=True, errors="replace"
    )
    assert process.stdout is not None
    heard = time.monotonic()
    try:
        for line in process.stdout:
            text = line.rstrip()
            progress = "%|" in text or "it/s]" in text
            if text and (not progress or time.monotonic() - heard >= PROGRESS_EVERY):
                heard = time.monotonic()
                hear(text)
        return process.wait()
    except BaseException:
        end(process.pid)
        raise
    finally:
        process.stdout.close()


def reason(said: Sequence[str]) -> str:
    """Why a command of DVC's failed, by what it said: its last error, or its last line; empty where it said nothing."""
    errors = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR: ")]
    return (errors or list(said) or [""])[-1]


def marked(name: str, value: str) -> list[psutil.Process]:
    """Processes that were started with a variable of the environment at this value; neither this one nor daemons."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(name) == value and "daemon" not in process.cmdline():
                found.append(process)
    return [process for process in found if process.pid != os.getpid()]


def end(pid: int) -> None:
    """End a process and all that it started: first in words, and what is left after ten seconds by force."""
    try:
        parent = psutil.Process(pid)
        family = [*parent.children(recursive=True), parent]
    except psutil.NoSuchProcess:
        return
    for signal in ("terminate", "kill"):
        for process in family:
            with suppress(psutil.NoSuchProcess):
                getattr(process, signal)()
        _, family = psutil.wait_procs(family, timeout=PATIENCE)
