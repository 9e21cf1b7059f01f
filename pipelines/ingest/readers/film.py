"""A video's film: which of its streams it is, its frames in order of time, and their pixels as a viewer shows them."""

import mmap
import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.filter import Graph
from av.stream import Disposition
from av.video.reformatter import Colorspace, Interpolation

from pipelines.ingest.readers import colour
from pipelines.ingest.readers.base import Limits, reason
from umo.images import MIN_SIDE, ImageError

# A playlist under a video's name would make the library open other files of this machine.
FORMATS = "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg"
READ = "MP4, MOV, Matroska, WebM, AVI, MPEG, FLV, WMV and Ogg"
FLV, WMV = b"FLV", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"  # what their files begin with
STILLS = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
STILL_CODECS = frozenset({"mjpeg", "png", "webp", "gif", "bmp", "tiff"})
DETECTOR_WIDTH = 256
HD_HEIGHT = 720
UNSPECIFIED = (2, 3)  # matrices of H.273: unspecified, reserved
INTERPOLATION = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.BITEXACT  # the same on every processor
STREAMED = ("mpegts", "mpeg")  # nothing but what is shown lies in these; they do not tell their length
MAX_UNREAD = 1 << 18  # bytes between two packets, or a quarter of the file if that is less
RESYNC = 1 << 12  # bytes; a small part of those after which the library stops
MAX_SHORTFALL = 1.0  # seconds by which a video may end before its header says
RESTART = 0.5  # seconds; a timestamp that goes back by more begins a new count
MAX_REORDERED = 16  # frames; so many may wait for one that is shown before them (H.264)
COPY = "copy it again from its origin"
CONVERT = "convert it to H.264 in an MP4"


class Clock:
    """Timestamps that ascend, in the stream's ticks: its own where they do.

    Where they begin anew, as in joined recordings, the first follows the last by one frame, and the others go on from
    there. A frame without one follows by one frame. One that is a little late, or a copy, is a tick after the last.
    """

    def __init__(self, start: int, time_base: Fraction, frame_seconds: float) -> None:
        self._step = max(1, round(frame_seconds / time_base))
        self._restart = RESTART / time_base
        self._first = start
        self._last: int | None = None
        self._shift = 0
        self._late = 0  # frames in a row

    def tick(self, pts: int | None) -> int:
        """Of the next frame, in order of decoding, by what its own timestamp says."""
        if self._last is None:
            self._last = self._first if pts is None else pts
        elif pts is None:
            self._last += self._step
        elif (ahead := pts + self._shift - self._last) > 0:
            self._late = 0
            self._last += ahead
        elif ahead < -self._restart or self._late >= MAX_REORDERED:
            self._shift += self._step - ahead
            self._last += self._step
        else:
            self._late += 1
            self._last += 1
        return self._last


class Film:
    """A file's frames in order of time; `faults` tells, a sentence each, what could not be read, and what to do."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self._path = path
        self._limits = limits
        self._thumbnail: tuple[int, int] | None = None
        self._aspect = 1.0  # of a pixel, width to height
        self._end = 0  # of the last frame, in ticks
        self._others_end = 0.0  # of the other streams, in seconds by the file's clock
        self._read_bytes = self._unread = 0
        self._most_unread = MAX_UNREAD
        self.faults: list[str] = []
        self.frame_seconds = 0.0

    def frames(self) -> Iterator[tuple[float, av.VideoFrame]]:
        """Seconds from the start, and the frame, its `pts` ascending; ends where the file cannot be read further."""
        try:
            with av.open(str(self._path), options={"format_whitelist": FORMATS}) as file:
                yield from self._read(file)
        except ImageError as error:
            self.faults.append(str(error))
        except (av.FFmpegError, OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or reason(error)
            self.faults.append(f"not readable as a video ({why}): {_remedy(error)}")

    def _read(self, file: av.container.InputContainer) -> Iterator[tuple[float, av.VideoFrame]]:
        self._most_unread = min(MAX_UNREAD, file.size // 4)
        stream = self._film(file)
        stream.thread_count = 1  # with several, what is made of damaged packets depends on their timing
        if stream.width:
            self._check_size(stream.width, stream.height)
        self._aspect = float(stream.sample_aspect_ratio or 1)
        self.frame_seconds = float(1 / (stream.average_rate or stream.guessed_rate or 25))
        time_base = stream.time_base or Fraction(1, 90_000)
        start = stream.start_time or 0
        clock = Clock(start, time_base, self.frame_seconds)
        found = False
        for frame in _deinterlaced(self._decoded(file, stream, clock), time_base):
            assert frame.pts is not None, "the clock gives each one"
            if not found:
                start = min(start, frame.pts)
                found = True
            yield frame.time - float(start * time_base), frame
        if not found:
            self.faults.insert(0, f"no frame could be decoded: {COPY}")
        elif fault := self._shortfall(file, stream, start):
            self.faults.insert(0, fault)
        if self._followed():
            self.faults.append("another video follows in the same file and was not read: make each a file of its own")
        self._skip_to(file.size)
        if self._unread and not self.faults and file.format.name in STREAMED:
            self.faults.append(f"{self._unread} bytes of it hold no film: {COPY}")

    def _film(self, file: av.container.InputContainer) -> av.VideoStream:
        """The film among covers and thumbnails; of several, the one that players show."""
        if not file.streams.video:
            remedy = "take it out of the source" if file.streams.audio else COPY
            raise ImageError(f"not readable as a video (no picture stream in it): {remedy}")
        moving = [one for one in file.streams.video if not one.disposition & STILLS and one.frames != 1]
        if not moving:
            raise ImageError("no film in it, only a still, as cover art is: take it out of the source")
        known = [one for one in moving if one.codec_context]
        if not known:
            raise ImageError(f"its codec is not one of those read: {CONVERT}")
        films = [one for one in known if one.name not in STILL_CODECS] or known
        best = file.streams.best("video")
        film = next((one for one in films if best and one.index == best.index), films[0])
        if len(films) > 1:
            fault = f"it holds {len(films)} films, and only stream {film.index} was read: make each a file of its own"
            self.faults.append(fault)
        return film

    def _decoded(
        self, file: av.container.InputContainer, stream: av.VideoStream, clock: Clock
    ) -> Iterator[av.VideoFrame]:
        """A damaged packet costs the frames up to the next that depends on no other, not the rest."""
        stream.codec_context.options = {"err_detect": "explode"}  # or damage is painted over, and not told
        damaged, whole = 0, True
        for packet in self._packets(file):
            self._skip_to(packet.pos or 0)
            self._read_bytes = max(self._read_bytes, (packet.pos or 0) + packet.size)
            if packet.stream.index != stream.index:
                if packet.pts is not None and packet.time_base:
                    end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                    self._others_end = max(self._others_end, end)
                continue
            try:
                frames = stream.decode(packet)
            except av.error.InvalidDataError:
                damaged += 1
                whole = False
                continue
            for frame in frames:
                whole = whole or frame.key_frame
                damaged += frame.is_corrupt
                if frame.is_corrupt or not whole:
                    continue
                self._check_size(frame.width, frame.height)
                frame.pts = clock.tick(frame.pts)
                self._end = frame.pts + frame.duration
                yield frame
        if damaged:
            self.faults.append(f"{damaged} packets are damaged and their frames left out: {COPY}")

    def _packets(self, file: av.container.InputContainer) -> Iterator[av.Packet]:
        """PyAV lists the streams that were there at the start, and at the end trips over any other.

        Over what is no film the library stops every 64 KiB, and goes on when asked again.
        """
        for _ in range(1 + file.size // RESYNC):
            try:
                yield from file.demux()
            except BlockingIOError:
                continue
            except IndexError:
                what = "a stream that begins in the middle was not read"
                self.faults.append(f"{what}: if it is a film, make it a file of its own")
            return

    def _skip_to(self, position: int) -> None:
        if position - self._read_bytes > self._most_unread:
            self._unread += position - self._read_bytes

    def _shortfall(self, file: av.container.InputContainer, stream: av.VideoStream, start: int) -> str | None:
        """Where the header tells how long the film is, and it is shorter.

        In Matroska and FLV it tells the file's length alone, which may be that of the sound or of the subtitles.
        """
        if stream.start_time is None or not stream.time_base:  # the length is but a guess, by the size of the file
            return None
        end = float(self._end * stream.time_base)
        if stream.duration:
            length = float(stream.duration * stream.time_base)
            end -= float(start * stream.time_base)
        else:
            length, before = (file.duration or 0) / 1e6, (file.start_time or 0) / 1e6
            end = max(end, self._others_end) - before
            length -= before if length > before else 0  # some count from 0, others from the start
        return f"cut short: it ends after {end:.1f} of {length:.1f} s: {COPY}" if end + MAX_SHORTFALL < length else None

    def _followed(self) -> bool:
        """Whether a file begins once more behind what was read, of a form that is read to the first's end."""
        with self._path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            head = data[:12]
            mark = head[4:] if head[4:8] == b"ftyp" else head[:9] if head.startswith((FLV, WMV)) else None
            return mark is not None and data.find(mark, self._read_bytes) >= 0

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self._limits.max_pixels:
            fault = f"{width}x{height} px is over the limit of {self._limits.max_pixels}"
            raise ImageError(f"{fault}: scale it down, or raise ingest.max_pixels")
        if min(width, height) < MIN_SIDE:
            raise ImageError(f"{width}x{height} px is too small: at least {MIN_SIDE} px a side are needed")

    def picture(self, frame: av.VideoFrame) -> np.ndarray:
        """(H, W, 3) uint8 RGB: square pixels, upright, scaled down to max_side."""
        width, height = frame.width * self._aspect, frame.height
        scale = min(1.0, self._limits.max_side / max(width, height))
        size = max(MIN_SIDE, round(width * scale)), max(MIN_SIDE, round(height * scale))
        return np.ascontiguousarray(_upright(_pixels(frame, size), frame))

    def thumbnail(self, frame: av.VideoFrame) -> np.ndarray:
        """(h, w, 3) uint8 BGR for the detector, one size for the whole video."""
        if self._thumbnail is None:
            scale = min(1.0, DETECTOR_WIDTH / frame.width)
            self._thumbnail = round(frame.width * scale), max(1, round(frame.height * scale))
        return np.ascontiguousarray(_pixels(frame, self._thumbnail)[..., ::-1])


def _remedy(error: Exception) -> str:
    if isinstance(error, av.error.ArgumentError):  # the list of formats does not have it
        return f"only {READ} are read: convert it, or name it as what it is"
    if isinstance(error, av.error.InvalidDataError | EOFError):
        return COPY
    return "check the path and its permissions" if isinstance(error, OSError) else CONVERT


def _deinterlaced(frames: Iterator[av.VideoFrame], time_base: Fraction) -> Iterator[av.VideoFrame]:
    """A frame of two fields becomes its first moment's picture; the others stay as they are.

    From the first frame of fields on all go through the filter, which needs those before and after.
    """
    graph, shape = None, None
    for frame in frames:
        if graph and shape != (frame.width, frame.height, frame.format.name):  # a filter takes one size only
            yield from _through(graph, None, time_base)
            graph = None
        if graph is None and frame.interlaced_frame:
            shape = frame.width, frame.height, frame.format.name
            graph = Graph()
            source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=time_base)
            graph.link_nodes(source, graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink"))
            graph.configure()
        if graph:
            yield from _through(graph, frame, time_base)
        else:
            yield frame
    if graph:
        yield from _through(graph, None, time_base)


def _through(graph: Graph, frame: av.VideoFrame | None, time_base: Fraction) -> Iterator[av.VideoFrame]:
    """What a frame, or the end, brings out of the filter, in the stream's ticks again."""
    graph.vpush(frame)
    while True:
        try:
            out = graph.vpull()
        except (BlockingIOError, EOFError):  # it wants more, or is empty
            return
        out.pts, out.time_base = round(out.time / time_base), time_base
        yield out


def _pixels(frame: av.VideoFrame, size: tuple[int, int]) -> np.ndarray:
    """(height, width, 3) uint8 sRGB.

    Without a word in the file, high definition is BT.709 and the rest BT.601, as players take it.
    """
    wide = colour.needs_conversion(frame.color_trc, frame.color_primaries)
    matrix = None
    if frame.colorspace in UNSPECIFIED and wide:
        matrix = Colorspace.BT2020
    elif frame.colorspace in UNSPECIFIED:
        matrix = Colorspace.ITU709 if frame.height >= HD_HEIGHT else Colorspace.ITU601
    pixels = frame.to_ndarray(
        format="rgb48le" if wide else "rgb24",
        width=size[0],
        height=size[1],
        interpolation=INTERPOLATION,
        src_colorspace=matrix,
    )
    return colour.to_srgb(pixels, frame.color_trc, frame.color_primaries) if wide else pixels


def _upright(picture: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """Turned and mirrored as the display matrix says, to the nearest quarter."""
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return picture
    a, b, _, c, d = struct.unpack("=5i", bytes(matrix)[:20])  # a pixel at x, y is shown at ax + cy, bx + dy
    if abs(b) > abs(a):
        picture, a, d = picture.swapaxes(0, 1), c, b
    return picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
