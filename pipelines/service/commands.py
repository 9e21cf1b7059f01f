"""Commands run beside this process, whose lines are heard as they come and which do not outlive their reader."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

PATIENCE = 10.0  # seconds between asking a process to end and ending it
HANDED = "UMO_WRITER"  # in the environment of a command: the number of the open file that it was handed
IDENTITY = {"NAME": "umo flows", "EMAIL": "flows@localhost"}


def dvc(*arguments: str) -> list[str]:
    """A DVC command, by the interpreter that runs this."""
    return [sys.executable, "-m", "dvc", *arguments]


def environment() -> dict[str, str]:
    """The interpreter that runs this comes first; commits have an author where git knows none."""
    found = dict(os.environ)
    found["PATH"] = f"{Path(sys.executable).parent}:{found.get('PATH', os.defpath)}"
    for who in ("AUTHOR", "COMMITTER"):
        for key, value in IDENTITY.items():
            if not _git_knows(f"user.{key.lower()}"):
                found.setdefault(f"GIT_{who}_{key}", value)
    return found


def author() -> list[str]:
    """Options for git, so that a commit has an author where git knows none."""
    options = [
        f"user.{key.lower()}={value}" for key, value in IDENTITY.items() if not _git_knows(f"user.{key.lower()}")
    ]
    return [word for option in options for word in ("-c", option)]


def _git_knows(key: str) -> bool:
    return subprocess.run(["git", "config", key], capture_output=True, check=False).returncode == 0


def follow(command: Sequence[str], hear: Callable[[str], None], root: Path = Path(), hold: Iterable[int] = ()) -> int:
    """Run a command; every line that it writes, progress bars excepted, goes to `hear`. Returns its exit code.

    It stays in this process's group, so that who kills the group kills it too. Where hearing is interrupted, it and
    all that it started are ended.

    Args:
        hold: open files that the command holds too; the first is the writer's lock.
    """
    held = tuple(hold)
    process = subprocess.Popen(
        command,
        cwd=root,
        env=environment() | ({HANDED: str(held[0])} if held else {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        pass_fds=held,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            text = line.rstrip()
            if text and not _is_progress(text):
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


def _is_progress(line: str) -> bool:
    return "%|" in line or "it/s]" in line


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
