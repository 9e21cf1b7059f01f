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
from av.video.reformatter import Colorspace, Interpolation
from scenedetect.common import FrameTimecode
from scenedetect.detectors import AdaptiveDetector

from pipelines.ingest.readers.base import Container, Limits, Member, Video, reason
from umo.images import MIN_SIDE, encode_jpeg
from umo.quality import sharpness

# A playlist under a video's name would make the library open other files of this machine.
FORMATS = "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg"
DETECTOR_WIDTH = 256
HD_HEIGHT = 720
COLORSPACE_UNSPECIFIED = 2  # of H.273
INTERPOLATION = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.BITEXACT  # the same on every processor
MAX_SHORTFALL = 1.0  # seconds by which a video may end before its header says


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
    """The chosen frames in order of time; what could not be decoded as one error at the end."""
    video = _Video(container, limits)
    try:
        for number, frame in _choose(video, params):
            yield Member(
                f"{container.path}#t={frame.time:.3f}",
                encode_jpeg(frame.picture),
                image_id=container.frame_id(frame.pts),
                clip=f"{container.path}#{number:04d}",
                time=frame.time,
            )
    except (av.FFmpegError, ValueError) as error:
        video.faults.append(f"a frame cannot be converted ({reason(error)})")
    if video.faults:
        yield Member(container.path, error=f"{video.faults[0]}: copy it again from its origin")


def _choose(video: "_Video", params: Video) -> Iterator[tuple[int, Candidate]]:
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
    for index, (time, frame) in enumerate(video.frames()):
        times.append(time)
        if (sample := math.floor(time * params.sample_fps + 1e-6)) > sampled:
            sampled = sample
            picture = video.picture(frame)
            waiting.append(Candidate(index, time, frame.pts or 0, sharpness(picture), picture))
        for cut in detector.process_frame(FrameTimecode(index, fps=25.0), video.thumbnail(frame)):  # counts, no times
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
        yield from _frames(shot, times[-1] + video.frame_seconds)


def _frames(shot: Shot, end: float) -> Iterator[tuple[int, Candidate]]:
    if end - shot.start >= shot.params.min_shot_seconds:
        yield from ((shot.number, frame) for frame in shot.frames())


class _Video:
    """A file's frames in order of time; `faults` tells what could not be decoded."""

    def __init__(self, container: Container, limits: Limits) -> None:
        self._container = container
        self._limits = limits
        self._thumbnail: tuple[int, int] | None = None
        self._aspect = 1.0  # of a pixel, width to height
        self.faults: list[str] = []
        self.frame_seconds = 0.0

    def frames(self) -> Iterator[tuple[float, av.VideoFrame]]:
        """Seconds from the start, and the frame; ends where the file cannot be read further."""
        try:
            with av.open(str(self._container.file), options={"format_whitelist": FORMATS}) as file:
                yield from self._decode(file)
        except (av.FFmpegError, OSError, ValueError) as error:
            self.faults.append(f"not readable as a video ({getattr(error, 'strerror', None) or reason(error)})")

    def _decode(self, file: av.container.InputContainer) -> Iterator[tuple[float, av.VideoFrame]]:
        """A damaged packet costs the frames up to the next that depends on no other, not the rest."""
        if not file.streams.video:
            raise ValueError("no picture stream")
        stream = file.streams.video[0]
        stream.thread_count = 1  # with several, what is made of damaged packets depends on their timing
        self._check_size(stream.width, stream.height)
        self._aspect = float(stream.sample_aspect_ratio or 1)
        self.frame_seconds = float(1 / stream.average_rate) if stream.average_rate else 0.0
        start = float((stream.start_time or 0) * stream.time_base) if stream.time_base else 0.0
        stream.codec_context.options = {"err_detect": "explode"}  # or damage is painted over, and not told
        damaged, whole, time = 0, True, -1.0
        for packet in file.demux(stream):
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                damaged += 1
                whole = False
                continue
            for frame in frames:
                whole = whole or frame.key_frame
                if frame.is_corrupt or not whole or frame.pts is None or frame.time - start <= time:
                    continue
                self._check_size(frame.width, frame.height)
                time = frame.time - start
                yield time, frame
        if damaged:
            self.faults.append(f"{damaged} packets are damaged and their frames left out")
        length = float((stream.duration or 0) * (stream.time_base or 0)) or (file.duration or 0) / 1e6  # by the header
        if time < 0:
            self.faults.insert(0, "no frame could be decoded")
        elif time + MAX_SHORTFALL < length:
            self.faults.insert(0, f"cut short: it ends after {time:.1f} of {length:.1f} s")

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self._limits.max_pixels:
            raise ValueError(f"{width}x{height} px is over the limit of {self._limits.max_pixels} (ingest.max_pixels)")
        if min(width, height) < MIN_SIDE:
            raise ValueError(f"{width}x{height} px is too small: at least {MIN_SIDE} px a side are needed")

    def picture(self, frame: av.VideoFrame) -> np.ndarray:
        """(H, W, 3) uint8 RGB: square pixels, upright, scaled down to max_side."""
        width, height = frame.width * self._aspect, frame.height
        scale = min(1.0, self._limits.max_side / max(width, height))
        size = max(MIN_SIDE, round(width * scale)), max(MIN_SIDE, round(height * scale))
        picture = _pixels(frame, size, "rgb24")
        return np.ascontiguousarray(np.rot90(picture, round(frame.rotation / 90)))

    def thumbnail(self, frame: av.VideoFrame) -> np.ndarray:
        """(h, w, 3) uint8 BGR for the detector, one size for the whole video."""
        if self._thumbnail is None:
            scale = min(1.0, DETECTOR_WIDTH / frame.width)
            self._thumbnail = round(frame.width * scale), max(1, round(frame.height * scale))
        return _pixels(frame, self._thumbnail, "bgr24")


def _pixels(frame: av.VideoFrame, size: tuple[int, int], layout: str) -> np.ndarray:
    """Without a word in the file, high definition is BT.709 and the rest BT.601, as players take it."""
    silent = frame.colorspace == COLORSPACE_UNSPECIFIED
    return frame.to_ndarray(
        format=layout,
        width=size[0],
        height=size[1],
        interpolation=INTERPOLATION,
        src_colorspace=Colorspace.ITU709 if silent and frame.height >= HD_HEIGHT else None,
    )
