"""The report's pictures: histograms with their thresholds, scenes with faces boxed and named. Inline, no files."""

import base64
import io
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from pipelines.sheets import contact_sheet
from umo.images import encode_jpeg

PALETTE = ("#2f6db3", "#c8553d", "#3f8f5b", "#8a6bb1", "#b08a2e")
BOX_COLOURS = ((255, 190, 60), (90, 220, 130), (110, 180, 255), (255, 130, 200), (240, 240, 110), (180, 150, 255))


def histogram(
    values: Mapping[str, np.ndarray], thresholds: Mapping[str, float], label: str, low: float = -0.6, high: float = 1.0
) -> str:
    """Densities of several groups over one axis, thresholds as dashed lines; an inline SVG.

    Args:
        values: name -> (n,) numbers.
        thresholds: name -> position.
        label: of the axis.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    # Without a fixed salt the SVG's ids, and so the report's bytes, differ from run to run.
    mpl.rcParams.update({"svg.hashsalt": "umo", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.2, 2.7), layout="constrained")
    bins = np.linspace(low, high, 65).tolist()
    for (name, numbers), colour in zip(values.items(), PALETTE, strict=False):
        if len(numbers):
            clipped = np.clip(numbers, low, high)
            axes.hist(clipped, bins, density=True, alpha=0.55, color=colour, label=f"{name} ({len(numbers):,})")
    top = axes.get_ylim()[1]
    for k, (name, position) in enumerate(thresholds.items()):
        axes.axvline(position, color="#333333", linestyle="--", linewidth=1)
        axes.text(position, top * (1 + 0.09 * k), f" {name} {position:.2f}", va="bottom", ha="left", fontsize=8)
    axes.set(xlabel=label, yticks=[], xlim=(low, high))
    axes.legend(frameon=False, loc="upper left", fontsize=8)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def boxed(
    image: np.ndarray, boxes: Sequence[np.ndarray], names: Sequence[str], colours: Sequence[int], height: int
) -> np.ndarray:
    """A picture scaled to `height` pixels with a box and a name a face.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes: (4,) x0, y0, x1, y1 in the picture's pixels.
        names: one a box, written above it.
        colours: one a box; the same number, the same colour.
    """
    scale = height / image.shape[0]
    large = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    for box, name, number in zip(boxes, names, colours, strict=True):
        x0, y0, x1, y1 = (round(float(value) * scale) for value in box)
        colour = BOX_COLOURS[number % len(BOX_COLOURS)]
        cv2.rectangle(large, (x0, y0), (x1, y1), colour, 2, cv2.LINE_AA)
        at = (max(0, x0), max(16, y0 - 6))
        cv2.putText(large, name, at, cv2.FONT_HERSHEY_SIMPLEX, 0.55, (0, 0, 0), 4, cv2.LINE_AA)
        cv2.putText(large, name, at, cv2.FONT_HERSHEY_SIMPLEX, 0.55, colour, 1, cv2.LINE_AA)
    return large


def sheet(rows: Sequence[Sequence[np.ndarray]], height: int) -> str:
    """A contact sheet as an inline picture (data URI)."""
    data = base64.b64encode(encode_jpeg(contact_sheet(rows, height), 88)).decode()
    return f"data:image/jpeg;base64,{data}"
