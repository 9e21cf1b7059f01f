"""What the service does with cases and pictures: judged one request at a time, in memory, and forgotten."""

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from umo.errors import BadInput, WorkFailed
from umo.evaluation.cases import Case, parse_case
from umo.evaluation.judges import Gallery, identity
from umo.evaluation.scoring import Scored, metrics_of, score_case
from umo.faces.base import FaceModel


@dataclass(frozen=True)
class Limits:
    """What one request may cost.

    Attributes:
        bytes: of its body.
        pixels: of a picture.
        pictures: how many it may bring.
        seconds: that its upload may take, and then its scoring.
        waiting: requests that may wait while another is scored; further ones are turned away.
    """

    bytes: int = 100_000_000
    pixels: int = 50_000_000
    pictures: int = 500
    seconds: float = 60.0
    waiting: int = 8


class Stopped(WorkFailed):
    """The client went away, or the time was over."""


class Uploaded(Gallery):
    """Pictures by the names that they were sent under; nothing is written anywhere."""

    def __init__(self, judge: FaceModel, pictures: Mapping[str, bytes], max_pixels: int) -> None:
        super().__init__(judge, Path(), max_pixels=max_pixels)
        self.pictures = pictures

    def source(self, path: str) -> bytes:
        return self.pictures[path]


class Scorer:
    """One judge and one thread: requests wait for each other."""

    def __init__(self, judge: FaceModel, limits: Limits) -> None:
        self.judge, self.limits = judge, limits
        self.identity = identity(judge)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="judge")

    def submit(
        self, cases: Sequence[Case], pictures: Mapping[str, bytes], gone: threading.Event
    ) -> Future[dict[str, Any]]:
        """`score`, when those before it are done."""
        return self._thread.submit(self.score, cases, pictures, gone)

    def score(self, cases: Sequence[Case], pictures: Mapping[str, bytes], gone: threading.Event) -> dict[str, Any]:
        """As metrics.json, with `scores`: a row a picture, as scores.parquet.

        Args:
            gone: set where nobody waits for the answer any more.

        Raises Stopped: `gone` is set, or the time is over; looked at before every case.
        """
        gallery = Uploaded(self.judge, pictures, self.limits.pixels)
        scored: list[Scored] = []
        end = time.monotonic() + self.limits.seconds
        for case in cases:
            if gone.is_set():
                raise Stopped("the client went away")
            if time.monotonic() > end:
                done = f"{len(scored)} of {len(cases)} cases"
                raise Stopped(f"{done} were scored in {self.limits.seconds:g} s: send fewer at once")
            scored.append(score_case(case, gallery))
        return metrics_of(cases, scored, gallery) | {"scores": [row for one in scored for row in one.rows]}


def read_request(text: str, pictures: Mapping[str, bytes]) -> list[Case]:
    """Cases, one JSON object a line, whose pictures were all sent.

    Raises BadInput: a line is no case, a case is there twice, a picture is missing, or one belongs to no case.
    """
    cases: dict[str, Case] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            case = parse_case(line)
        except ValueError as error:
            raise BadInput(f"cases, line {number}: {error}") from error
        if case.case_id in cases:
            raise BadInput(f"cases, line {number}: case_id {case.case_id!r} is already taken by an earlier line")
        cases[case.case_id] = case
    if not cases:
        raise BadInput("cases: holds no case; give one JSON object a line")
    named = {path: case.case_id for case in cases.values() for path in case.paths}
    if missing := [path for path in named if path not in pictures]:
        raise BadInput(f"case {named[missing[0]]}: {missing[0]!r} was not sent; send it under that name")
    if left := sorted(pictures.keys() - named.keys()):
        raise BadInput(f"{left[0]!r} belongs to no case; leave it out, or name it")
    return list(cases.values())
