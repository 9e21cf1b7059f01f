"""The base models that params.yaml names under `bases`, and the people each has seen."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import Field, RootModel

from pipelines.params import Section, load
from pipelines.shards import digest, file_digest
from umo.errors import BadInput

PEOPLE = "people.json"


class Base(Section):
    """
    folder: a diffusers folder; people.json in it lists whom it was trained on, if that is known.
    steps, guidance: of drawing; null takes the base's own.
    """

    folder: Path
    steps: Annotated[int, Field(ge=1)] | None = None
    guidance: float | None = None


class Params(RootModel[dict[str, Base]]):
    """Bases by name."""


def find(name: str) -> Base:
    """The base of that name.

    Raises:
        BadInput: params.yaml names no such base.
    """
    bases = load("bases")
    assert isinstance(bases, Params)
    if name not in bases.root:
        raise BadInput(f"params.yaml: no base '{name}' under bases: choose one of {', '.join(bases.root)}")
    return bases.root[name]


def weights_digest(base: Base) -> str:
    """sha256 over what the base's drawings depend on."""
    from umo.customizers.folder import model_files  # with torch and transformers it takes seconds

    return digest([(str(path.relative_to(base.folder)), file_digest(path)) for path in model_files(base.folder)])


def refuse_seen(base: Base, people: Iterable[str]) -> None:
    """Nobody that the base was trained on may be a case.

    Raises:
        BadInput: somebody is.
    """
    path = base.folder / PEOPLE
    seen = set(json.loads(path.read_text())) if path.exists() else set()
    both = sorted(seen & set(people))
    if both:
        raise BadInput(
            f"{len(both)} people of the cases were seen in training by {base.folder} (first {both[0]}, see {path}): "
            "evaluate on people of the validation or the test split"
        )
