"""What a reward compares faces with, and the parts of ours; imported without torch, for recipes hold it."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Anchor = Literal["references", "target", "pool"]
Cosine = Annotated[float, Field(ge=-1, le=1)]
Cost = Annotated[float, Field(ge=0)]


class Ours(BaseModel):
    """The parts of our reward (`umo.rewards.ours`), each on a key of its own; costs count as cosines do.

    Attributes:
        absent: cost of each person too few; 0 is none. At 2 + `doubled` or more, no face that is left out ever pays.
        doubled: cost of each face beyond the first of the same person; 0 is none.
        surplus: cost of each face too many; 0 is none. It must stay below what likeness is worth, about .5, or leaving
            somebody out pays where there is a stranger too.
        per_person: divide by the M people asked for; false divides by M times N faces, as MIMR does.
        stranger: cosine below which a face is not pushed away from other people; `measured` takes the one that 95 of
            100 pairs of strangers stay below, by the face model's calibration; null pushes without end, as MIMR does.
        ceiling: cosine above which a face is not pulled any closer; `measured` takes the median of two photographs of
            one person; null is none.
        anchor: what drawn faces are compared with; null takes the recipe's own.
        place_absent: where faces are too few, somebody absent pulls at the place that the target leaves free. It adds
            a gradient, and nothing to the reward's value.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    absent: Cost = 2.25
    doubled: Cost = 0.25
    surplus: Cost = 0.25
    per_person: bool = True
    stranger: Cosine | Literal["measured"] | None = "measured"
    ceiling: Cosine | Literal["measured"] | None = "measured"
    anchor: Anchor | None = "pool"
    place_absent: bool = True
