"""What decides about sets."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipelines.core.params import Section

Cosine = Annotated[float, Field(ge=-1, le=1)]
Degrees = Annotated[float, Field(ge=0, le=180)]
People = Annotated[int, Field(ge=1, le=6)]


class Params(Section):
    """
    min_people, max_people: in a target.
    min_people_ingested: in a target that is a photograph and not a synthesised scene.
    min_side: of every face in a target (pixels).
    min_overlap: intersection over union of a face found in a scene and the box where it was placed.
    min_cosine, max_cosine: between reference and target face; the upper bound guards against copy-paste.
    min_person_cosine: between a target's face and its person's centre.
    max_source_cosine: between a reference and the photographed face that the target's was made from (where there is
        none, the target's own): a near copy of that photograph is no other photograph.
    max_cross_cosine: between two people of a target.
    max_candidates: photographs that are looked at for a face of a target, from its album or long video and from all
        others each. Of somebody with more, a drawn sample that goes round the clips and the albums.
    pose_bin: degrees, by kind of target. References are taken in turn from bins of yaw and pitch so wide around the
        pose of the target, whose own bin comes a turn later; 0 takes them as drawn.
    pool: references a person at most; the first is the reference, the others are spare.
    max_sets_per_person: by split, a person at most.
    max_share_of_n: sets with one number of people, as a part of their split's; 1 lets all pass. A split with too few
        different numbers for that has equal shares.
    seed: of every draw.
    """

    min_people: People
    max_people: People
    min_people_ingested: People
    min_side: float = Field(ge=1)
    min_overlap: float = Field(gt=0, le=1)
    min_cosine: Cosine
    max_cosine: Cosine
    min_person_cosine: Cosine
    max_source_cosine: Cosine
    max_cross_cosine: Cosine
    max_candidates: int = Field(ge=1)
    pose_bin: dict[Literal["ingested", "synthesised"], Degrees]
    pool: int = Field(ge=1)
    max_sets_per_person: int = Field(ge=1)
    max_share_of_n: float = Field(gt=0, le=1)
    seed: int = Field(ge=0)

    @model_validator(mode="after")
    def _ranges_fit(self) -> "Params":
        if self.min_cosine >= self.max_cosine:
            raise ValueError("min_cosine must be below max_cosine")
        if self.min_people > self.max_people:
            raise ValueError("min_people must not exceed max_people")
        return self
