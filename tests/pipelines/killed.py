"""Death at a chosen moment of publishing: of a child, truly, or in this process, which then clears nothing up."""

import os
import shutil
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.core import digests, publish
from umo import files

At = Callable[..., None]
SWAPS = ("link", "before the swap", "after the swap")


class Killed(BaseException):
    """Where it would have been killed."""


def in_child(moment: str, out: Path, act: Callable[[At], object]) -> int:
    """Do something in a process that kills itself without warning when it comes to a moment; its exit code.

    Args:
        out: the product whose publishing is watched.
        act: told what to call when it comes to other moments than those of publishing.
    """

    def at(where: str, here: bool = True) -> None:
        if moment == where and here:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        digests._open.clear()  # a connection does not outlive a fork
        try:
            _watch(setattr, at, out, moment.endswith("renames"))
            act(at)
            digests._close()
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def here(monkeypatch: pytest.MonkeyPatch, moment: str, out: Path, act: Callable[[], object]) -> None:
    """Do something in this process up to a moment of publishing a product."""
    with monkeypatch.context() as patch:

        def at(where: str, here: bool = True) -> None:
            if moment == where and here:
                for module, name in ((shutil, "rmtree"), (files, "remove")):
                    patch.setattr(module, name, lambda *arguments, **options: None)
                raise Killed

        _watch(patch.setattr, at, out, moment.endswith("renames"))
        with pytest.raises(Killed):
            act()


def _watch(patch: Callable, at: At, out: Path, by_renames: bool) -> None:
    """
    Args:
        by_renames: as where the system cannot swap two folders at one instant.
    """
    swap, replace, link = files._swap, Path.replace, publish.link
    beside = f".{out.name}.tmp"

    def watched_link(source: Path, target: Path) -> None:
        half_done = target.is_relative_to(out.with_name(beside)) and any(target.parent.iterdir())
        at("link", half_done)
        link(source, target)

    def watched_swap(new: Path, path: Path) -> None:
        at("before the swap", path == out)
        swap(new, path)
        at("after the swap", path == out)

    def watched_replace(path: Path, target: Path) -> Path:
        at("between the renames", path.name == beside)
        found = replace(path, target)
        at("after the renames", path.name == beside)
        return found

    patch(publish, "link", watched_link)
    patch(files, "_swap", watched_swap)
    if by_renames:
        patch(files.ctypes, "CDLL", lambda name: None)
        patch(Path, "replace", watched_replace)
