"""`umo compare`."""

from pathlib import Path
from typing import Annotated

import typer

from umo.cli.tables import Json, print_estimates, print_json


def compare(
    dir_a: Annotated[Path, typer.Argument(help="An evaluation's folder.")],
    dir_b: Annotated[Path, typer.Argument(help="The evaluation to compare it with.")],
    as_json: Json = False,
) -> None:
    """Is A better than B? Paired by case and seed, with 95 % intervals of A - B."""
    from umo.evaluation import comparison

    result = comparison.compare(dir_a, dir_b)
    if as_json:
        print_json(result)
        return
    print_estimates("A - B", result, "difference", ["verdict", "holds"])
    print("holds: the verdict stands after the correction for the number of metrics (Holm)")
    unpaired = result["unpaired"]
    print(
        f"{result['pairs']} pairs of {result['cases']} cases, judged by {result['judge']}; "
        f"unpaired: {unpaired['a']} in {dir_a}, {unpaired['b']} in {dir_b}"
    )
