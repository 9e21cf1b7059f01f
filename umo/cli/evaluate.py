"""`umo evaluate`."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from umo.cli.tables import number, print_estimates, print_table
from umo.errors import WorkFailed


def evaluate(
    cases: Annotated[Path, typer.Argument(help="CASES.jsonl: one case a line, paths relative to this file.")],
    out: Annotated[Path, typer.Option(help="Folder for scores.parquet and metrics.json.")],
    judge: Annotated[
        str,
        typer.Option(
            help="Face models that judge, NAME,NAME; never one that rewarded. A name, a folder of insightface's or "
            "CVLface's, or a recogniser's file."
        ),
    ] = "dlib",
    calibration: Annotated[
        Path | None, typer.Option(help="The first judge's calibration, a file of umo calibrate, instead of its own.")
    ] = None,
    rewarded_by: Annotated[
        list[str] | None, typer.Option(help="A face model that rewarded or curated: its network may not judge; repeat.")
    ] = None,
    agreement: Annotated[
        str | None,
        typer.Option(
            help="Local folders of CLIP, SigLIP, SigLIP 2 or DINOv2, FOLDER,FOLDER: how far whole pictures agree with "
            "the prompt and the references. Nothing is downloaded."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, or cuda: the networks run there.")] = "cpu",
    workers: Annotated[int, typer.Option(min=0, help="Processes that look at pictures; 0 is one a core.")] = 0,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 where anything failed.")] = False,
) -> None:
    """Score drawn pictures with a judge, or several."""
    from umo.evaluation.agreement import load
    from umo.evaluation.cases import read_cases, relocated, write_cases
    from umo.evaluation.judges import Spec
    from umo.evaluation.several import evaluate_by

    asked = read_cases(cases)  # a bad line is refused before the judge is loaded
    names = [name.strip() for name in judge.split(",")]
    specs = [Spec(name, device, None if rank else calibration) for rank, name in enumerate(names)]
    models = load([name.strip() for name in agreement.split(",")], device) if agreement is not None else []
    result = evaluate_by(cases, out, specs, workers or len(os.sched_getaffinity(0)), rewarded_by or [], models)
    if not (kept := out / "CASES.jsonl").exists() or not kept.samefile(cases):
        write_cases(kept, [relocated(case, cases.parent, out) for case in asked])  # for umo report
    for found in (result, *result.get("judges", {}).values()):
        print_estimates(f"judge {found['judge']['name']}", found, "mean")
        if found["strangers"] and found["strangers"]["warning"]:
            print(found["strangers"]["warning"], file=sys.stderr)
        for failure in found["failures"]:
            print(f"{failure['case_id']}: {failure['path']}: {failure['error']}", file=sys.stderr)
    for pair in result.get("agreement", []):
        rank = "not defined" if pair["spearman"] is None else f"{pair['spearman']:.3f}"
        print(f"{' and '.join(pair['judges'])} rank {pair['n']} pictures by {pair['metric']}: Spearman {rank}")
    for found in result.get("agreement_models", []):
        _print_agreement(found)
    print(f"{result['images']} pictures of {result['cases']} cases, {len(result['failures'])} failures -> {out}")
    if strict and result["failures"]:
        raise WorkFailed(f"--strict: {len(result['failures'])} failures, listed above and in {out}/metrics.json")


def _print_agreement(found: dict[str, Any]) -> None:
    """A row each for text and references; what was cut and what was left out."""
    rows = [
        [name, *(number(found[key][value]) for value in ("mean", "low", "high")), str(found[key]["n"])]
        for name, key in (("with the prompt", "text"), ("with the references", "image"))
        if found[key]
    ]
    print_table(
        f"agreement by {found['name']} ({found['model_type']})", ["cosine", "mean", "low", "high", "cases"], rows
    )
    if not found["text"]:
        print(f"{found['name']}: reads no text, so its agreement with the prompts is left out", file=sys.stderr)
    if found["cut"]:
        print(f"{found['name']}: {found['cut']} prompts are longer than it reads and were cut", file=sys.stderr)
    for one in found["skipped"]:
        where = f": {one['path']}" if one["path"] else ""
        print(f"{found['name']}: {one['case_id']}{where}: {one['error']}; left out", file=sys.stderr)
