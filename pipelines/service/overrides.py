"""Other values for one run: it works in a workspace of its own, and what comes of it is kept as an experiment of DVC's.

The workspace is a git worktree on the same cache and the same `.work`, so that nothing is made twice; what people edit
is not touched. It holds what the repository held when the run began, uncommitted edits too, as `dvc exp run` has it.
One that was killed goes on from the finished work in `.work`.
"""

import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from configparser import RawConfigParser
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.core.params import PARAMS, load_all, read
from pipelines.core.shards import WORK
from pipelines.service.commands import ask, dvc, follow, reason
from pipelines.service.graph import Graph
from pipelines.service.repository import LOCK, cache, changes, git
from pipelines.service.writer import STATE
from umo.errors import BadInput, WorkFailed
from umo.texts import fault

SPACE = STATE / "workspace"
LOCAL = Path(".dvc/config.local")


def trained_base(root: Path = Path()) -> str:
    """`train.base` of params.yaml."""
    train = read(root / PARAMS).get("train")
    return str(train.get("base", "")) if isinstance(train, dict) else ""


def refuse_foreign(values: Mapping[str, Any], stages: Iterable[str], flow: str) -> None:
    """Raise BadInput where a value belongs to a stage that the flow does not run, or no file can hold it."""
    sections = {"machine", "bases"} | {stage.partition("@")[0] for stage in stages}  # those two are no single stage's
    for key, value in values.items():
        if bad := fault(key, name=True) or fault(str(value)):
            raise BadInput(f"overrides: {bad}: correct it")
        if "." not in key:
            raise BadInput(f"overrides: '{key}' is no section.key of {PARAMS}: write for example curate.min_cosine")
        if key.partition(".")[0] not in sections and key.partition(".")[0] in read(PARAMS):
            raise BadInput(f"overrides: '{key}' changes no stage of {flow}: leave it out, or run reproduce")


def override(file: Path, values: Mapping[str, Any]) -> None:
    """Write other values into a params.yaml, whose comments stay; BadInput where one is unknown or out of range, or its
    key leads through something that is no section.
    """
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 120, True
    yaml.indent(mapping=2, sequence=4, offset=2)
    tree = yaml.load(file)
    sections = tuple(tree)
    for key, value in values.items():
        *path, last = key.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise BadInput(f"overrides: '{key}' is no key of {PARAMS}")
        node[last] = value
    yaml.dump(tree, file)
    try:
        load_all(sections, file)
    except BadInput as error:
        raise BadInput(str(error).replace(str(file), "overrides")) from error


@contextmanager
def workspace(values: Mapping[str, Any], every: Graph, log: Callable, root: Path = Path()) -> Iterator[Path]:
    """A copy of the repository with other values, which is gone afterwards; BadInput where `override` refuses them."""
    drop(root)
    space = root / SPACE
    try:
        as_it_stands = git("stash", "create", root=root) if changes(root) else "HEAD"
        # No hook that somebody installed, to check products out for example, is meant for this.
        git("-c", f"core.hooksPath={os.devnull}", "worktree", "add", "--detach", str(SPACE), as_it_stands, root=root)
        git("reset", "--soft", git("rev-parse", "HEAD", root=root), root=space)
        override(space / PARAMS, values)
        log(f"{PARAMS} of this run: {', '.join(f'{key} = {value}' for key, value in values.items())}")
        _share(space, every, root)
        yield space
    finally:
        drop(root)


def drop(root: Path = Path()) -> None:
    """Remove the workspace of a run with other values, also one that was killed; of its pictures too, for `forget`.

    Only for who writes here alone.
    """
    if (root / SPACE).exists():
        shutil.rmtree(root / SPACE)
        git("worktree", "prune", root=root)


def _share(space: Path, every: Graph, root: Path) -> None:
    """The cache, finished work, the products that are cached, and what else lies here and git does not know."""
    local = RawConfigParser()
    local.read(root / LOCAL)
    shared = {"dir": str(cache(root)), "type": "reflink,hardlink,copy"}
    local.read_dict({"core": {"site_cache_dir": str((space / ".dvc/tmp/site").resolve())}, "cache": shared})
    with (space / LOCAL).open("w") as file:
        local.write(file)
    (root / WORK).mkdir(exist_ok=True)
    (space / WORK).symlink_to((root / WORK).resolve())
    for name in git("ls-files", "--others", "--directory", "-z", root=root).split("\0"):
        if name and not name.startswith("."):
            _link(Path(name), space, root.resolve(), every.cached)
    for name in {str(LOCK), *every.kept}:
        if (space / name).is_symlink():
            (space / name).unlink()
            shutil.copyfile(root / name, space / name)
    graphs = [name for name in git("ls-files", root=space).splitlines() if Path(name).name == "dvc.yaml"]
    ask("checkout", "--allow-missing", *graphs, root=space)


def _link(path: Path, space: Path, root: Path, cached: Collection[str]) -> None:
    """A file by a link, a folder as one of links: neither DVC nor `ingest` looks through a folder that is a link."""
    source, target = root / path, space / path
    if source.is_dir() and not source.is_symlink():
        for member in source.iterdir() if str(path) not in cached else ():
            _link(path / member.name, space, root, cached)
    elif str(path) not in cached and not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(source)


def experiment(name: str, run_id: str) -> str:
    """A run's name as DVC takes it for an experiment, for people may write what they like into a form.

    It ends with the first part of the run's id: names come again, and an earlier result must not be replaced.
    """
    return f"{re.sub(r'[^A-Za-z0-9_]+', '-', name).strip('-') or 'run'}-{run_id.partition('-')[0]}"


def save(name: str, stages: Sequence[str], kept: Sequence[str], log: Callable, space: Path) -> None:
    """Save what the run made as an experiment, or raise WorkFailed; `dvc exp show` lists it, `dvc exp apply` brings it
    back.
    """
    known = set(git("ls-files", root=space).splitlines())
    made = [name for name in [str(LOCK), *kept] if name not in known and (space / name).exists()]
    untracked = [f"--include-untracked={file}" for file in made]
    said: list[str] = []
    command = dvc("exp", "save", "--force", "--name", name, *untracked, "--", *stages)
    if follow(command, said.append, space):
        raise WorkFailed(f"the result could not be saved: {reason(said) or 'dvc exp save failed'}")
    log(f"saved as the experiment {name}: dvc exp show; dvc exp apply {name}")
