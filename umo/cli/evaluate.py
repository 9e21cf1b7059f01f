"""`umo evaluate`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from umo.cli.tables import print_estimates


def evaluate(
    cases: Annotated[Path, typer.Argument(help="CASES.jsonl: one case a line, paths relative to this file.")],
    out: Annotated[Path, typer.Option(help="Folder for scores.parquet and metrics.json.")],
    judge: Annotated[str, typer.Option(help="The face model that judges; never the one that rewarded.")] = "dlib",
) -> None:
    """Score drawn pictures with a judge."""
    from umo import faces as face_models
    from umo.evaluation import scoring as evaluation
    from umo.evaluation.cases import read_cases

    read_cases(cases)  # a bad line is refused before the judge is loaded
    result = evaluation.evaluate(cases, out, face_models.load(judge))
    print_estimates(f"judge {result['judge']['name']}", result, "mean")
    strangers = result["strangers"]
    if strangers and strangers["warning"]:
        print(strangers["warning"], file=sys.stderr)
    for failure in result["failures"]:
        print(f"{failure['case_id']}: {failure['path']}: {failure['error']}", file=sys.stderr)
    print(f"{result['images']} pictures of {result['cases']} cases, {len(result['failures'])} failures -> {out}")
