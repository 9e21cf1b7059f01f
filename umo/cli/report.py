"""`umo report`."""

from pathlib import Path
from typing import Annotated

import typer

from umo.errors import BadInput


def report(
    evaluations: Annotated[
        list[str],
        typer.Argument(metavar="[NAME=]DIR...", help="Folders of umo evaluate or umo benchmark score."),
    ],
    out: Annotated[Path, typer.Option(help="The page: one HTML file that loads nothing.")],
    leaderboard: Annotated[
        Path | None, typer.Option(help="A JSON file that keeps these evaluations beside those of before.")
    ] = None,
    title: Annotated[str, typer.Option(help="Of the page.")] = "umo report",
) -> None:
    """One page about some evaluations: pictures, tables with intervals, differences, failures."""
    try:
        from umo.reporting import page
    except ImportError as error:
        raise BadInput(f"a page needs {error.name}: pip install 'umo[report]'") from error
    page.report(evaluations, out, leaderboard, title)
    print(f"{out}" + (f", {leaderboard}" if leaderboard else ""))
