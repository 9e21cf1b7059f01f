"""Shards: the unit of work that is keyed, resumed, run in parallel and published.

A shard's key is a hash of everything its product depends on: the bytes it reads, its section of params.yaml, the
model files, the versions of the libraries that compute, and the source of the repo's own modules that the stage
imports. Its product lies in `.work/STAGE/KEY`, written under a temporary name and moved there whole, marker last; so
whatever lies there under the right key is finished and right, and an interrupted run goes on where it stopped.
Publishing to the stage's DVC output is the last step and replaces the output whole.
"""

import ast
import hashlib
import importlib.metadata
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field
from tqdm import tqdm

from pipelines.params import Section
from umo.errors import BadInput, WorkFailed

ROOT = Path(__file__).resolve().parent.parent
WORK = Path(".work")
MARKER = "marker.json"
PACKAGES = ("pipelines", "umo")
# Those whose version may change a product; a new one redoes the shards.
LIBRARIES = (
    "accelerate",
    "diffusers",
    "dvclive",
    "dlib-bin",
    "great-expectations",
    "numpy",
    "onnxruntime",
    "opencv-python-headless",
    "peft",
    "pillow",
    "polars",
    "pyarrow",
    "safetensors",
    "scipy",
    "torch",
    "transformers",
)


class Machine(Section):
    """How the work is spread over this machine; no part of any key, for the products are the same (but for rounding).

    executor, workers: of shards.
    device: of the networks that train and draw: cpu, cuda, ...
    processes: that share a training batch, one a GPU.
    """

    executor: Literal["serial", "process"] = "serial"
    workers: int = Field(default=1, ge=1)
    device: str = "cpu"
    processes: int = Field(default=1, ge=1)


@dataclass(frozen=True)
class Shard:
    """A piece of a stage's work.

    Attributes:
        name: folder of its product inside the stage's output; "" publishes into the output itself.
        inputs: whatever the piece reads, by name -> digest.
        task: what the stage's function needs to know of it (picklable).
    """

    name: str
    inputs: Mapping[str, str]
    task: object = None


@dataclass
class Counts:
    """What a shard made and what it turned away, by reason."""

    made: dict[str, int] = field(default_factory=dict)
    rejects: dict[str, int] = field(default_factory=dict)


ONE_PROCESS = Machine()
Work = Callable[[Shard, Path], Counts]


def digest(*parts: object) -> str:
    """sha256 of JSON-serialisable parts, the same for equal parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_digest(folder: Path) -> str:
    """sha256 over the names and bytes of the files below a folder (or of one file).

    Raises:
        BadInput: nothing is there.
    """
    if not folder.exists():
        raise BadInput(f"{folder}: missing; run the stage that makes it (dvc repro)")
    files = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file())
    return digest([(str(path.relative_to(folder)), file_digest(path)) for path in files])


@cache
def sources(module: str) -> tuple[Path, ...]:
    """Files of the repo's own modules that `module` imports, itself included, found from the import statements.

    Imports inside functions count too. Importing a.b also runs a/__init__.py, so packages are followed as well.
    """
    found: dict[Path, None] = {}
    pending = [module]
    while pending:
        name = pending.pop()
        for path in _files_of(name):
            if path not in found:
                found[path] = None
                pending += _imported(path)
    return tuple(sorted(path.relative_to(ROOT) for path in found))


def _files_of(name: str) -> list[Path]:
    """The module's file and the __init__ files of the packages above it; none for modules of others."""
    parts = name.split(".")
    if parts[0] not in PACKAGES:
        return []
    packages = [ROOT.joinpath(*parts[:k], "__init__.py") for k in range(1, len(parts) + 1)]
    return [path for path in [*packages, ROOT.joinpath(*parts).with_suffix(".py")] if path.is_file()]


def _imported(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def run(
    stage: str,
    work: Work,
    shards: Sequence[Shard],
    out: Path,
    *,
    params: BaseModel,
    files: Iterable[Path] = (),
    machine: Machine = ONE_PROCESS,
) -> Counts:
    """Do the shards that are not done yet, then publish all of them to `out`.

    Args:
        stage: name of the stage, which is also its module `pipelines.STAGE`.
        work: writes a shard's product into the folder it is given; must be picklable for `process`.
        params: the stage's section of params.yaml, part of every key.
        files: data files that the stage's code reads (weights, calibrations, templates), part of every key.
        machine: serial in this process, or several processes.

    Raises:
        BadInput: there is no shard.
        WorkFailed: a shard failed; those finished are kept for the next run.
    """
    if not shards:
        raise BadInput(f"{stage}: nothing to do: its inputs hold no rows; see the stages before it")
    code = {str(path): file_digest(ROOT / path) for path in sources(f"pipelines.{stage}")}
    data = {path.name: file_digest(path) for path in files}
    common = digest(stage, code, data, versions(), params.model_dump(mode="json"))
    for left in (WORK / stage).glob("*.tmp"):  # of a killed run: there is one writer a workspace
        shutil.rmtree(left)
    folders = {shard.name: WORK / stage / digest(common, shard.name, shard.inputs) for shard in shards}
    pending = [shard for shard in shards if not _finished(folders[shard.name])]
    _start(stage, len(shards), len(shards) - len(pending))
    if machine.executor == "process" and len(pending) > 1:
        _run_in_processes(stage, work, pending, folders, machine.workers)
    else:
        for shard in tqdm(pending, desc=stage, unit="shard", disable=len(pending) < 2):
            _do(work, shard, folders[shard.name])
    publish(folders, out)
    return _report(stage, folders, out)


def versions() -> dict[str, str]:
    """Of the libraries that may change a product."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


def _start(stage: str, n: int, n_done: int) -> None:
    if n_done:
        print(f"{stage}: {n_done} of {n} shards are done already", flush=True)


def _finished(folder: Path) -> bool:
    """Whether the marker's key is the folder's and every product has the marker's checksum."""
    try:
        marker = json.loads((folder / MARKER).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    products = marker.get("sha256", {})
    return marker.get("key") == folder.name and all(
        (folder / name).is_file() and file_digest(folder / name) == value for name, value in products.items()
    )


def _do(work: Work, shard: Shard, folder: Path) -> None:
    """One shard: temporary folder, product, marker, one rename."""
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    started = time.perf_counter()
    try:
        counts = work(shard, temporary)
        products = sorted(path for path in temporary.rglob("*") if path.is_file())
        marker = {
            "key": folder.name,
            "shard": shard.name,
            "counts": counts.made,
            "rejects": counts.rejects,
            "seconds": round(time.perf_counter() - started, 3),
            "sha256": {str(path.relative_to(temporary)): file_digest(path) for path in products},
        }
        (temporary / MARKER).write_text(json.dumps(marker, indent=1))
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _run_in_processes(
    stage: str, work: Work, pending: Sequence[Shard], folders: Mapping[str, Path], workers: int
) -> None:
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures: dict[Future[None], Shard] = {
            pool.submit(_do, work, shard, folders[shard.name]): shard for shard in pending
        }
        failed: list[tuple[Shard, BaseException]] = []
        for future in tqdm(as_completed(futures), total=len(futures), desc=stage, unit="shard"):
            error = future.exception()
            if error is not None:
                failed.append((futures[future], error))
                for other in futures:
                    other.cancel()
                break
    if failed:
        shard, error = failed[0]
        if isinstance(error, (BadInput, WorkFailed, OSError)):
            raise error
        raise WorkFailed(f"{stage}: shard {shard.name} failed ({type(error).__name__}: {error})") from error


def scratch(folder: Path) -> Path:
    """Where the work on a shard may keep what it has, for a killed run to find again under the same key.

    Args:
        folder: the temporary folder that the work was given.
    """
    return folder.with_name(f"{folder.name.split('.')[0]}.partial")


def publish(folders: Mapping[str, Path], out: Path) -> None:
    """Put finished shards where DVC expects them, replacing the output whole; files are hard links where possible.

    Where `out` names a file (it has a suffix), the product is one file, and that is what is published.
    """
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name, folder in folders.items():
        shutil.copytree(folder, temporary / name, copy_function=_link, dirs_exist_ok=True)
        (temporary / name / MARKER).unlink()
    if out.suffix:
        (temporary / out.name).replace(out)
        shutil.rmtree(temporary)
    else:
        shutil.rmtree(out, ignore_errors=True)
        temporary.replace(out)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _report(stage: str, folders: Mapping[str, Path], out: Path) -> Counts:
    """Sum the markers, print them, and tell how large the work folder has grown."""
    total = Counts()
    for folder in folders.values():
        marker = json.loads((folder / MARKER).read_text())
        for sums, part in ((total.made, marker["counts"]), (total.rejects, marker["rejects"])):
            for key, count in part.items():
                sums[key] = sums.get(key, 0) + count
    size = sum(path.stat().st_size for path in WORK.rglob("*") if path.is_file())
    made = ", ".join(f"{count} {key}" for key, count in sorted(total.made.items()))
    turned_away = ", ".join(f"{count} {key}" for key, count in sorted(total.rejects.items()))
    print(f"{stage}: {made}{f'; turned away: {turned_away}' if turned_away else ''} -> {out}")
    print(f"{stage}: {WORK} holds {size / 2**20:.0f} MiB (make clean-work)", flush=True)
    return total
