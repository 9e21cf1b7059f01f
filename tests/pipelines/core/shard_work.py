"""Work on shards for the tests of executors, in a module of its own so that other processes can import it."""

import json
import os
import signal
import time
from pathlib import Path

from pydantic import BaseModel

from pipelines.core.executors import Machine
from pipelines.core.shards import Counts, Shard, run
from umo.errors import BadInput, WorkFailed


class Knob(BaseModel):
    value: int = 1


def letter(shard: Shard, folder: Path) -> Counts:
    """Write the shard's name and note that it was done, and by which process."""
    (folder / "letter.txt").write_text(f"{shard.name} {shard.task}")
    with Path("calls.txt").open("a") as calls:
        calls.write(f"{shard.name} {os.getpid()}\n")
    return Counts({"letters": 1})


def die_once(shard: Shard, folder: Path) -> Counts:
    """The worker that first meets shard c is killed in the middle of it."""
    if shard.name == "c" and not Path("died").exists():
        (folder / "half.txt").write_text("half")
        Path("died").write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
    return letter(shard, folder)


def always_die(shard: Shard, folder: Path) -> Counts:
    """Shard c kills whoever does it, before d beside it can come to an end."""
    if shard.name == "c":
        os.kill(os.getpid(), signal.SIGKILL)
    if shard.name == "d":
        time.sleep(1)
    return letter(shard, folder)


def fail(shard: Shard, folder: Path) -> Counts:
    """Shard c ends in an error that nobody foresaw, shard d in one that is foreseen."""
    if shard.name == "c":
        raise ZeroDivisionError("by nought")
    if shard.name == "d":
        raise BadInput("d.jpg: no picture: remove it")
    return letter(shard, folder)


def describe_worker(shard: Shard, folder: Path) -> Counts:
    """What a worker has to itself."""
    import cv2

    from umo import faces

    model = faces.load("opencv_zoo")
    told = {
        "folder": str(Path.cwd()),
        "opencv": cv2.getNumThreads(),
        "onnxruntime": model._embedder.session.get_session_options().intra_op_num_threads,
        "network": id(model),
        "process": os.getpid(),
        "loads": faces._load.cache_info().misses,
    }
    (folder / "told.json").write_text(json.dumps(told))
    return Counts()


def go(work, machine: Machine, names: str = "abcdef") -> Counts:
    """Run shards into `out`."""
    return run("ingest", work, [Shard(name, {"x": "1"}) for name in names], Path("out"), params=Knob(), machine=machine)


def done() -> list[str]:
    """The shards that were done, in order, each as often as it was."""
    return [line.split()[0] for line in Path("calls.txt").read_text().splitlines()]


def published() -> dict[str, str]:
    """The files of `out`."""
    return {str(path): path.read_text() for path in Path("out").rglob("*") if path.is_file()}


WHOLE = {f"out/{name}/letter.txt": f"{name} None" for name in "abcdef"}


ERRORS = [  # names of shards for `fail`, what comes of it
    ("abc", WorkFailed, "shard c failed (ZeroDivisionError: by nought)"),
    ("abd", BadInput, "d.jpg: no picture: remove it"),
]


def told_by_workers() -> list[dict]:
    """What four runs of `describe_worker` wrote: each worker has its share of the cores and one network."""
    told = [json.loads(path.read_text()) for path in Path("out").rglob("told.json")]
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert len(told) == 4
    assert all(one["opencv"] == one["onnxruntime"] == share and one["loads"] == 1 for one in told)
    return told
