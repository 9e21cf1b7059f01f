"""Prompts from a layout: how many people, who stands where in the order of the references, what background."""

from collections.abc import Sequence

# The backgrounds that can be asked for by name: "TEXTURE COLOUR".
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (176, 58, 50),
    "orange": (222, 138, 56),
    "yellow": (226, 204, 92),
    "green": (82, 142, 86),
    "blue": (70, 110, 176),
    "purple": (128, 88, 160),
    "white": (236, 236, 232),
    "grey": (138, 138, 140),
}
TEXTURES = ("plain", "striped", "checked", "cloudy")

NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")


def positions(centres: Sequence[float]) -> list[str]:
    """A word a person from the horizontal centre of its face, as a part of the picture's width in [0, 1].

    Two people are left and right, three have a middle, a single one stands in its third of the picture; of four and
    more, people are counted from the left.
    """
    n = len(centres)
    if n == 1:
        return [("on the left", "in the middle", "on the right")[min(2, int(centres[0] * 3))]]
    rank = sorted(range(n), key=lambda k: centres[k])
    words = {2: ("on the left", "on the right"), 3: ("on the left", "in the middle", "on the right")}.get(
        n, tuple(f"{ORDINALS[k]} from the left" for k in range(n))
    )
    return [words[rank.index(k)] for k in range(n)]


def prompt(centres: Sequence[float], background: str | None = None) -> str:
    """The prompt of a picture whose people stand at `centres`, in the order of the references.

    Args:
        centres: horizontal centre of each face as a part of the width.
        background: such as "plain blue"; left out where it is not known.
    """
    n = len(centres)
    people = f"{NUMBERS[n]} {'person' if n == 1 else 'people'}"
    where = "" if background is None else f" in front of a {background} background"
    who = [f"the {ORDINALS[k]} person {place}" for k, place in enumerate(positions(centres))]
    listed = who[0] if n == 1 else f"{', '.join(who[:-1])} and {who[-1]}"
    return f"A photo of {people}{where}: {listed}."
