"""The whole graph on little data, in a copy of the repository under .work: to see that it works, not what comes out."""

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import yaml

from pipelines.core.params import PARAMS
from pipelines.core.shards import ROOT, WORK
from umo.errors import WorkFailed

WORKSPACE = WORK / "smoke"


def run_smoke() -> Path:
    """Run `dvc repro` there; returns the report, or raises WorkFailed. What an earlier run finished is kept."""
    copy_repository(WORKSPACE)
    file = WORKSPACE / PARAMS
    little = yaml.safe_load((ROOT / "pipelines/smoke.yaml").read_text())
    params = merged(yaml.safe_load(file.read_text()), little)
    file.write_text(yaml.safe_dump(params, sort_keys=False))
    # DVC and DVCLive want a repository of their own, with a commit.
    subprocess.run(["git", "init", "--quiet"], cwd=WORKSPACE, check=True)
    who = ["-c", "user.name=smoke", "-c", "user.email=smoke@localhost"]
    commit = ["git", *who, "commit", "--quiet", "--allow-empty", "--message", "smoke"]
    subprocess.run(commit, cwd=WORKSPACE, check=True)
    if subprocess.run(["dvc", "repro"], cwd=WORKSPACE, check=False).returncode:
        raise WorkFailed(f"a stage failed in {WORKSPACE}; its own message is above")
    print("smoke: every stage ran. Its numbers mean nothing: too little data, too short a training.", file=sys.stderr)
    return WORKSPACE / "runs/report/report.html"


def copy_repository(target: Path) -> None:
    """Copy the files that git tracks or would track, as they are now; those that are the same already stay."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, errors="surrogateescape", check=True
    ).stdout.split("\0")
    for name in names:
        source, copy = ROOT / name, target / name
        if name == "dvc.lock" or name.startswith("runs/"):  # of another state: a workspace has its own
            continue
        if source.is_file() and not (copy.is_file() and copy.read_bytes() == source.read_bytes()):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy)


def merged(values: Mapping, overrides: Mapping) -> dict:
    """Nested values with some of them replaced."""
    both = {key: merged(values[key], new) for key, new in overrides.items() if isinstance(new, Mapping)}
    return {**values, **overrides, **both}
