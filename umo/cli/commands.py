"""`umo match`, `evaluate`, `compare`, `generate`, `calibrate`, and what they print."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from umo.errors import BadInput

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def match(
    image: Annotated[str, typer.Argument(help="The drawn picture.")],
    reference: Annotated[list[str], typer.Option("--reference", help="A person's photograph; repeat for each person.")],
    faces: Annotated[str, typer.Option(help="The face model.")] = "opencv_zoo",
    as_json: Json = False,
) -> None:
    """Who is in a picture: cosines, assignment, rewards and metrics, with one network."""
    from umo import faces as face_models
    from umo.evaluation import scoring as evaluation

    found = evaluation.diagnose(reference, image, face_models.load(faces))
    if as_json:
        print(json.dumps(found, indent=2, allow_nan=False))
        return

    def cells(cosines: Sequence[float], assigned: int) -> list[str]:
        return [f"{cosine:.3f}" + (" *" if face == assigned else "  ") for face, cosine in enumerate(cosines)]

    matches = zip(found["references"], found["cosines"], found["assignment"], strict=True)
    _print_table(
        f"cosine ({found['faces']}); * is assigned, the same person from {found['same_person_cosine']:.3f}",
        ["reference", *(f"face {face}" for face in range(found["n_faces"]))],
        ([path, *cells(cosines, assigned)] for path, cosines, assigned in matches),
    )
    numbers = ("sir", "mimr", "id_sim", "id_conf", "id_sim_strict", "id_conf_strict")
    counts = ("covered", "missing", "duplicated", "extra")
    rows = [(name, _number(found[name])) for name in numbers] + [(name, str(found[name])) for name in counts]
    _print_table(found["image"], ["", "value"], rows)
    if not found["n_faces"]:
        print(f"{image}: no face found; every reference is missing and the rewards are 0")


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
    _print_estimates(f"judge {result['judge']['name']}", result, "mean")
    for failure in result["failures"]:
        print(f"{failure['case_id']}: {failure['path']}: {failure['error']}", file=sys.stderr)
    print(f"{result['images']} pictures of {result['cases']} cases, {len(result['failures'])} failures -> {out}")


def compare(
    dir_a: Annotated[Path, typer.Argument(help="An evaluation's folder.")],
    dir_b: Annotated[Path, typer.Argument(help="The evaluation to compare it with.")],
    as_json: Json = False,
) -> None:
    """Is A better than B? Paired by case and seed, with 95 % intervals of A - B."""
    from umo.evaluation import comparison

    result = comparison.compare(dir_a, dir_b)
    if as_json:
        print(json.dumps(result, indent=2, allow_nan=False))
        return
    _print_estimates("A - B", result, "difference", ["verdict"])
    unpaired = result["unpaired"]
    print(
        f"{result['pairs']} pairs of {result['cases']} cases, judged by {result['judge']}; "
        f"unpaired: {unpaired['a']} in {dir_a}, {unpaired['b']} in {dir_b}"
    )


def generate(
    out: Annotated[Path, typer.Option(help="The picture, or a folder for the pictures of a file of cases.")],
    model: Annotated[Path, typer.Option(help="A base: a diffusers folder.")] = Path("models/tiny-uno"),
    cases: Annotated[
        Path | None, typer.Argument(metavar="[CASES.jsonl]", help="Cases to draw, instead of one.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="What to draw.")] = None,
    reference: Annotated[
        list[Path] | None, typer.Option(help="A person's photograph; repeat in the prompt's order.")
    ] = None,
    lora: Annotated[Path | None, typer.Option(help="A LoRA for the base; diffusers' naming, or UNO's.")] = None,
    seed: Annotated[int, typer.Option(help="Of the noise of one picture.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="Pictures a case.")] = 1,
    size: Annotated[str | None, typer.Option(metavar="HEIGHTxWIDTH", help="In pixels; the base's own without.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps; the base's own without.")] = None,
    guidance: Annotated[float | None, typer.Option(help="The base's own without.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Draw people from their photographs: one picture, or every case of a file."""
    from umo.generate import generate_cases, generate_one

    height, _, width = (size or "").partition("x")
    if size is not None and not (height.isdigit() and width.isdigit()):
        raise BadInput(f"--size {size}: give HEIGHTxWIDTH in pixels, such as 64x128")
    shape = None if size is None else (int(height), int(width))
    if cases is None:
        if prompt is None or not reference:
            raise BadInput("nothing to draw: give --prompt and --reference for one picture, or a CASES.jsonl")
        generate_one(model, prompt, reference, out, seed, shape, steps, guidance, lora, device)
        print(f"{out}: drawn by {model}")
        return
    if prompt is not None or reference:
        raise BadInput("a CASES.jsonl has its own prompts and references: leave --prompt and --reference out")
    counts = generate_cases(model, cases, out, seeds, shape, steps, guidance, lora, device)
    print(f"{counts.drawn} pictures drawn, {counts.kept} were there already -> {out}/CASES.jsonl")


def calibrate(
    photos: Annotated[Path, typer.Argument(metavar="PHOTOS.csv", help="Photographs and who is in them.")],
    faces: Annotated[str, typer.Option(help="The face model.")],
    out: Annotated[Path, typer.Option(help="File for the calibration.")],
) -> None:
    """Fit a face model's same_person_cosine on photographs of known people."""
    from umo.faces import calibration

    calibration.calibrate_command(photos, faces, out)


def _print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for rank, column in enumerate(columns):
        table.add_column(column, justify="right" if rank else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    print(title)  # above the table, because inside it a title breaks at the table's width
    Console().print(table)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _print_estimates(title: str, result: Mapping[str, Any], value: str, texts: Sequence[str] = ()) -> None:
    """A row a metric: its `value` (the key of a number), the interval, the number of cases, and more keys of texts."""
    from umo.evaluation.metrics import METRICS

    rows = []
    for name in METRICS:
        found = result[name]
        numbers = [_number(found[key]) for key in (value, "low", "high")]
        rows.append([name, *numbers, str(found["n"]), *(found[key] for key in texts)])
    _print_table(title, ["metric", value, "low", "high", "cases", *texts], rows)
