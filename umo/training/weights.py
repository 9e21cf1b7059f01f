"""The weights that are trained, their running average, and the best of a run."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import nn


class Weights(list[nn.Parameter]):
    """What an optimizer changes; those that count are the averaged ones, where there is an average (a decay above 0).

    Attributes:
        ema: the average, None without.
        best: of the weights that count, those kept last; None before.
    """

    def __init__(self, trained: Sequence[nn.Parameter], decay: float) -> None:
        super().__init__(trained)
        self.ema = EMAModel(self, decay=decay, use_ema_warmup=False) if decay else None
        self.best: list[torch.Tensor] | None = None

    def average(self) -> None:
        """Take the present weights into the average."""
        if self.ema is not None:
            self.ema.to(self[0].device)  # the network may have been moved since
            self.ema.step(self)

    def averaged(self) -> AbstractContextManager[None]:
        """With the averaged weights in place."""
        return self.replaced(None if self.ema is None else self._result())

    @contextmanager
    def replaced(self, values: Sequence[torch.Tensor] | None) -> Iterator[None]:
        """With others in place; None leaves these."""
        if values is None:
            yield
            return
        present = [weight.detach().clone() for weight in self]
        self._copy(values)
        try:
            yield
        finally:
            self._copy(present)

    def copies(self) -> list[torch.Tensor]:
        """Of the weights that count."""
        return [weight.detach().clone() for weight in self._result()]

    def keep_best(self) -> None:
        """Remember the weights that count."""
        self.best = self.copies()

    def install_result(self) -> None:
        """Put the best in place, or the last where none were kept."""
        self._copy(self._result() if self.best is None else self.best)

    def state(self) -> dict[str, Any]:
        """All of it, for a checkpoint."""
        return {
            "weights": [weight.detach() for weight in self],
            "ema": None if self.ema is None else self.ema.state_dict(),
            "best_weights": self.best,
        }

    def take(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        self._copy(state["weights"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
            self.ema.to(self[0].device)
        self.best = state["best_weights"]

    def _result(self) -> Sequence[torch.Tensor]:
        return self if self.ema is None else self.ema.shadow_params

    @torch.no_grad()
    def _copy(self, values: Sequence[torch.Tensor]) -> None:
        for weight, value in zip(self, values, strict=True):
            weight.copy_(value)
