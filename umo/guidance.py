"""How strongly a picture follows what it is asked for; imported without torch, for params and recipes hold it."""

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator


class Guidance(BaseModel):
    """How strongly a picture follows what it is asked for; which forwards that takes is the family's own.

    A number stands for its `text` alone.

    Attributes:
        text: scale of the prompt, embedded (FLUX.1, FLUX.2 dev) or classifier-free (FLUX.2 klein base, Qwen, OmniGen2),
            where 1 computes the conditional branch alone.
        image: scale of the references, in families that have a branch for it (OmniGen2).
        start, end: shares of the steps, both inclusive, between which the scales hold; outside both are 1. In families
            that are drawn so (OmniGen2's `cfg_range`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: float = 1.0
    image: float = 1.0
    start: float = Field(default=0.0, ge=0, le=1)
    end: float = Field(default=1.0, ge=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, given: object) -> object:
        return {"text": given} if isinstance(given, int | float) else given

    @model_serializer
    def _to_number(self) -> float | dict[str, float]:
        fields = dict(self)
        return self.text if fields == dict(Guidance(text=self.text)) else fields

    def at(self, given: "Guidance | float | None") -> "Guidance":
        """What is given instead; itself for None, itself with another `text` for a number."""
        if isinstance(given, Guidance):
            return given
        return self if given is None else self.model_copy(update={"text": float(given)})


CONDITIONAL = Guidance()
