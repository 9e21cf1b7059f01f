"""Curves of likeness over evaluations of the network, and what a form of ReReFL costs by them beside another."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from bench.result import Result
from umo.training.recipe import Recipe

NAME = "rerefl-evaluations"
BAR = 1 / 3
FAITHFUL = "faithful"


@dataclass(frozen=True)
class Point:
    """Where a training stands after some updates.

    Attributes:
        forwards, backwards: samples that went through the network since the start.
        seconds: of the updates alone.
        likeness: `id_sim_strict` of the people held out: mean, low, high (95 %), n; of several trainings mean, by_seed.
    """

    update: int
    forwards: float
    backwards: float
    seconds: float
    likeness: dict[str, Any]

    @property
    def passes(self) -> float:
        """Forwards, a backward counted as two of them."""
        return self.forwards + 2 * self.backwards


def compare(trained: Mapping[str, Sequence[Sequence[Point]]], recipe: Recipe, judge: str) -> Result:
    """The result of curves: first crossings of the level that the faithful form ends at, against its own first one.

    A noisy curve reaches a level early; so does the faithful one (`faithful_crossing`, a part of its whole cost).

    Args:
        trained: curves of each form, one a seed, the same seeds for all; what is compared is their mean. `by_seed`
            compares each seed's with the faithful form's own.
    """
    curves = {name: mean_curve(seeds) for name, seeds in trained.items()}
    last = curves[FAITHFUL][-1]
    ratios = _ratios(curves, "forwards")
    reached = [ratio for name, ratio in ratios.items() if name != FAITHFUL and ratio is not None]
    each = [dict(zip(trained, seeds, strict=True)) for seeds in zip(*trained.values(), strict=True)]
    by_seed = [_ratios(one, "forwards") for one in each]
    return Result(
        name=NAME,
        value=min(reached, default=None),
        unit="transformer evaluations until the faithful form's last likeness: the cheapest form / the faithful one",
        against="ReReFL as published: for every update a rollout from noise",
        bar=BAR,
        lower_is_better=True,
        details={
            "level": last.likeness["mean"],
            "judge": judge,
            "seeds": len(each),
            "ratios": ratios,
            "by_seed": {name: [one[name] for one in by_seed] for name in curves},
            "ratios_with_backward": _ratios(curves, "passes"),
            "faithful_crossing": (_crossing(curves[FAITHFUL], last, "forwards") or 0.0) / last.forwards,
            "seconds_of_updates": {name: points[-1].seconds for name, points in curves.items()},
            "learning_rate": recipe.learning_rate,
            "batch": recipe.batch,
            "curves": {
                name: [asdict(point) | {"passes": point.passes} for point in points] for name, points in curves.items()
            },
        },
    )


def mean_curve(seeds: Sequence[Sequence[Point]]) -> list[Point]:
    """Of one form's trainings, measured after the same updates: means over the seeds."""
    return [
        Point(
            points[0].update,
            fmean(point.forwards for point in points),
            fmean(point.backwards for point in points),
            round(fmean(point.seconds for point in points), 1),
            {
                "mean": fmean(point.likeness["mean"] for point in points),
                "by_seed": [point.likeness for point in points],
            },
        )
        for points in zip(*seeds, strict=True)
    ]


def _ratios(curves: Mapping[str, Sequence[Point]], cost: str) -> dict[str, float | None]:
    """Of every form; None where it never reaches the level, or where the faithful form gained nothing."""
    faithful = curves[FAITHFUL]
    if faithful[-1].likeness["mean"] <= faithful[0].likeness["mean"]:
        return dict.fromkeys(curves)
    needed = {name: _crossing(points, faithful[-1], cost) for name, points in curves.items()}
    own = needed[FAITHFUL]
    assert own is not None  # it ends there
    return {name: None if found is None else found / own for name, found in needed.items()}


def _crossing(points: Sequence[Point], last: Point, cost: str) -> float | None:
    """The cost at which a curve first reaches the likeness of `last`."""
    likeness = [point.likeness["mean"] for point in points]
    return cost_of(last.likeness["mean"], likeness, [getattr(point, cost) for point in points])


def cost_of(level: float, values: Sequence[float], costs: Sequence[float]) -> float | None:
    """What it costs until a curve first reaches a level, by straight lines between its points; None if it never does.

    Args:
        values, costs: of the points, the costs rising.
    """
    for k, value in enumerate(values):
        if value >= level:
            if k == 0:
                return costs[0]
            share = (level - values[k - 1]) / (value - values[k - 1])
            return costs[k - 1] + share * (costs[k] - costs[k - 1])
    return None
