"""params.yaml: read, checked as a whole before any stage works, and handed out a section at a time."""

import difflib
from importlib import import_module
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails

from umo.errors import BadInput
from umo.texts import read_yaml

PARAMS = Path("params.yaml")
STAGES = (
    "ingest",
    "measure",
    "identify",
    "synthesise",
    "curate",
    "caption",
    "validate",
    "export",
    "cases",
    "train",
    "generate",
    "evaluate",
    "compare",
    "report",
)
SECTIONS = ("machine", "bases", *STAGES, "forget")
NO_ROOM = {"machine": ("pipelines.core.executors", "Machine"), "bases": ("pipelines.core.bases", "Params")}


class Section(BaseModel):
    """A stage's knobs: an unknown key or a value out of range is an error, not a default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation in (int, float):
            raise ValueError(f"input should be a number, found {value!r}")
        return value


def read(path: Path = PARAMS) -> dict:
    """The sections as they are written; BadInput where the file is missing, or not YAML."""
    try:
        found = read_yaml(path)
    except FileNotFoundError as error:
        raise BadInput(f"{path}: missing; run from the repository's root") from error
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    if not isinstance(found, dict):
        raise BadInput(f"{path}: holds no sections")
    return found


def load_all(stages: tuple[str, ...], path: Path = PARAMS) -> dict[str, BaseModel]:
    """Every section, checked by the `Params` of its stage's module (`machine` by the shards' `Machine`).

    Raises:
        BadInput: the file is missing or not YAML, a section or a key is missing, misspelt or out of range.
    """
    found = read(path)
    for name in found:
        if name not in stages:
            raise BadInput(f"{path}: unknown section '{name}'{_nearest(name, stages)}")
    return {stage: _section(stage, found, path) for stage in stages}


def load(stage: str, path: Path = PARAMS) -> BaseModel:
    """One stage's section, for a stage that checks another's product against it."""
    return _section(stage, read(path), path)


def model_of(section: str) -> type[BaseModel]:
    """The model of a section: `Params` of its room's stage, but for the two that belong to no room."""
    module, name = NO_ROOM.get(section, (f"pipelines.{section}.stage", "Params"))
    return getattr(import_module(module), name)


def _section(stage: str, found: dict, path: Path) -> BaseModel:
    model = model_of(stage)
    try:
        return model.model_validate(found.get(stage) or {})
    except ValidationError as error:
        faults = "; ".join(_fault(stage, fault, list(model.model_fields)) for fault in error.errors())
        raise BadInput(f"{path}: {faults}") from error


def _fault(stage: str, fault: ErrorDetails, known: list[str]) -> str:
    key = ".".join(str(part) for part in (stage, *fault["loc"]))
    if fault["type"] == "extra_forbidden":
        return f"unknown key '{key}'{_nearest(str(fault['loc'][-1]), known)}"
    if fault["type"] == "missing":
        return f"key '{key}' is missing"
    if fault["type"] == "value_error":  # of a section as a whole
        return f"'{key}': {fault['ctx']['error']}"
    return f"'{key}': {fault['msg'].lower()}, found {fault['input']!r}"


def _nearest(name: str, known: tuple[str, ...] | list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(known)}"
