"""Every knob of params.yaml: its value there, type, range and meaning, from the stages' pydantic models."""

import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import annotated_types
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from docs.reference.markdown import Undocumented, code, listed, table
from pipelines.__main__ import SECTIONS
from pipelines.core.bases import Base
from pipelines.core.params import model_of
from pipelines.core.shards import ROOT
from umo.reward_settings import Ours
from umo.training.recipe import Recipe

INTRODUCTION = """\
# Params

Every setting is a key of `params.yaml`. A section has the name of the stage that reads it; `machine` says how the
work is spread and affects no result; `bases` holds the base models and the recipes for tuning them. An unknown key, a
missing one or a value out of range ends a run before any work, in one line with the nearest known name.

Change a setting in the file, or for one experiment with `dvc exp run -S section.key=value`. "As shipped" is the value
in `params.yaml`; *italics* show the default of a key that is not written there.
"""
NAMES = {Path: "path", str: "text", bool: "true or false", int: "integer", float: "number"}
ENTRY = re.compile(r"(?P<names>[a-z_]+(?:, [a-z_]+)*): +(?P<text>.*)")


def page() -> str:
    """The page.

    Raises:
        Undocumented: a key has no meaning in the docstring of its model.
    """
    shipped = yaml.safe_load((ROOT / "params.yaml").read_text())
    return "\n\n".join([INTRODUCTION, *(part for section in SECTIONS for part in _section(section, shipped[section]))])


def _section(name: str, values: Mapping[str, Any]) -> Iterator[str]:
    yield f"## {name}"
    if name == "bases":
        yield from _bases(values)
        return
    yield from _model(model_of(name), name, values)


def _model(model: type[BaseModel], prefix: str, values: Mapping[str, Any]) -> Iterator[str]:
    """A table of the model's own keys, then one for every section inside it."""
    fields = model.model_fields
    inner = {key: found for key, field in fields.items() if (found := _inner(field.annotation))}
    yield table(
        ("key", "as shipped", "type", "meaning"),
        (
            (code(key), "below" if key in inner else _value(fields[key], values, key), _kind(fields[key]), text)
            for key, text in meanings(model).items()
        ),
    )
    for key, found in inner.items():
        yield f"### {prefix}.{key}"
        yield from _model(found, f"{prefix}.{key}", values.get(key) or {})


def _bases(bases: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Their keys are names of the user's, so that the values of all stand side by side."""
    yield f"One section for each base: {listed(bases, 'and')} are shipped. `train.base` chooses one."
    yield _beside(Base, bases)
    yield "### bases.NAME.train"
    recipes = {name: base["train"] for name, base in bases.items()}
    yield _beside(Recipe, recipes)
    yield "### bases.NAME.train.ours"
    yield _beside(Ours, {name: recipe.get("ours", {}) for name, recipe in recipes.items()})


def _beside(model: type[BaseModel], values: Mapping[str, Mapping[str, Any]]) -> str:
    def row(key: str, text: str) -> tuple[str, ...]:
        field = model.model_fields[key]
        shown = ("below" if _inner(field.annotation) else _value(field, one, key) for one in values.values())
        return (code(key), *shown, _kind(field), text)

    return table(("key", *map(code, values), "type", "meaning"), (row(*said) for said in meanings(model).items()))


def meanings(model: type[BaseModel]) -> dict[str, str]:
    """Key -> what its docstring says of it: entries `key, key: text`, whose further lines are indented; in that order.

    Raises:
        Undocumented: a key has no entry.
    """
    entries: list[tuple[list[str], str]] = []
    for line in inspect.cleandoc(model.__doc__ or "").splitlines():
        entry = ENTRY.fullmatch(line.strip())
        if entry and set(names := entry["names"].split(", ")) <= model.model_fields.keys():
            entries.append((names, entry["text"]))
        elif not line.strip():
            entries.append(([], ""))  # what follows belongs to no key, until the next entry
        elif entries:
            entries[-1] = (entries[-1][0], f"{entries[-1][1]} {line.strip()}")
    found: dict[str, str] = {}
    for names, text in entries:
        for rank, name in enumerate(names):
            shared = f"with {listed(names[1:], 'and')}: {text}" if len(names) > 1 else text
            found[name] = f"see {code(names[0])}" if rank else shared
    for key in model.model_fields:
        if not found.get(key, "").strip():
            raise Undocumented(
                f"{model.__module__}.{model.__name__}: '{key}' has no meaning; write it in the docstring"
            )
    return found


def _inner(annotation: Any) -> type[BaseModel] | None:
    """The section that a key holds, if it holds one."""
    kinds = [annotation, *get_args(annotation)]
    return next((kind for kind in kinds if inspect.isclass(kind) and issubclass(kind, BaseModel)), None)


def _value(field: FieldInfo, values: Mapping[str, Any], key: str) -> str:
    if key in values:
        return code(_yaml(values[key]))
    return "" if field.is_required() else f"*{_yaml(field.default)}*"


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False).removesuffix("...\n").strip()


def _kind(field: FieldInfo) -> str:
    return _type(field.annotation) + _range(field.metadata)


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if hasattr(annotation, "__metadata__"):
        return _type(annotation.__origin__) + _range(annotation.__metadata__)
    if origin is Literal:
        return listed(arguments)
    if origin in (list, tuple):
        kinds = [kind for kind in arguments if kind is not Ellipsis]
        several = origin is list or Ellipsis in arguments
        return f"list of {_type(kinds[0])}" if several else f"{len(kinds)} × {_type(kinds[0])}"
    if origin is dict:
        return f"{_type(arguments[1])} by {_type(arguments[0])}"
    if type(None) in arguments:
        return " or ".join([*(_type(kind) for kind in arguments if kind is not type(None)), "null"])
    if _inner(annotation):
        return "section"
    return NAMES[annotation]


def _range(constraints: Any) -> str:
    """Bounds in words, with a space in front; nothing for none."""
    said = []
    for one in constraints:
        for found in [one, *getattr(one, "metadata", ())]:
            said += [
                f"{sign} {getattr(found, name):,}".replace(",", " ")
                for kind, name, sign in (
                    (annotated_types.Ge, "ge", "≥"),
                    (annotated_types.Gt, "gt", ">"),
                    (annotated_types.Le, "le", "≤"),
                    (annotated_types.Lt, "lt", "<"),
                    (annotated_types.MultipleOf, "multiple_of", "a multiple of"),
                )
                if isinstance(found, kind)
            ]
    return f" {', '.join(said)}" if said else ""
