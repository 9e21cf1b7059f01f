"""The form of a run: values that differ from params.yaml, as the flows' parameters."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

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
        """Dotted key of params.yaml -> value, of all that is given. The knobs of training mean the recipe of the base
        that is trained: this one, unless `set` names another.
        """
        base = str(self.set.get("train.base", base))
        fields = (name for name in type(self).model_fields if name in KEYS)
        given = {KEYS[name].replace("BASE", base): getattr(self, name) for name in fields}
        return {key: value for key, value in given.items() if value is not None} | self.set


class TrainingOverrides(DataOverrides):
    """Values that differ from params.yaml in this run alone; what is left empty stays as it is there."""

    steps: int | SkipJsonSchema[None] = _knob("steps")
    learning_rate: float | SkipJsonSchema[None] = _knob("learning_rate")
    reward_weight: float | SkipJsonSchema[None] = _knob("reward_weight")
    cases_per_n: int | SkipJsonSchema[None] = _knob("cases_per_n")
    seeds: int | SkipJsonSchema[None] = _knob("seeds")
