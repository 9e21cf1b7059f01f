"""Where a run stands."""

import math
from dataclasses import dataclass, field

Row = dict[str, float]


@dataclass
class Progress:
    """What a run knows beside its weights; part of a checkpoint.

    Attributes:
        step: updates done.
        evaluations: samples that went forward through the transformer for them, of all processes; each branch of
            guidance counts, a backward pass does not, nor validation.
        history: (update, figures) as logged.
        skipped: updates without a finite loss and gradient.
        bad: of them, those in a row up to now.
        best: the best validation reward so far, and the update it was measured after.
        stale: validations since then.
        stopped: the run stopped early.
        chosen: the weights of `best_step` are the result, not the last.
    """

    step: int = 0
    evaluations: int = 0
    history: list[tuple[int, Row]] = field(default_factory=list)
    skipped: int = 0
    bad: int = 0
    best: float = -math.inf
    best_step: int = 0
    stale: int = 0
    stopped: bool = False
    chosen: bool = False
