"""Long videos: shots, and of each shot a few sharp frames, in one pass that holds a handful of frames.

Every frame is decoded once. A small copy goes to the shot detector; `sample_fps` of them a second are candidates. A
shot's frames are chosen so: the sharpest candidate of every `min_spacing` seconds; of those, the sharpest first, none
nearer than `min_spacing` to one that is chosen already. Each choice rules out at most its two neighbours, so that the
3 * frames_per_shot - 2 sharpest are all that need be kept.
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import av
import numpy as np
from scenedetect.common import FrameTimecode
from scenedetect.detectors import AdaptiveDetector

from pipelines.ingest.readers.base import Container, Limits, Member, Video, reason
from pipelines.ingest.readers.film import CONVERT, Film
from umo.images import encode_jpeg
from umo.quality import sharpness


class Candidate(NamedTuple):
    """A frame that may be taken."""

    rank: int  # among the decoded frames
    time: float  # seconds from the start
    pts: int
    sharpness: float
    picture: np.ndarray  # (H, W, 3) uint8 RGB, upright, at most `max_side` long


@dataclass
class Shot:
    """A shot while it is being read: the best of its candidates."""

    number: int
    start: float
    params: Video
    _best: list[Candidate] = field(default_factory=list)
    _latest: Candidate | None = None

    def offer(self, candidate: Candidate) -> None:
        """Candidates come in order of time."""
        latest = self._latest
        if latest and self._slot(latest) == self._slot(candidate):
            self._latest = max(latest, candidate, key=_rank)
        else:
            self._settle()
            self._latest = candidate

    def frames(self) -> list[Candidate]:
        """Those taken, in order of time."""
        self._settle()
        chosen: list[Candidate] = []
        for one in self._best:
            if all(abs(one.time - other.time) >= self.params.min_spacing for other in chosen):
                chosen.append(one)
        return sorted(chosen[: self.params.frames_per_shot], key=lambda one: one.time)

    def _slot(self, candidate: Candidate) -> int:
        return math.floor((candidate.time - self.start) / self.params.min_spacing)

    def _settle(self) -> None:
        if self._latest:
            self._best = sorted([*self._best, self._latest], key=_rank, reverse=True)
            del self._best[3 * self.params.frames_per_shot - 2 :]
            self._latest = None


def _rank(candidate: Candidate) -> tuple[float, float]:
    return candidate.sharpness, -candidate.time


def read(container: Container, limits: Limits, params: Video) -> Iterator[Member]:
    """The chosen frames in order of time; what could not be read as one error at the end."""
    film = Film(container.file, limits)
    number = None
    try:
        for number, frame in _choose(film, params):
            yield Member(
                f"{container.path}#t={frame.time:.3f}",
                encode_jpeg(frame.picture),
                image_id=container.frame_id(frame.pts),
                clip=f"{container.path}#{number:04d}",
                time=frame.time,
            )
    except (av.FFmpegError, ValueError) as error:
        film.faults.append(f"a frame cannot be converted ({reason(error)}): {CONVERT}")
    if number is None and not film.faults:
        few = f"no shot in it lasts {params.min_shot_seconds:g} s"
        film.faults.append(f"{few}: take it out of the source, or lower ingest.video.min_shot_seconds")
    if film.faults:
        yield Member(container.path, error="; ".join(film.faults))


def _choose(film: Film, params: Video) -> Iterator[tuple[int, Candidate]]:
    """The frames of every shot with the shot's number.

    The detector tells of a cut a few frames late, and a candidate waits for so long.
    """
    detector = AdaptiveDetector(
        adaptive_threshold=params.min_cut_ratio, min_scene_len=0, min_content_val=params.min_cut_difference
    )
    lag = detector.event_buffer_length
    shot = Shot(0, 0.0, params)
    waiting: deque[Candidate] = deque()
    times: deque[float] = deque(maxlen=lag + 1)  # of the latest frames
    sampled = -1
    for index, (time, frame) in enumerate(film.frames()):
        times.append(time)
        if (sample := math.floor(time * params.sample_fps + 1e-6)) > sampled:
            sampled = sample
            picture = film.picture(frame)
            waiting.append(Candidate(index, time, frame.pts or 0, sharpness(picture), picture))
        for cut in detector.process_frame(FrameTimecode(index, fps=25.0), film.thumbnail(frame)):  # counts, no times
            while waiting and waiting[0].rank < cut.frame_num:
                shot.offer(waiting.popleft())
            start = times[cut.frame_num - index - 1]
            yield from _frames(shot, start)
            shot = Shot(shot.number + 1, start, params)
        while waiting and waiting[0].rank < index - lag:
            shot.offer(waiting.popleft())
    for candidate in waiting:
        shot.offer(candidate)
    if times:
        yield from _frames(shot, times[-1] + film.frame_seconds)


def _frames(shot: Shot, end: float) -> Iterator[tuple[int, Candidate]]:
    if end - shot.start >= shot.params.min_shot_seconds:
        yield from ((shot.number, frame) for frame in shot.frames())
