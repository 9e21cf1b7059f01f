"""The `umo` command. Exit codes: 0 done, 1 the work failed, 2 bad input or usage; an expected error is one line."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from umo.errors import BadInput, WorkFailed

app = typer.Typer(
    name="umo",
    help="Matching rewards for multi-identity image customization, and the evaluation that proves them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def main() -> None:
    """Run the command; an expected error becomes one line on stderr and an exit code, never a traceback."""
    try:
        app()
    except (BadInput, WorkFailed) as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}; check the path, its permissions and the room on the disk", 1)


def _fail(message: str, exit_code: int) -> None:
    print("umo: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(exit_code)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"umo {version('umo')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    pass


@app.command()
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
        _print_json(found)
        return
    _print_cosines(found)
    _print_values(found)
    if not found["n_faces"]:
        print(f"{image}: no face found; every reference is missing and the rewards are 0")


@app.command()
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


@app.command()
def compare(
    dir_a: Annotated[Path, typer.Argument(help="An evaluation's folder.")],
    dir_b: Annotated[Path, typer.Argument(help="The evaluation to compare it with.")],
    as_json: Json = False,
) -> None:
    """Is A better than B? Paired by case and seed, with 95 % intervals of A - B."""
    from umo.evaluation import comparison

    result = comparison.compare(dir_a, dir_b)
    if as_json:
        _print_json(result)
        return
    _print_estimates("A - B", result, "difference", ["verdict"])
    unpaired = result["unpaired"]
    print(
        f"{result['pairs']} pairs of {result['cases']} cases, judged by {result['judge']}; "
        f"unpaired: {unpaired['a']} in {dir_a}, {unpaired['b']} in {dir_b}"
    )


@app.command()
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

    shape = _size(size)
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


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise BadInput(f"--size {text}: give HEIGHTxWIDTH in pixels, such as 64x128")
    return int(height), int(width)


@app.command()
def calibrate(
    photos: Annotated[Path, typer.Argument(metavar="PHOTOS.csv", help="Photographs and who is in them.")],
    faces: Annotated[str, typer.Option(help="The face model.")],
    out: Annotated[Path, typer.Option(help="File for the calibration.")],
) -> None:
    """Fit a face model's same_person_cosine on photographs of known people."""
    from umo.faces import calibration

    calibration.calibrate_command(photos, faces, out)


def _print_json(value: Mapping[str, Any]) -> None:
    print(json.dumps(value, indent=2, allow_nan=False))


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


def _print_cosines(found: Mapping[str, Any]) -> None:
    def cells(cosines: Sequence[float], assigned: int) -> list[str]:
        return [f"{cosine:.3f}" + (" *" if face == assigned else "  ") for face, cosine in enumerate(cosines)]

    matches = zip(found["references"], found["cosines"], found["assignment"], strict=True)
    _print_table(
        f"cosine ({found['faces']}); * is assigned, the same person from {found['same_person_cosine']:.3f}",
        ["reference", *(f"face {face}" for face in range(found["n_faces"]))],
        ([path, *cells(cosines, assigned)] for path, cosines, assigned in matches),
    )


def _print_values(found: Mapping[str, Any]) -> None:
    numbers = ("sir", "mimr", "id_sim", "id_conf", "id_sim_strict", "id_conf_strict")
    counts = ("covered", "missing", "duplicated", "extra")
    rows = [(name, _number(found[name])) for name in numbers] + [(name, str(found[name])) for name in counts]
    _print_table(found["image"], ["", "value"], rows)


def _print_estimates(title: str, result: Mapping[str, Any], value: str, texts: Sequence[str] = ()) -> None:
    """A row a metric: its `value` (the key of a number), the interval, the number of cases, and more keys of texts."""
    from umo.evaluation.metrics import METRICS

    def row(name: str) -> list[str]:
        found = result[name]
        numbers = [_number(found[key]) for key in (value, "low", "high")]
        return [name, *numbers, str(found["n"]), *(found[key] for key in texts)]

    _print_table(title, ["metric", value, "low", "high", "cases", *texts], map(row, METRICS))


if __name__ == "__main__":
    main()
