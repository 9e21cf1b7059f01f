"""Charts as inline SVG: histograms, shares, means with their intervals, curves of training."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

INK = "#333333"
PALETTE = ("#2f6db3", "#c8553d", "#3f8f5b")
COLOURS = {
    "target": "#1d232b",
    "pasted": "#b08a2e",
    "base": "#2f6db3",
    "sft": "#4aa3b8",
    "sir": "#3f8f5b",
    "mimr": "#c8553d",
    "ours": "#7650c4",
    "shuffled": "#98a2ad",
}
OTHERS = ("#2f6db3", "#c8553d", "#3f8f5b", "#7650c4", "#b08a2e", "#4aa3b8", "#98a2ad")  # of names that have none
SMALL = (4.6, 2.6)  # inches; three stand in a row


class Curve(NamedTuple):
    """Numbers over a training's updates."""

    updates: np.ndarray  # (n,) numbers of updates, rising
    values: np.ndarray  # (n,)
    chosen: int  # the update whose weights are the result


def histogram(
    values: Mapping[str, np.ndarray], thresholds: Mapping[str, float], label: str, low: float = -0.6, high: float = 1.0
) -> str:
    """Densities of several groups over one axis, thresholds as dashed lines.

    Args:
        values: name -> (n,) numbers.
        thresholds: name -> position.
        label: of the axis.
    """
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(SMALL[0], SMALL[1] + 0.25 * len(thresholds)), layout="constrained")
    bins = np.linspace(low, high, 65).tolist()
    for (name, numbers), colour in zip(values.items(), PALETTE, strict=False):
        if len(numbers):
            clipped = np.clip(numbers, low, high)
            axes.hist(clipped, bins, density=True, alpha=0.55, color=colour, label=f"{name} ({len(numbers):,})")
    top = axes.get_ylim()[1]
    for k, (name, position) in enumerate(thresholds.items()):
        axes.axvline(position, color=INK, linestyle="--", linewidth=1)
        text = axes.text(position, top * (1 + 0.1 * k), f"{name} {position:.2f}", va="bottom", ha="center", fontsize=8)
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    axes.set(xlabel=label, yticks=[], xlim=(low, high), ylim=(0, top * (1 + 0.1 * len(thresholds))))
    figure.legend(frameon=False, loc="outside lower center", ncols=len(values) if len(values) < 3 else 1, fontsize=8)
    return as_svg(figure)


def shares(values: Mapping[str, np.ndarray], threshold: float, label: str, low: float = -0.2) -> str:
    """How large a part of the values reaches a number, over all numbers from `low` to 1; a line a method.

    Args:
        values: method -> (n,) numbers; NaN reaches none.
        threshold: a number to be marked.
        label: of the axis.
    """
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(9, 3.4), layout="constrained")
    numbers = np.linspace(low, 1, 241)
    for k, (method, found) in enumerate(values.items()):
        reached = (found[:, None] >= numbers).mean(axis=0)
        colour = COLOURS.get(method, OTHERS[k % len(OTHERS)])
        axes.plot(numbers, reached, color=colour, linewidth=1.8, label=method)
    axes.axvline(threshold, color=INK, linestyle="--", linewidth=1)
    axes.text(threshold, 1.02, f"same person from {threshold:.2f}", va="bottom", ha="center", fontsize=8)
    axes.set(xlabel=label, ylabel="share of references", xlim=(low, 1), ylim=(0, 1.02))
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return as_svg(figure)


def intervals(panels: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]], names: Sequence[str]) -> str:
    """Means as points with their intervals as bars: a panel a metric, a line of points a name.

    Args:
        panels: metric -> series -> name -> estimate {"mean", "low", "high"}; None is not drawn.
        names: from top to bottom.
    """
    plt = pyplot()
    size = (11.5, 0.7 + 0.5 * len(names))
    figure, every = plt.subplots(1, len(panels), figsize=size, layout="constrained", sharey=True, squeeze=False)
    for axes, (title, series) in zip(every[0], panels.items(), strict=True):
        for k, (label, estimates) in enumerate(series.items()):
            found, colour = [estimates[name] for name in names], PALETTE[k % len(PALETTE)]
            rows = np.arange(len(names)) + 0.22 * (k - (len(series) - 1) / 2)
            for row, one in zip(rows, found, strict=True):
                if one["low"] is not None:
                    axes.plot([one["low"], one["high"]], [row, row], color=colour, linewidth=2, alpha=0.6)
            means = [np.nan if one["mean"] is None else one["mean"] for one in found]
            axes.plot(means, rows, "o", color=colour, markersize=5, label=label)
        axes.set(xlabel=title, yticks=range(len(names)), yticklabels=names)
        axes.grid(axis="x", color="#e3e7eb", linewidth=0.8)
        axes.tick_params(axis="y", length=0)
    every[0][0].invert_yaxis()
    handles, labels = every[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=len(labels), frameon=False)
    return as_svg(figure)


def curves(named: Mapping[str, Curve], label: str, reach: int = 0) -> str:
    """A method a colour; a dot where its weights were chosen.

    Args:
        named: method -> curve.
        label: what the curves show.
        reach: of the smoothing (see `smooth`), with the values themselves as a faint line; 0 marks every value.
    """
    plt = pyplot()
    figure, axes = plt.subplots(figsize=SMALL, layout="constrained")
    for method, curve in named.items():
        colour, line = COLOURS[method], smooth(curve.values, reach)
        if reach:
            axes.plot(curve.updates, curve.values, color=colour, linewidth=0.8, alpha=0.25)
        axes.plot(curve.updates, line, color=colour, linewidth=1.6, marker="" if reach else ".")
        height = np.interp(curve.chosen, curve.updates, line)
        axes.plot(curve.chosen, height, "o", color=colour, markersize=8, markeredgecolor="white", zorder=3)
    axes.set_title(label, loc="left", fontsize=10)
    axes.set(xlabel="update")
    axes.grid(axis="y", color="#e3e7eb", linewidth=0.8)
    return as_svg(figure)


def smooth(values: np.ndarray, reach: int) -> np.ndarray:
    """(n,) -> (n,): each value's mean with up to `reach` neighbours before it and as many after."""
    return np.array([values[max(0, k - reach) : k + reach + 1].mean() for k in range(len(values))])


def pyplot() -> Any:
    """matplotlib.pyplot, set up so that the same numbers give the same bytes."""
    import matplotlib as mpl

    mpl.use("Agg")
    # Without a fixed salt the SVG's ids, and so the report's bytes, differ from run to run.
    mpl.rcParams.update({"svg.hashsalt": "umo", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    import matplotlib.pyplot as plt

    return plt


def as_svg(figure: Any) -> str:
    """A figure as SVG; it is closed."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    pyplot().close(figure)
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]
