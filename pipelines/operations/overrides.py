"""Other values for one run: they reach the stages through params.yaml, and afterwards the workspace is as it was.

DVC looks at params.yaml alone, so a run with other values writes them there. A note on disk is written first: after a
kill the next run with the same values goes on, and any other puts everything back before it begins. The result is kept
as an experiment of DVC's.
"""

import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from pipelines.operations.commands import dvc, follow
from pipelines.operations.repository import changes, git
from pipelines.params import PARAMS, load_all
from pipelines.shards import WORK
from umo.errors import BadInput, WorkFailed

NOTE = WORK / "operations" / "overrides.json"
TRIED = WORK / "operations" / "params.yaml"
LOCK_FILE = "dvc.lock"
ANY_STAGE = ("machine", "bases")  # sections that no single stage owns
Format = Literal["parquet", "webdataset", "uno", "croissant"]


# Field of the form -> key of params.yaml; BASE is the base that is trained.
KEYS = {
    "min_cosine": "curate.min_cosine",
    "max_cross_cosine": "curate.max_cross_cosine",
    "train_scenes": "synthesise.scenes.train",
    "formats": "export.formats",
    "steps": "bases.BASE.train.steps",
    "learning_rate": "bases.BASE.train.learning_rate",
    "reward_weight": "bases.BASE.train.reward_weight",
    "cases_per_n": "cases.per_n",
    "seeds": "generate.seeds",
}


def _knob(name: str) -> Any:
    """A field of the form that may stay empty; its range is checked where all of params.yaml is."""

    def no_default(schema: dict[str, Any]) -> None:  # the form shows an empty field, not a choice of types
        schema.pop("default", None)

    return Field(default=None, description=f"{KEYS[name]} in params.yaml", json_schema_extra=no_default)


class DataOverrides(BaseModel):
    """Values that differ from params.yaml in this run alone; what is left empty stays as it is there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_cosine: float | SkipJsonSchema[None] = _knob("min_cosine")
    max_cross_cosine: float | SkipJsonSchema[None] = _knob("max_cross_cosine")
    train_scenes: int | SkipJsonSchema[None] = _knob("train_scenes")
    formats: list[Format] | SkipJsonSchema[None] = _knob("formats")
    set: dict[str, Any] = Field(default={}, description="any other: {section.key: value}, as in dvc exp run -S")

    def values(self, base: str) -> dict[str, Any]:
        """Dotted key of params.yaml -> value, of all that is given.

        Args:
            base: the base that is trained; its recipe is meant by the knobs of training.
        """
        given = {
            KEYS[name].replace("BASE", base): getattr(self, name) for name in type(self).model_fields if name in KEYS
        }
        return {key: value for key, value in given.items() if value is not None} | dict(self.set)


class TrainingOverrides(DataOverrides):
    """Values that differ from params.yaml in this run alone; what is left empty stays as it is there."""

    steps: int | SkipJsonSchema[None] = _knob("steps")
    learning_rate: float | SkipJsonSchema[None] = _knob("learning_rate")
    reward_weight: float | SkipJsonSchema[None] = _knob("reward_weight")
    cases_per_n: int | SkipJsonSchema[None] = _knob("cases_per_n")
    seeds: int | SkipJsonSchema[None] = _knob("seeds")


@dataclass(frozen=True)
class Note:
    """The values that params.yaml holds now, and the stages that are to be run with them."""

    values: Mapping[str, Any]
    stages: Sequence[str]

    @staticmethod
    def read(root: Path = Path()) -> "Note | None":
        """None where no run with other values was interrupted."""
        try:
            return Note(**json.loads((root / NOTE).read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def write(self, root: Path = Path()) -> None:
        """Replace the note whole."""
        temporary = (root / NOTE).with_suffix(".tmp")
        temporary.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"values": self.values, "stages": list(self.stages)}))
        temporary.replace(root / NOTE)


def trained_base(root: Path = Path()) -> str:
    """`train.base` of params.yaml as it is committed or, where it is not, as it stands."""
    import yaml

    text = git("show", f"HEAD:{PARAMS}", root=root, missing="") or (root / PARAMS).read_text()
    return str((yaml.safe_load(text).get("train") or {}).get("base", ""))


def refuse_foreign(values: Mapping[str, Any], stages: Iterable[str], flow: str) -> None:
    """
    Raises:
        BadInput: a value belongs to a stage that the flow does not run.
    """
    sections = {stage.partition("@")[0] for stage in stages} | set(ANY_STAGE)
    for key in values:
        if "." not in key:
            raise BadInput(f"overrides: '{key}' is no section.key of {PARAMS}: write for example curate.min_cosine")
        if key.partition(".")[0] not in sections and key.partition(".")[0] in _sections():
            raise BadInput(f"overrides: '{key}' changes no stage of {flow}: leave it out, or run reproduce")


def _sections() -> tuple[str, ...]:
    from pipelines.__main__ import SECTIONS

    return SECTIONS


def overridden(text: str, values: Mapping[str, Any]) -> str:
    """params.yaml with other values; comments and layout stay.

    Raises:
        BadInput: a key leads through something that is no section.
    """
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 120, True
    yaml.indent(mapping=2, sequence=4, offset=2)
    tree = yaml.load(text)
    for key, value in values.items():
        *path, last = key.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise BadInput(f"overrides: '{key}' is no key of {PARAMS}")
        node[last] = value
    out = io.StringIO()
    yaml.dump(tree, out)
    return out.getvalue()


def begin(values: Mapping[str, Any], stages: Sequence[str], kept: Sequence[str], log: Callable, root: Path) -> bool:
    """Put back what an interrupted run left, unless it is this one's; then write the values.

    Returns:
        Whether params.yaml or a product may have changed.

    Args:
        stages: those that will run.
        kept: files that stages write and git keeps.

    Raises:
        BadInput: a value is unknown or out of range, or files that have to be put back afterwards are not committed.
    """
    left, put_back = Note.read(root), False
    if left and (left.values != values or list(left.stages) != list(stages)):
        log(f"a run with {_in_words(left.values)} was interrupted: putting {PARAMS} and the products back")
        restore(kept, log, root)
        left = None
        put_back = True
    if not values:
        return put_back
    text = overridden(_committed(PARAMS, root), values)
    _check(text, root)
    if left is None:
        refuse_unsaved([str(PARAMS), LOCK_FILE, *kept], "with overrides", root)
        Note(values, stages).write(root)
    log(f"{PARAMS} for this run: {_in_words(values)}")
    (root / PARAMS).write_text(text)
    return True


def refuse_unsaved(files: Iterable[str], when: str, root: Path) -> None:
    """
    Raises:
        BadInput: one of the files is not as it is committed, or is there and not committed.
    """
    known = set(git("ls-files", root=root).splitlines())
    loose = [name for name in files if name in set(changes(root)) or (name not in known and (root / name).exists())]
    if loose:
        others = f" and {len(loose) - 1} others" if loose[1:] else ""
        raise BadInput(
            f"a run {when} needs a clean tree, and {loose[0]}{others} is not committed: commit or restore it"
        )


def _check(text: str, root: Path) -> None:
    tried = root / TRIED
    tried.parent.mkdir(parents=True, exist_ok=True)
    tried.write_text(text)
    try:
        load_all(_sections(), tried)
    except BadInput as error:
        raise BadInput(str(error).replace(str(tried), "overrides")) from error
    finally:
        tried.unlink()


def experiment(name: str) -> str:
    """A run's name as DVC takes it for an experiment: people may write what they like into a form."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-") or "run"


def keep(name: str, stages: Sequence[str], kept: Sequence[str], log: Callable, root: Path) -> None:
    """Keep what the run made as an experiment; `dvc exp show` lists it, `dvc exp apply` brings it back.

    Raises:
        WorkFailed: DVC could not save it.
    """
    known = set(git("ls-files", root=root).splitlines())
    made = [name for name in [LOCK_FILE, *kept] if name not in known and (root / name).exists()]
    untracked = [option for file in made for option in ("--include-untracked", file)]
    said: list[str] = []
    if follow(dvc("exp", "save", "--force", "--name", name, *untracked, "--", *stages), said.append, root):
        raise WorkFailed(f"the result could not be kept: {said[-1] if said else 'dvc exp save failed'}")
    log(f"kept as the experiment {name}: dvc exp show; dvc exp apply {name}")


def restore(kept: Sequence[str], log: Callable, root: Path) -> None:
    """params.yaml, dvc.lock, what git keeps of the stages, and the products, as they were; then the note goes."""
    known = set(git("ls-tree", "-r", "--name-only", "HEAD", root=root).splitlines())
    for name in (str(PARAMS), LOCK_FILE, *kept):
        if name in known:
            git("checkout", "--quiet", "HEAD", "--", name, root=root)
        else:
            (root / name).unlink(missing_ok=True)
    said: list[str] = []
    if follow(dvc("checkout", "--force", "--allow-missing"), said.append, root):
        log(f"not all products could be put back ({said[-1] if said else ''}): dvc pull, or a run makes them")
    (root / NOTE).unlink(missing_ok=True)


def _committed(path: Path, root: Path) -> str:
    return git("show", f"HEAD:{path}", root=root) + "\n"


def _in_words(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in values.items())
