"""Training a customizer's LoRA: SFT and ReReFL (arXiv 2509.06818) on accelerate.

`recipe` says how, `samples` what on, `rerefl` is Algorithm 1, `trainer` the run around it, `checkpoints` its memory.
Names are found when they are asked for: a recipe can be read without torch.
"""

from typing import TYPE_CHECKING, Any

from umo.training.recipe import Method, Recipe

if TYPE_CHECKING:
    from umo.training.samples import Sample, Samples
    from umo.training.trainer import Progress, Trainer

__all__ = ["Method", "Progress", "Recipe", "Sample", "Samples", "Trainer"]


def __getattr__(name: str) -> Any:
    if name in ("Sample", "Samples"):
        from umo.training import samples

        return getattr(samples, name)
    if name in ("Progress", "Trainer"):
        from umo.training import trainer

        return getattr(trainer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
