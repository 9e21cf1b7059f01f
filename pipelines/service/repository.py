"""The workspace as git and DVC see it: is it one, what is changed, which version is it."""

import subprocess
from pathlib import Path

from pipelines.service.commands import ask, environment
from umo.errors import BadInput

LOCK = Path("dvc.lock")
NOTE = Path(".work/forget.json")  # what a forget has set out to do; while it is there, nothing is given out
COPY = "Destination"  # in a release's tag: where a copy was laid down


def check(root: Path = Path()) -> None:
    """
    Raises:
        BadInput: the folder is not the top of a git repository with DVC in it.
    """
    top = git("rev-parse", "--show-toplevel", root=root, missing="")
    if not top or Path(top).resolve() != root.resolve():
        raise BadInput(f"{root.resolve()} is not the top of a git repository: clone the project, and run there")
    if not (root / ".dvc").is_dir() or not (root / "dvc.yaml").is_file():
        raise BadInput(
            f"{root.resolve()} is not a DVC repository (no .dvc, no dvc.yaml): clone the project, and run there"
        )


def changes(root: Path = Path()) -> list[str]:
    """Files that git keeps and that differ from the last commit, by path; files that git does not know are left out."""
    lines = git("status", "--porcelain", "--untracked-files=no", "-z", root=root).split("\0")
    return sorted(line[3:] for line in lines if line)


def revision(root: Path = Path()) -> str:
    """The commit, in short; with `-dirty` where files differ from it."""
    return git("rev-parse", "--short=12", "HEAD", root=root) + ("-dirty" if changes(root) else "")


def cache(root: Path = Path()) -> Path:
    """DVC's, which may lie elsewhere."""
    return root.resolve() / ask("cache", "dir", root=root).strip()


def git(*arguments: str, root: Path = Path(), missing: str | None = None) -> str:
    """What a git command prints, without the line's end.

    Args:
        missing: given back where git fails; None: the failure is raised.

    Raises:
        BadInput: git failed; says what it said.
    """
    environ = environment() if {"commit", "stash"} & set(arguments) else None  # those have an author
    done = subprocess.run(["git", *arguments], cwd=root, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        if missing is not None:
            return missing
        raise BadInput(f"git {' '.join(arguments)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout.rstrip("\n")
