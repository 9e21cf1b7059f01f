"""What a source holds, before anything is decoded: single files, or containers that are read member by member."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from pipelines.core.params import Section
from pipelines.core.shards import digest
from pipelines.core.sources import Kind
from umo.images import ImageError


class Found(NamedTuple):
    """A picture in a file of its own."""

    image_id: str  # sha256 of the file's bytes; where it cannot be read, a digest of its path
    source: str
    path: str  # inside its source, as text
    file: Path
    error: str | None = None  # why it cannot be used, where that is known already


class Container(NamedTuple):
    """A file that holds many pictures: a tar, a table, a video."""

    kind: Kind
    source: str
    path: str  # inside its source, as text
    file: Path
    sha256: str  # of its bytes; where it cannot be read, a digest of its path

    @property
    def mark(self) -> str:
        """What the ids of a video's frames end in."""
        return self.sha256[:32]

    def frame_id(self, pts: int) -> str:
        """The id of a video's frame at a presentation timestamp: no matter how the frame is encoded later."""
        return digest(self.sha256, pts)[:32] + self.mark


class Limits(NamedTuple):
    """What strangers' files may ask for; each is a key of the section `ingest`."""

    max_bytes: int
    max_members: int
    max_pixels: int
    max_side: int


class Video(Section):
    """Which frames of a video are taken (pipelines/ingest/readers/video.py).

    sample_fps: frames a second that are candidates.
    frames_per_shot: at most so many are taken of a shot.
    min_spacing: seconds between two frames of a shot.
    min_shot_seconds: a shorter shot gives no frame.
    min_cut_ratio: a cut's difference is at least so many times that of the frames around it.
    min_cut_difference: and at least so much: mean change of hue, saturation and value (0 to 255).
    """

    sample_fps: float = Field(gt=0, le=60)
    frames_per_shot: int = Field(ge=1, le=100)
    min_spacing: float = Field(gt=0)
    min_shot_seconds: float = Field(ge=0)
    min_cut_ratio: float = Field(ge=1)
    min_cut_difference: float = Field(ge=0, le=255)


@dataclass(frozen=True)
class Member:
    """A picture in a container, or what stands where one should be."""

    path: str  # inside its source: the container's, then the member's
    data: bytes = b""  # the encoded picture
    error: str | None = None  # why there is none
    fields: Mapping[str, object] = field(default_factory=dict)  # what the table's row or the member's .json says
    image_id: str | None = None  # None for the sha256 of the data
    clip: str | None = None  # a video's shot
    time: float | None = None  # of a video's frame: seconds from the start


def image_id(container: Container, rank: int, member: Member) -> str:
    """sha256 of the member's bytes; of what has none, a digest of its place."""
    if member.error:
        return digest(container.source, member.path, rank)
    return member.image_id or hashlib.sha256(member.data).hexdigest()


def reason(error: Exception) -> str:
    """What a library said, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def shut(error: Exception) -> str | None:
    """What is wrong with a file that the system does not let us read; None where a library did not like it."""
    number = error.errno if isinstance(error, OSError) else None
    return f"cannot be read ({os.strerror(number)}): check the path and its permissions" if number else None


def read_file(file: Path, max_bytes: int) -> bytes:
    """A file's bytes; ImageError where it cannot be read, or is larger than `max_bytes`."""
    try:
        if fault := over_limit(file.stat().st_size, max_bytes):
            raise ImageError(fault)
        return file.read_bytes()
    except OSError as error:
        raise ImageError(shut(error)) from error


def over_limit(n: int, max_bytes: int) -> str | None:
    """What is wrong with a picture's file of so many bytes, if they are too many."""
    fault = f"{n} bytes is over the limit of {max_bytes}: save it smaller, or raise ingest.max_bytes"
    return fault if n > max_bytes else None
