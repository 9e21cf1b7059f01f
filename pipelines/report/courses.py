"""Curves of the ladder: what the judge sees of a training, over what the training has cost so far."""

from collections.abc import Mapping, Sequence
from typing import Any

from umo.reporting.figures import COLOURS, PALETTE, as_svg, pyplot

WHAT = {"id_sim_strict": "likeness (id_sim_strict)", "coverage": "people covered"}
COSTS = {"evaluations": "evaluations of the transformer, thousands", "seconds": "seconds of training"}
STYLES = ("-", "--", ":", "-.")


def courses(named: Mapping[str, Sequence[Mapping[str, Any]]], methods: Mapping[str, str]) -> str:
    """A panel for each of likeness and coverage over each cost; a line a cell, in its method's colour.

    Args:
        named: cell -> its points, rising, each with the costs and what the judge sees.
        methods: cell -> method.
    """
    plt = pyplot()
    figure, axes = plt.subplots(2, 2, figsize=(9.2, 5.6), layout="constrained")
    for row, (key, label) in zip(axes, WHAT.items(), strict=True):
        for panel, (cost, unit) in zip(row, COSTS.items(), strict=True):
            used: dict[str, int] = {}
            for name, points in named.items():
                method = methods[name]
                style = used[method] = used.get(method, -1) + 1
                scale = 1000 if cost == "evaluations" else 1
                spent = [point[cost] / scale for point in points]
                seen = [point[key] for point in points]
                colour = COLOURS.get(method, PALETTE[0])
                panel.plot(spent, seen, STYLES[style % len(STYLES)], color=colour, marker=".", label=name)
            panel.set(xlabel=unit, ylabel=label)
            panel.grid(axis="y", color="#e3e7eb", linewidth=0.8)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return as_svg(figure)
