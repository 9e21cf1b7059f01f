"""The graph of dvc.yaml: what each stage reads, which params it takes, what it leaves."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import yaml

from docs.reference.markdown import code, table
from pipelines.core import keys
from pipelines.core.params import STAGES
from pipelines.core.shards import ROOT

DATA = ("datasets/", "runs/", "models", "params.yaml")
INTRODUCTION = """\
# Stages

The graph in `dvc.yaml`, in the order in which it runs. DVC calls a stage again when something it reads, one of its
params, the version of a library it computes with, or the code in its folders has changed; the stage then redoes only
the work whose key changed ([why a stage runs again](../where.md#what-makes-a-stage-run-again)). `{item}` stands for
each part of a stage that has several.
"""


def page() -> str:
    """The page."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    return "\n\n".join([INTRODUCTION, *(part for name in STAGES for part in _stage(name, stages[name]))])


def _stage(name: str, entry: Mapping[str, Any]) -> Iterator[str]:
    parts, work = entry.get("foreach", ()), entry.get("do", entry)
    yield f"## {name}\n\n{work['desc'].replace('->', '→')}."
    rows = [("command", code(_named(work["cmd"])))]
    if parts:
        rows.append(("parts", ", ".join(code(f"{name}@{part}") for part in parts)))
    params = [key for key in work["params"] if isinstance(key, str)]
    libraries = keys.libraries(f"pipelines.{name}.stage")
    rows += [("params", ", ".join(_link(key) for key in params)), ("libraries", ", ".join(map(code, libraries)))]
    own = parts.values() if isinstance(parts, Mapping) else []
    reads = dict.fromkeys(_product(path) for path in [*work["deps"], *own] if path.startswith(DATA))
    rows.append(("reads", _paths(reads)))
    outs = [out for kind in ("outs", "metrics") for out in work.get(kind, ())]
    of_dvc = [out for out in outs if isinstance(out, str)]
    of_git = [path for out in outs if isinstance(out, Mapping) for path in out]  # all of these have `cache: false`
    rows += [("leaves", _paths(of_dvc))] if of_dvc else []
    rows += [("leaves, kept by git", _paths(of_git))] if of_git else []
    yield table(("", ""), rows)


def _link(key: str) -> str:
    return f"[{code(_named(key))}](params.md#{key.split('.')[0]})"


def _product(path: str) -> str:
    """A model as a whole, and the run that a part of a stage takes, instead of their files."""
    if path.startswith("runs/train/"):
        return "runs/train/{item}"
    return "/".join(path.split("/")[:2]) if path.startswith(("models/", "runs/cases/")) else path


def _paths(paths: Iterable[str]) -> str:
    return "<br>".join(code(_named(path)) for path in paths)


def _named(text: str) -> str:
    return text.replace("${key}", "${item}").replace("${", "{")
