"""Supervised fine-tuning: the base's ordinary flow-matching loss alone. The control of all that have a reward."""

from typing import ClassVar

from umo.training.objectives.base import Objective


class Sft(Objective):
    """`diffusion_weight * diffusion_loss`, and the KL at the same inputs; measures a reward, and is not moved by it."""

    rewarded: ClassVar[bool] = False
