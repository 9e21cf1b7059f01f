"""The workspace as git and DVC see it: is it one, what is changed, which version is it; and committing what a run made.

That is dvc.lock and what git keeps of the stages' files, and nothing else, but for the tombstones of a forget: the
stages that ran afterwards have read them.
"""

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from pipelines.core.tombstones import TOMBSTONES
from pipelines.service.commands import ask, environment
from umo.errors import BadInput

LOCK = Path("dvc.lock")
NOTE = Path(".work/forget.json")  # what a forget has set out to do; while it is there, nothing is given out
COPY = "Destination"  # in a release's tag: where a copy was laid down


def check(root: Path = Path()) -> None:
    """Raise BadInput where the folder is not the top of a git repository with DVC in it."""
    top = git("rev-parse", "--show-toplevel", root=root, missing="")
    if not top or Path(top).resolve() != root.resolve():
        raise BadInput(f"{root.resolve()} is not the top of a git repository: clone the project, and run there")
    if not (root / ".dvc").is_dir() or not (root / "dvc.yaml").is_file():
        where = f"{root.resolve()} is not a DVC repository (no .dvc, no dvc.yaml)"
        raise BadInput(f"{where}: clone the project, and run there")


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
    """What a git command prints, without the line's end; where it fails `missing`, or BadInput with what it said."""
    environ = environment() if {"commit", "stash"} & set(arguments) else None  # those have an author
    errors = "surrogateescape"  # names of files are bytes
    command = ["git", *arguments]
    done = subprocess.run(command, cwd=root, env=environ, capture_output=True, errors=errors, check=False)
    if not done.returncode:
        return done.stdout.rstrip("\n")
    if missing is None:
        raise BadInput(f"git {' '.join(arguments)}: {(done.stderr or done.stdout).strip()}")
    return missing


def refuse_other_changes(kept: Sequence[str], root: Path = Path()) -> None:
    """Raise BadInput where files that would not be committed differ from the last commit, so that the commit would
    describe a run of something that is in none, or where HEAD is on no branch.
    """
    _refuse_no_branch(root)
    others = [name for name in changes(root) if name not in {str(LOCK), str(TOMBSTONES), *kept}]
    if others:
        more = f" and {len(others) - 1} others" if others[1:] else ""
        raise BadInput(f"commit needs a clean tree, and {others[0]}{more} is not committed: commit or restore it")


def commit(message: str, kept: Sequence[str], log: Callable[[str], None], root: Path = Path()) -> bool:
    """Commit those files where they differ; False where none does. BadInput where git refuses or HEAD has no branch."""
    _refuse_no_branch(root)
    there = [name for name in (str(LOCK), str(TOMBSTONES), *kept) if (root / name).exists()]
    git("add", "--", *there, root=root)
    if not git("diff", "--cached", "--name-only", "--", *there, root=root):
        return False
    git("commit", "--quiet", "--message", message, "--only", "--", *there, root=root)
    log(f"committed {git('rev-parse', '--short=12', 'HEAD', root=root)}: {message}")
    return True


def _refuse_no_branch(root: Path) -> None:
    if not git("symbolic-ref", "--quiet", "HEAD", root=root, missing=""):
        raise BadInput("commit needs a branch, and HEAD is on none: git switch to one")
