"""What drawn scenes show: styles and scenes from a file, or the backgrounds that the embedded base knows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import yaml
from pydantic import AfterValidator, Field, ValidationError

from pipelines.core.params import Section
from umo.errors import BadInput
from umo.scenes.prompts import COLOURS, TEXTURES

PEOPLE = "{people}"


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


def read(path: Path) -> Templates:
    """The templates of a YAML file.

    Raises:
        BadInput: it is missing, not YAML, or a template is none.
    """
    try:
        return Templates.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise BadInput(f"{path}: not readable ({error.strerror}); correct synthesise.diffusion.templates") from error
    except yaml.YAMLError as error:
        raise BadInput(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    except ValidationError as error:
        faults = "; ".join(f"'{'.'.join(map(str, fault['loc']))}': {fault['msg']}" for fault in error.errors())
        raise BadInput(f"{path}: {faults}; datasets/prompts.yaml shows how") from error


def describe(templates: Templates | None, rng: np.random.Generator) -> tuple[Described, Described]:
    """Two different scenes in one style; who needs one takes the first."""
    if templates is None:
        grounds = [f"{texture} {colour}" for texture in TEXTURES for colour in COLOURS]
        first, second = (grounds[k] for k in rng.choice(len(grounds), 2, replace=False))
        return _before(first), _before(second)
    style = templates.styles[rng.integers(len(templates.styles))]
    first, second = (templates.scenes[k] for k in rng.choice(len(templates.scenes), 2, replace=False))
    return Described(style, first), Described(style, second)


def _before(background: str) -> Described:
    return Described("A photo of", f"{PEOPLE} in front of a {background} background", background)
