"""The base models that params.yaml names under `bases`, and the people each has seen."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, RootModel

from pipelines.core import products
from pipelines.core.params import Section, load
from pipelines.core.seen import PEOPLE
from pipelines.core.shards import digest, file_digest, tree_digest
from umo.errors import BadInput
from umo.guidance import Guidance
from umo.model_index import adapter_config, model_files
from umo.texts import read_json
from umo.training.recipe import Recipe

if TYPE_CHECKING:
    import torch


class Base(Section):
    """
    folder: a diffusers folder; people.json in it lists whom it was trained on, if that is known.
    lora: that makes a customizer of it (UNO's, for FLUX.1); training goes on from it.
    steps, guidance: of drawing, guidance a number or `{text: 5, image: 2}`; null takes the base's own.
    train: the recipe that it is tuned by (umo/training/recipe.py); null where it is only drawn with.
    """

    folder: Path
    lora: Path | None = None
    steps: Annotated[int, Field(ge=1)] | None = None
    guidance: Guidance | None = None
    train: Recipe | None = None

    @property
    def precision(self) -> str:
        """Of the weights, tuning and drawing alike."""
        return self.train.precision if self.train else "fp32"

    @property
    def dtype(self) -> "torch.dtype":
        import torch  # a base is looked up where nothing is computed

        return torch.bfloat16 if self.precision == "bf16" else torch.float32


class Params(RootModel[dict[str, Base]]):
    """Bases by name."""


def find(name: str) -> Base:
    """The base of that name; raises BadInput where params.yaml names none such."""
    bases = load("bases")
    assert isinstance(bases, Params)
    if name not in bases.root:
        raise BadInput(f"params.yaml: no base '{name}' under bases: choose one of {', '.join(bases.root)}")
    return bases.root[name]


def chosen() -> Base:
    """The base that `train.base` names: it is tuned, and it draws."""
    return find(load("train").model_dump()["base"])


def weights_digest(base: Base) -> str:
    """sha256 over what the base's drawings depend on; raises BadInput where its folder or its LoRA is not there."""
    if base.lora and not base.lora.exists():
        raise BadInput(f"{base.lora}: no such LoRA; params.yaml names it under bases")
    files = [(str(path.relative_to(base.folder)), file_digest(path)) for path in model_files(base.folder)]
    config = base.lora and adapter_config(base.lora)  # a folder's is part of the folder
    return digest(files, tree_digest(base.lora) if base.lora else None, *([file_digest(config)] if config else []))


def lora_of(base: Base, method: str) -> Path | None:
    """The LoRA that a method draws with, its own or the base's; raises BadInput where the method is not trained yet."""
    return _trained(method, products.LORA) if method in products.TRAINED_METHODS else base.lora


def refuse_seen(base: Base, people: Iterable[str], method: str = "base") -> None:
    """Raises BadInput where the base, or the method, was trained on one of the cases' people, or is not trained yet."""
    seen: dict[str, Path] = {}
    if (path := base.folder / PEOPLE).exists():
        listed = read_json(path)
        if not (isinstance(listed, dict | list) and all(isinstance(person, str) for person in listed)):
            raise BadInput(f"{path}: does not list the people that the base has seen; correct or remove it")
        seen |= dict.fromkeys(listed, path)
    if method in products.TRAINED_METHODS:
        path = _trained(method, products.TRAINING)
        seen |= dict.fromkeys(json.loads(path.read_text())["people"], path)
    if both := sorted(seen.keys() & set(people)):
        path = seen[both[0]]
        raise BadInput(
            f"{len(both)} people of the cases were seen in training by {path.parent} (first {both[0]}, see {path}): "
            "evaluate on people of the validation or the test split"
        )


def _trained(method: str, name: str) -> Path:
    path = products.TRAINED / method / name
    if not path.is_file():
        raise BadInput(f"{path}: missing; train the method first (dvc repro train@{method})")
    return path
