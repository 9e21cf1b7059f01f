"""The parts of OmniGen2's folder that no package has, under their names in it: the pipeline and the scheduler."""

import math
from typing import Any

import torch
from diffusers import ConfigMixin, DiffusionPipeline, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from umo import flow


class OmniGen2Pipeline(DiffusionPipeline):
    """Writes the folder; it draws nothing."""

    def __init__(self, transformer: Any, vae: Any, scheduler: Any, mllm: Any, processor: Any) -> None:
        super().__init__()
        parts = {"transformer": transformer, "vae": vae, "scheduler": scheduler, "mllm": mllm, "processor": processor}
        self.register_modules(**parts)  # type: ignore[attr-defined]


class FlowMatchEulerDiscreteScheduler(SchedulerMixin, ConfigMixin):
    """OmniGen2's schedule: its time t from 0 (noise) to 1 is `1 - sigma`.

    Args:
        num_train_timesteps: of the released configuration; nothing depends on it.
        dynamic_time_shift: t becomes t / (m - m t + t), `flow.shift` by m of sigma, with m of the latents' size.
    """

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000, dynamic_time_shift: bool = True) -> None:
        pass

    def shift(self, height: int, width: int) -> float:
        """m, for latents (C, height, width)."""
        return math.sqrt(height * width) / 40 if self.config["dynamic_time_shift"] else 1.0

    def sigmas(self, steps: int, height: int, width: int) -> Tensor:
        """(steps + 1,) float32 from 1 down to 0, for latents (C, height, width)."""
        return flow.shift(torch.linspace(1, 0, steps + 1, dtype=torch.float64), self.shift(height, width)).float()
