"""Who does the shards: this process, several processes, or Ray's actors on one machine or many.

All three leave the same products. A worker that dies in the middle, of too little memory or a kill, costs a retry of
the shard that it had; an exception is an answer and is not tried again.
"""

import logging
import multiprocessing
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator
from tqdm import tqdm

from pipelines.core.params import Section
from umo.errors import BadInput, WorkFailed

RETRIES = 3
ALONE = 3.0  # seconds of light work that are done here: workers take as long to start
THREADS_OF = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENCV_FOR_THREADS_NUM",
    "POLARS_MAX_THREADS",
)

Job = Any
Do = Callable[[Job], None]
Executor = Callable[[str, Do, Mapping[str, Job], "Machine"], Iterator[None]]


class Machine(Section):
    """How the work is spread over this machine or several; no part of any key, for the products are the same (but for
    rounding).

    executor: of shards. serial: this process, all cores in it. process: several, which share the cores out (one, where
        the device is a GPU). ray: an actor a worker, one core each (and one GPU, where the device is one), on this
        machine or on a cluster.
    workers: processes or actors.
    ray_address: null starts Ray on this machine for as long as the stage runs; auto or ray://HOST:PORT joins a cluster
        whose nodes have this environment and this folder, with its `.work` and `datasets`, at the same path (a shared
        file system).
    device: of the networks that train, draw and (opencv_zoo) measure: cpu, cuda, ...; under Ray an actor has one GPU.
    processes: that share a training batch on this machine, one a GPU.
    accelerate: a file of `accelerate config`, which then says how many processes share a training batch, on which
        machines, and whether by FSDP; null starts `processes`.
    """

    executor: Literal["serial", "process", "ray"] = "serial"
    workers: int = Field(default=1, ge=1)
    ray_address: str | None = None
    device: str = "cpu"
    processes: int = Field(default=1, ge=1)
    accelerate: str | None = None

    @field_validator("ray_address")
    @classmethod
    def _is_an_address(cls, address: str | None) -> str | None:
        if address not in (None, "auto") and not address.startswith("ray://") and ":" not in address:
            raise ValueError("null, auto, HOST:PORT or ray://HOST:PORT is needed")
        return address


def do_all(
    title: str, do: Do, jobs: Mapping[str, Job], machine: Machine, light: bool = False, threads: int = 1
) -> None:
    """Do each job once, in any order; progress is shown under a title.

    Args:
        do: must be picklable for `process` and `ray`, as the jobs.
        jobs: by the names that a failure is reported under.
        light: they are likely to be done before other processes would have started.
        threads: jobs that are done beside each other in this process, where the machine is `serial`.

    Raises:
        WorkFailed: a job failed, or workers died again and again.
        BadInput, OSError: as the job raised it.
    """
    serially = partial(_serially, threads=threads)
    executors: dict[str, Executor] = {"serial": serially, "process": _in_processes, "ray": _in_ray}
    one = len(jobs) < 2 or (machine.executor == "process" and machine.device != "cpu")  # who would share one GPU
    chosen = serially if one else executors[machine.executor]
    if light and chosen is _in_processes:
        chosen = _here_first
    done = chosen(title, do, jobs, machine)
    for _ in tqdm(done, total=len(jobs), desc=title, unit="shard", disable=len(jobs) < 2):
        pass


def _serially(title: str, do: Do, jobs: Mapping[str, Job], machine: Machine, threads: int = 1) -> Iterator[None]:
    if threads == 1:
        yield from map(do, jobs.values())
        return
    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(do, job) for job in jobs.values()]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _here_first(title: str, do: Do, jobs: Mapping[str, Job], machine: Machine) -> Iterator[None]:
    left, started = dict(jobs), time.monotonic()
    for name in jobs:
        if time.monotonic() - started > ALONE:
            break
        _one(do, name, left.pop(name))
        yield
    if left:
        yield from _in_processes(title, do, left, machine)


def _in_processes(title: str, do: Do, jobs: Mapping[str, Job], machine: Machine) -> Iterator[None]:
    left, deaths, workers = dict(jobs), 0, machine.workers
    while left:
        before = len(left)
        try:
            for name in _pool(do, left, workers):
                del left[name]
                yield
        except BrokenProcessPool as error:
            deaths = deaths + 1 if len(left) == before else 1
            if deaths > RETRIES:
                raise WorkFailed(f"{title}: {_died(deaths)}") from error
            tqdm.write(f"{title}: a worker died; {len(left)} shards are left and go on in new ones", file=sys.stderr)
            names = list(left)  # what it may have died of comes last
            left = {name: left[name] for name in names[workers:] + names[:workers]}
            # Beside what kills its worker at once nothing else may come to an end: then one shard at a time.
            workers = 1 if len(left) == before or len(left) <= machine.workers else machine.workers


def _pool(do: Do, jobs: Mapping[str, Job], workers: int) -> Iterator[str]:
    """The names of the jobs as they are finished."""
    broken = None
    with ProcessPoolExecutor(
        min(workers, len(jobs)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(_share_of_cores(workers),),
    ) as pool:
        futures: dict[Future[None], str] = {pool.submit(_one, do, name, job): name for name, job in jobs.items()}
        for future in as_completed(futures):
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                broken = error  # some that are finished may come after it
            elif error is not None:
                pool.shutdown(wait=False, cancel_futures=True)
                raise error
            else:
                yield futures[future]
    if broken:
        raise broken


def _one(do: Do, name: str, job: Job) -> None:
    """A job in a worker: what nobody foresaw becomes one line, for a traceback of another process helps little."""
    try:
        do(job)
    except (BadInput, WorkFailed, OSError):
        raise
    except Exception as error:
        raise WorkFailed(f"shard {name} failed ({type(error).__name__}: {error})") from error


def _died(times: int) -> str:
    return (
        f"a worker died {times} times at the same work: out of memory? Lower machine.workers; what is finished is kept"
    )


def _start_worker(threads: int) -> None:
    limit_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent must not leave workers behind that go on writing."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)


def _share_of_cores(workers: int) -> int:
    return max(1, len(os.sched_getaffinity(0)) // workers)


def limit_threads(threads: int) -> None:
    """Let libraries take so many threads in this process: those imported already, and those that will be."""
    for name in THREADS_OF:
        os.environ[name] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(threads)


class RayWorker:
    """An actor: keeps its process, and with it the networks that its jobs have loaded."""

    def __init__(self, folder: str, threads: int) -> None:
        os.chdir(folder)
        limit_threads(threads)

    def one(self, do: Do, name: str, job: Job) -> None:
        """A job, as in a process of a pool."""
        _one(do, name, job)


def _in_ray(title: str, do: Do, jobs: Mapping[str, Job], machine: Machine) -> Iterator[None]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray.util import ActorPool

    started = not ray.is_initialized()
    if started:
        start_ray(machine)
    gpus = 1 if machine.device.startswith("cuda") else 0
    threads = 1 if machine.ray_address else _share_of_cores(machine.workers)
    actor = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=-1, max_task_retries=RETRIES)(RayWorker)
    workers: list[Any] = []
    try:
        there = ray.cluster_resources()
        places = min(int(there.get(kind, 0)) for kind in ("CPU", "GPU")[: 1 + gpus])
        if not places:  # an actor without a place would be waited for without end
            lacking = f"no GPU for machine.device: {machine.device}" if gpus else "no core"
            raise BadInput(f"machine.executor: Ray has {lacking}; choose another device or cluster")
        for _ in range(min(machine.workers, len(jobs), places)):
            workers.append(actor.remote(str(Path.cwd()), threads))
        pool = ActorPool(workers)
        for name, job in jobs.items():
            pool.submit(lambda worker, named: worker.one.remote(do, *named), (name, job))
        while pool.has_next():
            yield pool.get_next_unordered()
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise WorkFailed(f"{title}: {_died(RETRIES + 1)}") from error
    finally:
        for worker in workers:
            ray.kill(worker)
        if started:
            ray.shutdown()


def start_ray(machine: Machine) -> None:
    """Start Ray on this machine, or join the cluster at the machine's address.

    Raises:
        BadInput: no cluster answers there.
    """
    import ray

    address = machine.ray_address or "local"
    size: dict[str, Any] = {} if machine.ray_address else {"num_cpus": machine.workers, "include_dashboard": False}
    try:
        if ":" in address:  # Ray itself would go on trying for many minutes
            host, port = address.removeprefix("ray://").rsplit(":", 1)
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address, logging_level=logging.ERROR, **size)
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise BadInput(f"machine.ray_address: no Ray at {address!r} ({reason}): start it (ray start --head)") from error
