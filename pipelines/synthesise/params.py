"""The knobs of `synthesise`; a section of its own for the generators that draw."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipelines.core.ledger import Split
from pipelines.core.params import Section

Fraction = Annotated[float, Field(gt=0, le=1)]
Cosine = Annotated[float, Field(ge=-1, le=1)]
Side = Annotated[int, Field(ge=64, multiple_of=16)]


class Strict(Section):
    """The strict face filter; a drawing that fails it keeps a row with the reason.

    min_side: of every face (pixels).
    min_cosine: of a drawn face to the centre of its person's photographs; or, in a diptych, to its face in the other
        half.
    max_cosine: of a drawn face to the photograph that it was drawn from, or to its face in the other half: what is more
        alike is a copy.
    max_cross_cosine: between two people of a picture.
    max_scenes: of one case; the first seeds that pass are taken.
    """

    min_side: float = Field(ge=1)
    min_cosine: Cosine
    max_cosine: Cosine
    max_cross_cosine: Cosine
    max_scenes: int = Field(ge=1)

    @model_validator(mode="after")
    def _band_is_open(self) -> "Strict":
        if self.min_cosine >= self.max_cosine:
            raise ValueError("min_cosine must be below max_cosine")
        return self


class Diffusion(Section):
    """
    model: what draws. A name under `bases`: a customizer, which is given a photograph of each person, cut as
        `export` cuts references. Or the folder of a text-to-image pipeline of diffusers, which is given nobody: it
        draws the same invented people twice, side by side, and the halves become reference and target, as for UNO.
    licence: of what `model` draws; needed for a text-to-image pipeline, whose people have no photographs with one.
    templates: file of styles and scenes (datasets/prompts.yaml); null asks for the backgrounds that the embedded base
        knows.
    seeds: drawings a case.
    size: height, width of a drawing (of a whole diptych), pixels; null takes the model's own.
    steps, guidance: null takes the model's own.
    precision: of a text-to-image pipeline's weights.
    strict: the filter; a changed threshold draws and measures nothing anew.
    """

    model: str
    licence: str | None = None
    templates: Path | None = None
    seeds: int = Field(ge=1)
    size: tuple[Side, Side] | None = None
    steps: Annotated[int, Field(ge=1)] | None = None
    guidance: float | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    strict: Strict


class Params(Section):
    """
    generator: what draws the scenes: `composite` pastes heads from photographs, `diffusion` asks a model.
    scenes: how many, by split; of `diffusion`, how many are asked for: the filter keeps fewer.
    shard_size: scenes a shard.
    people: numbers of people, in equal shares.
    seed: of every draw.
    diffusion: its section; needed only by that generator.

    Of `composite` alone:
    height, widths: of a scene in pixels; each scene takes the smallest width that fits or a larger one.
    placement: `slots`: side by side, each head in a square as high as the scene, where another photograph of the
        person has it when exported as a reference (`export.reference_crop`), which is how the embedded base draws;
        `free`: anywhere in its part of the width, at another scale and turned.
    open_prompts: share of the scenes of each number of people whose prompt leaves open who stands where; there people
        stand in a drawn order, elsewhere in that of their references.
    min_scale, max_scale: distance from the eyes to the mouth, as a part of the height; only for `free`.
    max_roll: a head is turned by up to so many degrees; only for `free`.
    max_light: brightness and the slope of the light vary by up to this part, warmth by up to half of it.
    """

    generator: Literal["composite", "diffusion"]
    scenes: dict[Split, Annotated[int, Field(ge=0)]]
    shard_size: int = Field(ge=1)
    height: Side
    widths: list[Side] = Field(min_length=1)
    people: list[Annotated[int, Field(ge=1, le=6)]] = Field(min_length=1)
    placement: Literal["slots", "free"]
    open_prompts: float = Field(ge=0, le=1)
    min_scale: Fraction
    max_scale: Fraction
    max_roll: float = Field(ge=0, le=45)
    max_light: float = Field(ge=0, le=0.5)
    seed: int = Field(ge=0)
    diffusion: Diffusion | None = None

    @model_validator(mode="after")
    def _parts_fit(self) -> "Params":
        if self.min_scale > self.max_scale:
            raise ValueError("min_scale must not exceed max_scale")
        if self.generator == "diffusion" and self.diffusion is None:
            raise ValueError("generator diffusion needs the section diffusion")
        return self
