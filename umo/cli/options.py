"""Options that several commands read alike; BadInput says what was expected."""

from typing import TYPE_CHECKING

from umo.errors import BadInput

if TYPE_CHECKING:
    from umo.guidance import Guidance


def size_of(text: str | None) -> tuple[int, int] | None:
    """HEIGHTxWIDTH in pixels."""
    if text is None:
        return None
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise BadInput(f"--size {text}: give HEIGHTxWIDTH in pixels, such as 64x128")
    return int(height), int(width)


def guidance_of(text: str | None) -> "Guidance | float | None":
    """A number, or one for the text and one for the references."""
    from umo.guidance import Guidance

    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
        return numbers[0] if len(numbers) == 1 else Guidance(**dict(zip(("text", "image"), numbers, strict=True)))
    except ValueError as error:
        raise BadInput(f"--guidance {text}: give a number, or two such as 5,2") from error


def shard_of(text: str) -> tuple[int, int]:
    """K/N."""
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise BadInput(f"--shard {text}: give K/N with K from 1 to N, such as 2/8")
    return int(number), int(of)
