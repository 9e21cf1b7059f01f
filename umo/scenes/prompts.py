"""Prompts from a layout: how many people, who stands where in the order of the references, what background."""

import re
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
THIRDS = ("on the left", "in the middle", "on the right")
COUNTED = tuple(f"{ordinal} from the left" for ordinal in ORDINALS)
_STANDS = re.compile(rf"person ({'|'.join((*THIRDS, *COUNTED))})")


def positions(centres: Sequence[float]) -> list[str]:
    """A word a person from the horizontal centre of its face, as a part of the picture's width in [0, 1].

    Two people are left and right, three have a middle, a single one stands in its third of the picture; of four and
    more, people are counted from the left.
    """
    n = len(centres)
    if n == 1:
        return [THIRDS[min(2, int(centres[0] * 3))]]
    rank = sorted(range(n), key=lambda k: centres[k])
    words = {2: (THIRDS[0], THIRDS[2]), 3: THIRDS}.get(n, COUNTED)
    return [words[rank.index(k)] for k in range(n)]


def people(n: int) -> str:
    """How many, in words: "one person", "two people", ... up to six."""
    return f"{NUMBERS[n]} {'person' if n == 1 else 'people'}"


def places(centres: Sequence[float]) -> str:
    """Who stands where (see `prompt`): "the first person on the left and the second person on the right"."""
    who = [f"the {ORDINALS[k]} person {place}" for k, place in enumerate(positions(centres))]
    return who[0] if len(who) == 1 else f"{', '.join(who[:-1])} and {who[-1]}"


def read_places(prompt: str, n: int) -> list[float] | None:
    """The inverse of `places`: horizontal centres of n people, in the order of the references, for which it ends so.

    None where the prompt does not end as the writers here end it, or says it of another number of people.
    """
    said = prompt.removesuffix(".").rpartition(": ")[2]
    words = _STANDS.findall(said)
    if len(words) != n or not 1 <= n <= len(ORDINALS):
        return None
    centres = [
        (THIRDS.index(word) + 0.5) / len(THIRDS) if word in THIRDS else (COUNTED.index(word) + 0.5) / len(COUNTED)
        for word in words
    ]
    return centres if places(centres) == said else None


def prompt(centres: Sequence[float], background: str | None = None) -> str:
    """The prompt of a picture whose people stand at `centres`, in the order of the references.

    Args:
        centres: horizontal centre of each face as a part of the width.
        background: such as "plain blue"; left out where it is not known.
    """
    return f"{open_prompt(len(centres), background).removesuffix('.')}: {places(centres)}."


def open_prompt(n: int, background: str | None = None) -> str:
    """The prompt of n people that leaves open who stands where (see `prompt`): "A photo of two people."."""
    where = "" if background is None else f" in front of a {background} background"
    return f"A photo of {people(n)}{where}."


def scene_prompt(style: str, scene: str, centres: Sequence[float]) -> str:
    """The prompt of a described scene, such as "A watercolour of two people on a ridge: the first person ...".

    It begins with `style`; `scene` has {people} for how many, and `centres` are as in `prompt`.
    """
    return f"{style} {scene.format(people=people(len(centres)))}: {places(centres)}."


def diptych_prompt(style: str, scenes: tuple[str, str], n: int) -> str:
    """The prompt of two scenes (see `scene_prompt`) of the same people side by side, as UNO draws pairs."""
    left, right = (f"{style} {scene.format(people='the same ' + people(n))}" for scene in scenes)
    return f"A diptych, two side-by-side pictures of the same {people(n)}. On the left: {left}. On the right: {right}."
