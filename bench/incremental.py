"""One new photograph among many: what ingest and measure cost then, against what they cost for all."""

import time
from pathlib import Path

from bench.photos import PHOTOS, stage, workspace, write_photos
from bench.result import Result
from pipelines.core.shards import MARKER

NAME = "incremental"
BAR = 0.03
STAGES = (("ingest",), ("measure", "--of", "ingested"))


def run(photos: int = 10_000) -> Result:
    """Seconds with one new photograph / seconds of all.

    Args:
        photos: how many there are before.
    """
    folder = workspace(NAME, photos)
    for newer in (folder / PHOTOS).rglob(f"{photos:07d}.jpg"):  # of an earlier run
        newer.unlink()
    every = {stage_of[0]: seconds(folder, stage_of) for stage_of in STAGES}
    again = {stage_of[0]: seconds(folder, stage_of) for stage_of in STAGES}
    before = done(folder)
    write_photos(folder / PHOTOS, photos + 1)
    one = {stage_of[0]: seconds(folder, stage_of) for stage_of in STAGES}
    return Result(
        name=NAME,
        value=sum(one.values()) / sum(every.values()),
        unit="seconds of ingest and measure with one new photograph / with all of them new",
        against="the same commands where nothing is done yet",
        bar=BAR,
        lower_is_better=True,
        details={
            "photos": photos,
            "shards": len([path for path in before if path.parent.parent.name == "ingest"]),
            "shards_done_again": len(done(folder) - before),
            "seconds": {
                name: {key: round(value, 2) for key, value in part.items()}
                for name, part in (("all", every), ("nothing new", again), ("one new", one))
            },
        },
    )


def seconds(folder: Path, arguments: tuple[str, ...]) -> float:
    """Of one command, with the start of Python."""
    started = time.perf_counter()
    stage(folder, *arguments)
    return time.perf_counter() - started


def done(folder: Path) -> set[Path]:
    """The markers of finished shards."""
    return set((folder / ".work").glob(f"*/*/{MARKER}"))
