"""A studio in a process of its own: it loads while the page's libraries do, and the page answers while it draws."""

import signal
import traceback
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, NamedTuple

from umo.devices import Precision
from umo.errors import BadInput, WorkFailed

ENDED = "the process that draws has ended, for want of memory perhaps: start umo demo again"


class Loading(NamedTuple):
    """What is loaded, as `umo demo` takes it; a photograph of more pixels is refused before it is decoded."""

    model: str
    lora: Path | None = None
    judge: str = "dlib"
    device: str = "cpu"
    dtype: Precision | None = None
    max_pixels: int = 50_000_000


class Known(NamedTuple):
    """What a page says of a studio; `names` are of the pictures that it draws from one seed, the base's first."""

    names: tuple[str, ...]
    max_references: int
    steps: int
    judge: str
    threshold: float
    licences: str


class Asked(NamedTuple):
    """One picture, that of the `rank`-th name."""

    photographs: tuple[Path, ...]
    prompt: str
    seed: int
    steps: int
    rank: int = 0


class Said(NamedTuple):
    """What comes of it: which part of the steps is done, what is doubtful, the picture as HTML or why there is none."""

    kind: Literal["done", "warning", "figure", "error"]
    value: Any


class Apart:
    """The process, as seen from the page's; it ends with that. One picture is drawn at a time."""

    def __init__(self, what: Loading) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, what), daemon=True)
        self.process.start()
        theirs.close()
        self._coming: Iterator[Said] = iter(())

    def known(self) -> Known:
        """Asked once, when it is loaded.

        Raises BadInput: what cannot be loaded, as `umo.serving.studio.open_studio`.
        """
        said = self._hear()
        if isinstance(said, Exception):
            raise said
        return said

    def draw(self, asked: Asked) -> Iterator[Said]:
        """As `Studio.draw` says it. Where somebody left an earlier answer, its end is waited for.

        Raises WorkFailed: the process has ended.
        """
        for _ in self._coming:
            pass
        try:
            self._pipe.send(asked)
        except OSError as error:
            raise WorkFailed(ENDED) from error
        self._coming = iter(self._hear, None)
        return self._coming

    def _hear(self) -> Any:
        try:
            return self._pipe.recv()
        except (EOFError, OSError) as error:
            raise WorkFailed(ENDED) from error


def _work(pipe: Connection, what: Loading) -> None:
    """Load, then draw what is asked for, None behind each answer, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the page's process ends this one
    from umo.serving.studio import open_studio

    try:
        studio, known = open_studio(what)
    except (BadInput, WorkFailed, OSError) as error:
        pipe.send(error)
        return
    pipe.send(known)
    while True:
        try:
            asked = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            studio.draw(asked, pipe.send)
        except (BadInput, WorkFailed) as error:
            pipe.send(Said("error", error))
        except Exception as error:  # a card without memory, say: the next may be smaller
            traceback.print_exc()
            pipe.send(Said("error", WorkFailed(f"{type(error).__name__}: {error}")))
        pipe.send(None)
