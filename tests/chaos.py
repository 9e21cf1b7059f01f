"""`make chaos`: kill -9 at random moments of `dvc repro`, two runs at once, a full disk; in a small copy of the repo.

Nothing may be lost, doubled, or half-written and taken for whole: after every kill all that stands under its final
name is compared with an undisturbed run, byte by byte, and in the end everything must be equal. A run prints its seed;
the same seed chooses the same moments and victims again.
"""

import argparse
import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml

from pipelines.core.shards import MARKER, _finished
from pipelines.service.leftovers import clear_stale
from pipelines.smoke import copy_repository, merged

PEOPLE = "s?/[1-5].pgm"
SMALL = {
    "machine": {"executor": "serial"},
    "ingest": {"shard_size": 100},
    "identify": {"fractions": {"train": 0.34, "validation": 0.33, "test": 0.33}},
    "synthesise": {"scenes": {"train": 12, "validation": 6, "test": 6}, "shard_size": 6, "people": [1, 2]},
    "validate": {"min_sets": 1},
    "cases": {"per_n": 2, "alike": 0},
}
MADE = ("ingested", "measured", "people", "synthesised", "curated", "validated", "exported", "splits.csv")
# Of DVC where another DVC is at work, and of a stage that was left without its DVC.
BUSY = ("is busy", "Unable to read RWLock", "Unable to acquire lock", "is being run here already")
# Of DVC where a dead one left an empty record or half of dvc.lock (pipelines/service/leftovers.py).
LEFT = ("join() argument must be", "dvc.lock' validation failed", "YAML file structure is corrupted")
VICTIMS = ("all", "dvc", "stage")
LAST = "export"


@dataclass
class Outcome:
    """What happened, and what should not have."""

    kills: Counter[str] = field(default_factory=Counter)
    completed: int = 0
    turned_away: int = 0
    faults: list[str] = field(default_factory=list)


def make_workspace(path: Path) -> None:
    """A small copy of the repository, in which nothing has been made yet."""
    copy_repository(path)
    for name in ("params.yaml", "datasets/sources.yaml"):
        changes = SMALL if name == "params.yaml" else {"orl": {"include": PEOPLE}}
        values = yaml.safe_load((path / name).read_text())
        own = values if name == "params.yaml" else {"orl": values["orl"]}
        (path / name).write_text(yaml.safe_dump(merged(own, changes), sort_keys=False))
    shutil.rmtree(path / "datasets/photos/mine", ignore_errors=True)
    (path / "datasets/splits.csv").unlink(missing_ok=True)
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "start"]):
        who = ["-c", "user.name=chaos", "-c", "user.email=chaos@localhost"]
        subprocess.run(["git", *who, *command], cwd=path, check=True)


def environment() -> dict[str, str]:
    """The interpreter that runs this, no variable of the caller's git or DVC."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("GIT_", "DVC_"))}
    return kept | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}


def start(path: Path) -> subprocess.Popen[bytes]:
    """`dvc repro` of the data stages, in a process group of its own; what it says goes to chaos.log."""
    log, command = path.parent / f"{path.name}.log", ["dvc", "repro", LAST]
    log.unlink(missing_ok=True)  # a stage that lost its DVC goes on writing to that of before
    with log.open("w") as file:
        return subprocess.Popen(
            command, cwd=path, env=environment(), stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )


def said(path: Path) -> str:
    """What the last run said."""
    return (path.parent / f"{path.name}.log").read_text()


def made(path: Path) -> dict[str, str]:
    """File -> sha256 of all that the data stages made, under their final names."""
    found = {}
    for name in MADE:
        root = path / "datasets" / name
        files = [root] if root.is_file() else []
        with contextlib.suppress(FileNotFoundError):  # a process that was left is at work
            files += root.rglob("*")
        for file in sorted(files):
            relative = file.relative_to(path)
            hidden = any(part.startswith(".") for part in relative.parts)
            with contextlib.suppress(FileNotFoundError):
                if file.is_file() and not hidden:
                    found[str(relative)] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def reset(path: Path) -> None:
    """Unmake everything."""
    for name in (".work", "dvc.lock", ".dvc/cache", ".dvc/tmp", *(f"datasets/{name}" for name in MADE)):
        target = path / name
        if target.is_dir():
            shutil.rmtree(target)
        target.unlink(missing_ok=True)


def kill_at_random(path: Path, expected: dict[str, str], kills: int, seed: int, longest: float) -> Outcome:
    """Kill `dvc repro` again and again, then let it finish.

    Args:
        expected: `made` of an undisturbed run.
        longest: a run is killed after at most so many seconds.
    """
    outcome, rng = Outcome(), random.Random(seed)
    while sum(outcome.kills.values()) < kills:
        delay, victim = rng.uniform(0.2, longest), rng.choice(VICTIMS)
        process = start(path)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(delay)
        if process.poll() is None:
            outcome.kills[_kill(process, victim)] += 1
            outcome.faults += [
                f"kill {sum(outcome.kills.values())}: {fault}" for fault in _half_written(path, expected)
            ]
        elif process.returncode == 0:
            outcome.completed += 1
            outcome.faults += _differences(path, expected)
            _wait_for_orphans(path)
            reset(path)
        else:
            _locked_or_fault(path, outcome)
    _wait_for_orphans(path)
    clear_stale(path)
    finish(path, expected, outcome)
    return outcome


def _kill(process: subprocess.Popen[bytes], victim: str) -> str:
    """kill -9: everything; DVC alone, so that its stage goes on without it; or the stage alone, so that DVC fails."""
    children = psutil.Process(process.pid).children(recursive=True) if victim != "all" else []
    if victim == "stage" and children:
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        process.wait()
        return victim
    if victim == "dvc" and children:
        process.kill()
        process.wait()
        return victim
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return "all"


def _half_written(path: Path, expected: dict[str, str]) -> Iterator[str]:
    """Files under their final names that are not as they should be, and shards whose marker does not hold."""
    for name, value in made(path).items():
        if name == "datasets/splits.csv":
            rows = (path / name).read_text().splitlines()
            if len(rows) != len(set(rows)):
                yield f"{name}: a row twice"
        elif expected.get(name) != value:
            yield f"{name}: {'not as made undisturbed' if name in expected else 'nobody asked for it'}"
    for marker in (path / ".work").glob(f"*/*/{MARKER}"):
        if not marker.parent.suffix and not _finished(marker.parent):
            yield f"{marker.parent}: its marker is there and its products are not"


def _locked_or_fault(path: Path, outcome: Outcome) -> None:
    """A run that stopped by itself: turned away in words, or it is a fault. `make repro` clears what dead runs left."""
    text = said(path)
    if any(sign in text for sign in BUSY + LEFT):
        outcome.turned_away += 1
        clear_stale(path)
    else:
        outcome.faults.append(f"after a kill: {' '.join(text.splitlines()[-3:])}")


def _wait_for_orphans(path: Path) -> None:
    """Until no process works in the workspace any more."""
    while any(_works_in(process, path) for process in psutil.process_iter()):
        time.sleep(0.1)


def _works_in(process: psutil.Process, path: Path) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()) == path.resolve()
    except psutil.Error:
        return False


def _differences(path: Path, expected: dict[str, str]) -> Iterator[str]:
    found = made(path)
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            yield f"{name}: {'lost' if name not in found else 'too much' if name not in expected else 'other bytes'}"
    for file in (path / ".dvc/cache/files/md5").glob("??/*"):
        if hashlib.md5(file.read_bytes()).hexdigest() != (file.parent.name + file.name).removesuffix(".dir"):
            yield f"{file}: not what its name says"


def finish(path: Path, expected: dict[str, str], outcome: Outcome) -> None:
    """Run to the end, undisturbed, and compare."""
    if start(path).wait():
        outcome.faults.append(f"the last run failed: {' '.join(said(path).splitlines()[-3:])}")
    outcome.faults += _differences(path, expected)
    left = [str(file) for file in (path / ".work").glob("*/*.tmp")]
    outcome.faults += [f"{name}: left over" for name in left]


def two_at_once(path: Path, expected: dict[str, str]) -> Outcome:
    """Two `dvc repro` on the same folder: one does the work, the other is turned away in words or finds it done."""
    outcome = Outcome()
    reset(path)
    first = start(path)
    time.sleep(1)
    second = subprocess.run(
        ["dvc", "repro", LAST], cwd=path, env=environment(), capture_output=True, text=True, check=False
    )
    if second.returncode and not any(sign in second.stderr for sign in BUSY):
        outcome.faults.append(f"the second run failed for another reason: {second.stderr.strip()[-300:]}")
    if first.wait() and not any(sign in said(path) for sign in BUSY):
        outcome.faults.append(f"the first run failed: {said(path)[-300:]}")
    finish(path, expected, outcome)
    return outcome


def full_disk(path: Path, expected: dict[str, str]) -> Outcome | None:
    """.work on a disk of 300 kB, then, with what is there, on the ordinary one; None where no disk may be mounted."""
    outcome, work, kept = Outcome(), path / ".work", path.parent / "kept"
    reset(path)
    work.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(work)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        return None
    try:
        if not start(path).wait() or "free some space and run again" not in said(path):
            outcome.faults.append(f"a full disk was not told: {said(path)[-300:]}")
        if "Traceback" in said(path):
            outcome.faults.append("a full disk gave a traceback")
        outcome.faults += _half_written(path, expected)
        shutil.copytree(work, kept)
    finally:
        subprocess.run(["umount", str(work)], check=True)
    shutil.copytree(kept, work, dirs_exist_ok=True)
    finish(path, expected, outcome)
    return outcome


def main() -> int:
    """All of it; 1 where something is not as it should be."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args()
    print(f"chaos: {options.kills} kills, --seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "umo"
        make_workspace(path)
        started = time.monotonic()
        if start(path).wait():
            print(said(path))
            return 1
        seconds, expected = time.monotonic() - started, made(path)
        print(f"undisturbed: {len(expected)} files in {seconds:.0f} s", flush=True)
        reset(path)
        outcomes = {
            "kills": kill_at_random(path, expected, options.kills, options.seed, seconds / 2),
            "two at once": two_at_once(path, expected),
            "full disk": full_disk(path, expected),
        }
    for name, outcome in outcomes.items():
        print(f"{name}: {'no disk may be mounted here' if outcome is None else _told(outcome)}")
    faults = [fault for outcome in outcomes.values() if outcome for fault in outcome.faults]
    print("\n".join(faults) or "nothing lost, nothing doubled, nothing half-written taken for whole")
    return 1 if faults else 0


def _told(outcome: Outcome) -> str:
    kills = ", ".join(f"{count} of {victim}" for victim, count in sorted(outcome.kills.items()))
    parts = [kills, f"{outcome.completed} runs came through", f"{outcome.turned_away} turned away"]
    return f"{len(outcome.faults)} faults" + (f" ({'; '.join(parts)})" if kills else "")


if __name__ == "__main__":
    sys.exit(main())
