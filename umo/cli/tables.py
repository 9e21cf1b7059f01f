"""What the commands print."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import typer

from umo.texts import printable

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def print_json(value: Mapping[str, Any]) -> None:
    print(json.dumps(value, indent=2, allow_nan=False))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for rank, column in enumerate(columns):
        table.add_column(Text(column), justify="right" if rank else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))  # a path's brackets are no markup
    print(printable(title))  # above the table, because inside it a title breaks at the table's width
    Console().print(table)


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def print_estimates(title: str, result: Mapping[str, Any], value: str, texts: Sequence[str] = ()) -> None:
    """A row a metric: its `value` (the key of a number), the interval, the number of cases.

    Args:
        texts: more keys, of texts or of what is true or not.
    """
    from umo.evaluation.metrics import METRICS

    def row(name: str) -> list[str]:
        found = result[name]
        numbers = [number(found[key]) for key in (value, "low", "high")]
        return [
            name,
            *numbers,
            str(found["n"]),
            *({True: "yes", False: "no"}.get(found[key], found[key]) for key in texts),
        ]

    print_table(title, ["metric", value, "low", "high", "cases", *texts], map(row, METRICS))
