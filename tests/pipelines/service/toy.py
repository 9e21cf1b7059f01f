"""A repository whose stages have this project's names and take no time, and a server that runs its flows."""

import os
import shutil
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from random import SystemRandom
from typing import Any

import psutil
import yaml

from pipelines.core.shards import ROOT
from pipelines.service import api
from pipelines.service.serve import alive
from tests.pipelines import quick
from tests.pipelines.conftest import Workspace

STAGE = '''
"""A stage: its products in little, from params.yaml and from what the stage before it made."""
import hashlib, json, os, pathlib, sys, time
import yaml

name, here = sys.argv[1], pathlib.Path()
params = yaml.safe_load(pathlib.Path("params.yaml").read_text())

def write(path, text):
    file = here / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text if isinstance(text, str) else json.dumps(text))

print(f"{name} says hello", flush=True)
if name == "ingest":
    write("datasets/ingested/images.txt", pathlib.Path("datasets/photos.txt").read_text())
elif name == "curate":
    kept = int(100 * params["curate"]["min_cosine"])
    counts = {"train": {"1": kept}}
    funnel = {"pictures": 100, "kept": kept, "reasons": {"too alike": 100 - kept}, "by_split_and_n": counts}
    write("datasets/curated/funnel.json", funnel)
    with open("datasets/splits.csv", "a") as ledger:
        ledger.write(f"{kept}\\n")
elif name == "validate":
    kept = json.loads(pathlib.Path("datasets/curated/funnel.json").read_text())["kept"]
    faults = [] if kept >= params["validate"]["min_sets"] else ["sets: fewer than validate.min_sets"]
    results = {"faults": faults, "suites": {"sets": {"rows": kept, "met": 1 - len(faults), "expectations": 1}}}
    for folder in ("datasets/validated", ".work/validate/" + hashlib.sha256(str(results).encode()).hexdigest()):
        write(f"{folder}/results.json", results)
        write(f"{folder}/data_docs/index.html", f"<p>{faults or 'all is well'}</p>")
    if faults:
        sys.exit(f"validate: {faults[0]}")
elif name == "export":
    import PIL.Image
    write("datasets/exported/README.md", "# card")
    PIL.Image.new("RGB", (200, 100), "green").save("datasets/exported/contact_sheet_train.jpg")
    write("datasets/exported/train-00000.parquet", "rows")
elif name == "cases":
    write("runs/cases/CASES.jsonl", "{}")
elif name == "train":
    kept = here / ".work/train/toy.partial/steps"
    kept.parent.mkdir(parents=True, exist_ok=True)
    begun = len(kept.read_text()) if kept.exists() else 0
    print(f"train begins at {begun}", flush=True)
    for step in range(begun, params["bases"]["tiny-uno"]["train"]["steps"]):
        while step > 3 and pathlib.Path(".work/gate").exists():  # a test wants to find it in the middle
            time.sleep(0.05)
        kept.write_text("." * (step + 1))
    rows = [{"update": k, "validation/reward": k / 4} for k in range(5)]
    write("runs/train/mimr/training.json", {"validation": rows})
    kept.unlink()
elif name == "compare":
    score = {"mean": 0.5, "low": 0.25, "high": 0.75}
    measures = {key: score for key in ("id_sim_strict", "id_conf", "coverage", "copy_paste")}
    write("runs/evaluate/mimr/metrics.json", measures)
    write("runs/report/report.html", "<h1>report</h1>")
'''


def _stage(name: str, deps: list[str], outs: list, params: list[str], **more: Any) -> dict[str, Any]:
    command = {"cmd": f"python stage.py {name}", "deps": ["stage.py", *deps], "outs": outs}
    return command | ({"params": params} if params else {}) | more


UNCACHED = {"cache": False}
LEDGER = {"datasets/splits.csv": UNCACHED | {"persist": True}}
STAGES: dict[str, Any] = {
    "ingest": _stage("ingest", ["datasets/photos.txt"], ["datasets/ingested"], ["ingest"]),
    "curate": _stage("curate", ["datasets/ingested"], ["datasets/curated", LEDGER], ["curate"]),
    "validate": _stage("validate", ["datasets/curated"], ["datasets/validated"], ["validate"]),
    "export": _stage("export", ["datasets/curated", "datasets/validated"], ["datasets/exported"], ["export"]),
    "cases": _stage("cases", ["datasets/exported"], ["runs/cases"], ["cases"]),
    "train": {
        "foreach": ["mimr"],
        "do": _stage("train", ["runs/cases"], ["runs/train/${item}"], ["bases"]),
    },
    "compare": _stage(
        "compare",
        ["runs/train/mimr"],
        ["runs/report"],
        [],
        metrics=[{"runs/evaluate/mimr/metrics.json": UNCACHED}],
    ),
}
DATA = ["ingest", "curate", "validate", "export"]


class Toy(Workspace):
    """The repository; its products are made and committed."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.environ: dict[str, str] = {}

    @staticmethod
    def make(path: Path) -> "Toy":
        """A new one."""
        toy = Toy(path)
        for folder in (".dvc", "datasets", "runs/train", "runs/evaluate/mimr"):
            (path / folder).mkdir(parents=True)
        for name in ("params.yaml", "prefect.yaml", ".gitignore", ".dvc/config"):
            shutil.copyfile(ROOT / name, path / name)
        toy.params(bases={"tiny-uno": {"train": {"steps": 2}}})
        (path / "dvc.yaml").write_text(yaml.safe_dump({"stages": STAGES}, sort_keys=False))
        (path / "stage.py").write_text(STAGE)
        (path / "datasets/photos.txt").write_text("ann\n")
        (path / "datasets/splits.csv").write_text("kept\n")
        toy.run("git", "init", "--quiet")
        toy.run("dvc", "repro")
        toy.commit("made")
        return toy

    def commit(self, message: str, all: bool = True) -> None:
        who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        if all:
            self.run("git", "add", "--all")
        self.run("git", *who, "commit", "--quiet", "--allow-empty", "--message", message)

    def environment(self) -> dict[str, str]:
        """With the real interpreter: what it starts is looked for among the processes, and killed."""
        programs = f"{quick.programs()}:{Path(sys.executable).parent}"
        own = {"PYTHONPATH": str(ROOT), "PATH": f"{programs}:{os.environ['PATH']}"}
        return super().environment() | own | self.environ

    def dirty(self) -> list[str]:
        return self.run("git", "status", "--porcelain").stdout.splitlines()

    def products(self) -> dict[str, bytes]:
        """Name -> bytes of all that the stages made."""
        folders = [self.path / "datasets", self.path / "runs"]
        found = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
        return {str(file.relative_to(self.path)): file.read_bytes() for file in found}


BY_HAND = {
    "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",  # no nightly run in the middle of a test
    "PREFECT_TASKS_DEFAULT_RETRY_DELAY_SECONDS": "1",
    "PREFECT_WORKER_QUERY_SECONDS": "1.5",  # each costs the server a tenth of a second
}


class Served:
    """A workspace with everything that `make serve` starts; runs are asked for as the UI does."""

    def __init__(self, workspace: Workspace, port: int) -> None:
        self.workspace, self.port = workspace, port
        self.url = f"http://127.0.0.1:{port}/api"

    def serve(self, check: bool = True) -> str:
        done = self.workspace.run("python", "-m", "pipelines", "serve", check=check)
        return done.stdout + done.stderr

    def stop(self) -> str:
        return self.workspace.run("python", "-m", "pipelines", "stop").stdout

    def start(self, flow: str, **parameters: object) -> str:
        """Ask for a run; returns its id."""
        deployment = api.call(self.url, "GET", f"deployments/name/{flow}/{flow}")
        body = {"parameters": parameters}
        return api.call(self.url, "POST", f"deployments/{deployment['id']}/create_flow_run", body)["id"]

    def state(self, run: str) -> tuple[str, str]:
        """Its state's type and message."""
        state = api.call(self.url, "GET", f"flow_runs/{run}")["state"]
        return state["type"], state["message"] or ""

    def wait(self, run: str, seconds: float = 600) -> tuple[str, str]:
        """Until it has ended; its state's type and message."""
        until(lambda: self.state(run)[0] not in api.UNFINISHED, seconds, lambda: f"{self.state(run)}, {self.logs(run)}")
        return self.state(run)

    def run(self, flow: str, **parameters: object) -> tuple[str, str, str]:
        """Run it to its end; its id, its state's type and message."""
        run = self.start(flow, **parameters)
        return run, *self.wait(run)

    def logs(self, run: str) -> list[str]:
        wanted = {"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200, "sort": "TIMESTAMP_ASC"}
        return [entry["message"] for entry in api.call(self.url, "POST", "logs/filter", wanted)]

    def gate(self, shut: bool) -> None:
        """While it is shut, training waits in the middle."""
        gate = self.workspace.path / ".work/gate"
        gate.parent.mkdir(exist_ok=True)
        gate.touch() if shut else gate.unlink(missing_ok=True)

    def says(self, run: str, text: str) -> bool:
        """Whether a line of its log has the text; what a run said last comes after its end."""
        until(lambda: any(text in line for line in self.logs(run)), 90, lambda: f"no '{text}' in {self.logs(run)}")
        return True

    def tasks(self, run: str) -> dict[str, str]:
        """Name -> state's type, in the order in which they began."""
        wanted = {"flow_runs": {"id": {"any_": [run]}}, "sort": "EXPECTED_START_TIME_ASC"}
        found = api.call(self.url, "POST", "task_runs/filter", wanted)
        return {task["name"]: task["state_type"] for task in found}

    def ran(self, run: str, expected: dict[str, str]) -> bool:
        """Whether these are its tasks; the server may note how a task ended after it has noted the run's end."""
        until(lambda: self.tasks(run) == expected, 60, lambda: f"{self.tasks(run)}, not {expected}")
        return True

    def artifacts(self, run: str) -> dict[str, str]:
        """Key -> description and Markdown."""
        found = api.call(self.url, "POST", "artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}}})
        return {artifact["key"]: f"{artifact['description']}\n{artifact['data']}" for artifact in found}

    def processes(self) -> dict[str, int]:
        """Name -> process id of what serve started and still lives."""
        return {name: process.pid for name, process in alive(self.workspace.path).items()}


def until(holds, seconds: float, otherwise=lambda: "it did not come about") -> None:
    """Wait for something to hold.

    Raises:
        AssertionError: it does not within so many seconds; `otherwise` says what was found.
    """
    deadline = time.monotonic() + seconds
    while not _yet(holds):
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.1)


def _yet(holds) -> bool:
    with suppress(OSError):  # a busy server's answer may come too late
        return holds()
    return False


def free_port() -> int:
    """A port that is free, and the one above it too: none that connections go out from, none of Ray's workers."""
    while True:
        port = SystemRandom().randrange(20_000, 32_000, 2)
        with socket.socket() as one, socket.socket() as other, suppress(OSError):
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 1))
            return port


def kill_group(pid: int) -> None:
    """kill -9 of a process and of everything in the groups that it and its children lead."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    for process in family:
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    psutil.wait_procs(family, timeout=10)
