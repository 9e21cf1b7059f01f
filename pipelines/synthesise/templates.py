"""What is asked for: styles and scenes from a file, or the backgrounds that the embedded base knows."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, Field, ValidationError

from pipelines.core.ledger import Split
from pipelines.core.params import Section
from pipelines.core.store import PLACE
from umo.errors import BadInput
from umo.scenes.prompts import COLOURS, TEXTURES, scene_prompt
from umo.texts import line_of, read_yaml

PEOPLE = "{people}"
# Of a person: no drawing depends on them, nor on where the photograph lies; what it shows is known by its sha256.
NOT_DRAWN = {"centre", "embedding", "licence", "consent", *PLACE}


def _with_people(scene: str) -> str:
    if scene.count(PEOPLE) != 1 or set(scene.replace(PEOPLE, "")) & set("{}"):
        raise ValueError(f"must hold {PEOPLE} once and no other braces")
    return scene


class Templates(Section):
    """
    styles: how a prompt begins, such as "A watercolour painting of".
    scenes: what is seen, each with {people} once.
    """

    styles: list[str] = Field(min_length=1)
    scenes: list[Annotated[str, AfterValidator(_with_people)]] = Field(min_length=2)


@dataclass(frozen=True)
class Described:
    """A style, a scene with {people}, and the name of the background where it has one of umo/scenes/prompts.py."""

    style: str
    scene: str
    background: str | None = None


@dataclass(frozen=True)
class Asked:
    """A scene that is asked for.

    Attributes:
        name: SPLIT/NUMBER.
        described: of the scene, or of a diptych's left and right half.
        people: n photographs to draw from, with whose they are; empty where the people are invented.
    """

    name: str
    split: Split
    n: int
    prompt: str
    described: tuple[Described, ...]
    people: tuple[dict, ...] = ()

    @property
    def file_name(self) -> str:
        """The name without its slash."""
        return self.name.replace("/", "-")

    def what(self) -> dict:
        """All that its drawings depend on."""
        people = [{key: value for key, value in person.items() if key not in NOT_DRAWN} for person in self.people]
        return asdict(self) | {"people": people}

    def prompt_at(self, centres: Sequence[float]) -> str:
        """The prompt of what was drawn: its last described scene, and who stands where from left to right."""
        return scene_prompt(self.described[-1].style, self.described[-1].scene, centres)


def read(path: Path | None) -> Templates | None:
    """The templates of a YAML file, if one is named.

    Raises BadInput where it is missing, not YAML, or a template is none.
    """
    if path is None:
        return None
    try:
        return Templates.model_validate(read_yaml(path))
    except OSError as error:
        raise BadInput(f"{path}: not readable ({error.strerror}); correct synthesise.diffusion.templates") from error
    except ValidationError as error:
        first = error.errors()[0]
        key, line = ".".join(map(str, first["loc"])), line_of(path, first["loc"])
        found = "" if first["type"] == "missing" else f" (line {line}: {first['input']!r})"
        raise BadInput(f"{path}: '{key}': {first['msg']}{found}; datasets/prompts.yaml shows how") from error


def describe(templates: Templates | None, rng: np.random.Generator) -> tuple[Described, Described]:
    """Two different scenes in one style; who needs one takes the first."""
    if templates is None:
        grounds = [f"{texture} {colour}" for texture in TEXTURES for colour in COLOURS]
        left, right = (
            Described("A photo of", f"{PEOPLE} in front of a {grounds[k]} background", grounds[k])
            for k in rng.choice(len(grounds), 2, replace=False)
        )
        return left, right
    style = templates.styles[rng.integers(len(templates.styles))]
    first, second = (templates.scenes[k] for k in rng.choice(len(templates.scenes), 2, replace=False))
    return Described(style, first), Described(style, second)
