"""Training a customizer's LoRA: SFT and ReReFL (arXiv 2509.06818) on accelerate.

`recipe` says how, `samples` what on, `rerefl` is Algorithm 1, `trainer` the run around it, `checkpoints` its memory.
"""

from umo.training.recipe import Method, Recipe
from umo.training.samples import Sample, Samples
from umo.training.trainer import Progress, Trainer

__all__ = ["Method", "Progress", "Recipe", "Sample", "Samples", "Trainer"]
