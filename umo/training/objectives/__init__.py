"""How a method moves weights: an objective sends the losses of some samples backward and says what they were."""

from umo.training.objectives.base import Objective
from umo.training.objectives.grpo import GRPO
from umo.training.objectives.nft import NFT
from umo.training.objectives.rerefl import ReReFL
from umo.training.objectives.sft import Sft

OBJECTIVES: dict[str, type[Objective]] = {"sft": Sft, "rerefl": ReReFL, "nft": NFT, "grpo": GRPO}
