"""How a method moves weights: an objective sends the losses of some samples backward and says what they were."""

from umo.training.objectives.rerefl import ReReFL
from umo.training.objectives.sft import Sft
from umo.training.recipe import Method

OBJECTIVES: dict[Method, type[Sft]] = {"sft": Sft, "sir": ReReFL, "mimr": ReReFL}
