"""Pictures with boxes and lines drawn over them, as inline SVG: their text stays sharp and small screens can scroll."""

import base64
import html
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from umo.images import encode_jpeg

COLOURS = ("#d9740b", "#2272c9", "#1d8a4c", "#c23a83", "#7650c4", "#7d7a12")
GREY = "#5d6773"
GAP = 6
TEXT = 12  # height of letters, in the page's pixels
TAG = 16  # height of a label
LINES = 46  # height of the space for lines between references and picture
TILE = 96  # side of a reference above its lines


class Mark(NamedTuple):
    """A box over a picture."""

    box: tuple[float, float, float, float]  # x0, y0, x1, y1 in the picture's pixels
    text: str
    number: int | None  # the same, the same colour; None is grey


class Picture(NamedTuple):
    """(H, W, 3) uint8 RGB and the boxes over it."""

    image: np.ndarray
    marks: Sequence[Mark] = ()


class Link(NamedTuple):
    """A line from a reference to a face below."""

    reference: int  # its number, which is also the line's colour
    face: int  # the number of the mark that the line ends at
    text: str  # written on the line
    dashed: bool


def framed(image: np.ndarray, text: str, number: int) -> Picture:
    """A picture with a box around the whole of it."""
    height, width = image.shape[:2]
    return Picture(image, [Mark((0, 0, width, height), text, number)])


def grid(headings: Sequence[str], rows: Sequence[Sequence[Sequence[Picture]]], width: int) -> str:
    """A contact sheet: columns of one width under their headings; a cell holds one or several pictures side by side.

    All pictures of a row have one height, the largest at which every cell fits its column. The labels of their boxes
    stand below them, where they cover no face.

    Args:
        rows: cells, one a heading.
        width: of the sheet in the page's pixels.
    """
    column = (width - GAP * (len(headings) - 1)) / len(headings)
    parts = [_text(k * (column + GAP), TEXT + 1, heading) for k, heading in enumerate(headings)]
    y = TEXT + 8.0
    for row in rows:
        height = min(fitting_height([picture.image for picture in cell], column) for cell in row)
        for k, cell in enumerate(row):
            x = k * (column + GAP)
            for picture in cell:
                parts += [_drawn(picture, x, y, height), _captions(picture, x, y + height, height)]
                x += _aspect(picture) * height + GAP
        y += height + TAG + 2 * GAP
    return _svg(parts, width, y - 2 * GAP)


def fitting_height(images: Sequence[np.ndarray], width: float, gap: int = GAP) -> float:
    """The height at which images side by side, with gaps between them, fill a width."""
    return (width - gap * (len(images) - 1)) / sum(image.shape[1] / image.shape[0] for image in images)


def _aspect(picture: Picture) -> float:
    height, width = picture.image.shape[:2]
    return width / height


def panel(references: Sequence[Picture], picture: Picture, links: Sequence[Link], width: int) -> str:
    """References in a row, the picture below them, and for each link a line from reference to face.

    A line runs from the middle of the reference's lower edge to the middle of the upper edge of the face's box.

    Args:
        width: of the picture in the page's pixels.
    """
    n = len(references)
    tile = min(TILE, (width - GAP * (n - 1)) / n)
    middles = [(k + 0.5) * width / n for k in range(n)]
    below, scale = tile + LINES, width / picture.image.shape[1]
    tops = [((mark.box[0] + mark.box[2]) / 2 * scale, below + mark.box[1] * scale) for mark in picture.marks]
    lines = [(link, middles[link.reference], tile, *tops[link.face]) for link in links]
    placed = [
        *((one, x - _aspect(one) * tile / 2, 0.0, tile) for one, x in zip(references, middles, strict=True)),
        (picture, 0.0, below, width / _aspect(picture)),
    ]
    layers = [
        *(_drawn(*each) for each in placed),
        *(_line(*each) for each in lines),
        *(_labels(*each) for each in placed),
        *(_on_line(*each) for each in lines),
    ]
    return _svg(layers, width, below + width / _aspect(picture))


def _svg(parts: Sequence[str], width: float, height: float) -> str:
    size = f'viewBox="0 0 {width:g} {height:.1f}" style="max-width:{width:g}px"'
    return f'<svg class="pictures" xmlns="http://www.w3.org/2000/svg" {size}>{"".join(parts)}</svg>'


def _drawn(picture: Picture, x: float, y: float, height: float) -> str:
    """The picture, as JPEG of at most two of its pixels a pixel of the page, and its boxes."""
    image, scale = picture.image, height / picture.image.shape[0]
    place = f'x="{x:.1f}" y="{y:.1f}" width="{image.shape[1] * scale:.1f}" height="{image.shape[0] * scale:.1f}"'
    if scale < 0.5:
        image = cv2.resize(image, None, fx=2 * scale, fy=2 * scale, interpolation=cv2.INTER_AREA)
    data = base64.b64encode(encode_jpeg(image, 88)).decode()
    parts = [f'<image {place} href="data:image/jpeg;base64,{data}"/>']
    for mark in picture.marks:
        x0, y0, x1, y1 = (value * scale for value in mark.box)
        box = f'<rect x="{x + x0:.1f}" y="{y + y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}"'
        parts.append(f'{box} class="halo"/>{box} class="line" stroke="{_colour(mark.number)}"/>')
    return "".join(parts)


def _captions(picture: Picture, x: float, y: float, height: float) -> str:
    """The boxes' labels in a line, each below its box unless the one before it is in the way."""
    scale, free, parts = height / picture.image.shape[0], x, []
    for mark in sorted(picture.marks, key=lambda mark: mark.box[0] + mark.box[2]):
        middle = x + (mark.box[0] + mark.box[2]) / 2 * scale
        left = max(free, middle - _tag_width(mark.text) / 2)
        parts.append(_tag(left, y, mark.text, _colour(mark.number)))
        free = left + _tag_width(mark.text) + 2
    return "".join(parts)


def _labels(picture: Picture, x: float, y: float, height: float) -> str:
    """Each box's label above its upper left corner, or inside where there is no room above."""
    scale, parts = height / picture.image.shape[0], []
    for mark in picture.marks:
        left, top = mark.box[0] * scale, mark.box[1] * scale
        parts.append(_tag(x + left, y + (top - TAG if top >= TAG else top), mark.text, _colour(mark.number)))
    return "".join(parts)


def _colour(number: int | None) -> str:
    return GREY if number is None else COLOURS[number % len(COLOURS)]


def _line(link: Link, x0: float, y0: float, x1: float, y1: float) -> str:
    line = f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"'
    dash = ' stroke-dasharray="5 4"' if link.dashed else ""
    return f'{line} class="halo"/>{line} class="line" stroke="{_colour(link.reference)}"{dash}/>'


def _on_line(link: Link, x0: float, y0: float, x1: float, y1: float) -> str:
    """A label near the reference: there, lines that cross are still apart."""
    x, y = x0 + 0.3 * (x1 - x0), y0 + 0.3 * (y1 - y0)
    return _tag(x - _tag_width(link.text) / 2, y - TAG / 2, link.text, _colour(link.reference))


def _tag(x: float, y: float, text: str, colour: str) -> str:
    box = f'<rect x="{x:.1f}" y="{y:.1f}" width="{_tag_width(text):.1f}" height="{TAG}" fill="{colour}"/>'
    return box + _text(x + 4, y + TEXT, text, "tag")


def _tag_width(text: str) -> float:
    return 8 + 0.58 * TEXT * len(text)


def _text(x: float, y: float, text: str, kind: str = "heading") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{html.escape(text)}</text>'
