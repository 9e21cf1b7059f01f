"""Committing what a run made: dvc.lock and what git keeps of the stages' files, and nothing else.

The tombstones of a forget go with them: the stages that ran afterwards have read them.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from pipelines.core.tombstones import TOMBSTONES
from pipelines.service.overrides import LOCK_FILE
from pipelines.service.repository import changes, git
from umo.errors import BadInput


def refuse_other_changes(kept: Sequence[str], root: Path = Path()) -> None:
    """
    Raises:
        BadInput: files that would not be committed differ from the last commit, so that the commit would describe a
            run of something that is in none; or HEAD is on no branch.
    """
    _refuse_no_branch(root)
    others = [name for name in changes(root) if name not in {LOCK_FILE, str(TOMBSTONES), *kept}]
    if others:
        more = f" and {len(others) - 1} others" if others[1:] else ""
        raise BadInput(f"commit needs a clean tree, and {others[0]}{more} is not committed: commit or restore it")


def refuse_stale(stages: Sequence[str]) -> None:
    """
    Raises:
        BadInput: stages before the flow's own are not up to date, so that the commit would describe products of what
            is no more.
    """
    if stages:
        raise BadInput(f"commit needs the data up to date, and {', '.join(stages)} is not: run reproduce")


def commit(message: str, kept: Sequence[str], log: Callable[[str], None], root: Path = Path()) -> bool:
    """Commit those files where they differ; False where none does.

    Raises:
        BadInput: git refused, or HEAD is on no branch.
    """
    _refuse_no_branch(root)
    there = [name for name in (LOCK_FILE, str(TOMBSTONES), *kept) if (root / name).exists()]
    git("add", "--", *there, root=root)
    if not git("diff", "--cached", "--name-only", "--", *there, root=root):
        return False
    git("commit", "--quiet", "--message", message, "--only", "--", *there, root=root)
    log(f"committed {git('rev-parse', '--short=12', 'HEAD', root=root)}: {message}")
    return True


def _refuse_no_branch(root: Path) -> None:
    if not git("symbolic-ref", "--quiet", "HEAD", root=root, missing=""):
        raise BadInput("commit needs a branch, and HEAD is on none: git switch to one")
