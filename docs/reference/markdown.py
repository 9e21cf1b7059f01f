"""Markdown of what the reference is made of."""

from collections.abc import Iterable, Sequence


class Undocumented(ValueError):
    """Something that a user sees has no meaning in the code; the message says where one is to be written."""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells may hold Markdown of one line."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    """Without line breaks; a bar would end the cell, but inside code it does not."""
    parts = " ".join(text.split()).split("`")
    return "`".join(part if k % 2 else part.replace("|", "\\|") for k, part in enumerate(parts))


def code(value: object) -> str:
    """Text as code; nothing for nothing."""
    return f"`{value}`" if str(value) else ""


def listed(names: Iterable[str], last: str = "or") -> str:
    """`a`, `b` or `c`."""
    quoted = [code(name) for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} {last} {quoted[-1]}"


def sentence(text: str) -> str:
    """With a capital and a full stop, where it begins with a word."""
    text = " ".join(text.split())
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '!', '?')) else '.'}"
