"""`umo generate`."""

from pathlib import Path
from typing import Annotated

import typer

from umo.devices import Precision
from umo.errors import BadInput

MOST = 2**63 - 1  # that torch takes


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
    seed: Annotated[int, typer.Option(min=-MOST, max=MOST, help="Of the noise of one picture.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="Pictures a case.")] = 1,
    size: Annotated[str | None, typer.Option(metavar="HEIGHTxWIDTH", help="In pixels; the base's own without.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps; the base's own without.")] = None,
    guidance: Annotated[float | None, typer.Option(help="The base's own without.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[Precision | None, typer.Option(help="Of the weights; bf16 on cuda, fp32 on cpu without.")] = None,
) -> None:
    """Draw people from their photographs: one picture, or every case of a file."""
    from umo import licences
    from umo.generate import generate_cases, generate_one

    shape = _size(size)
    if cases is None:
        if prompt is None or not reference:
            raise BadInput("nothing to draw: give --prompt and --reference for one picture, or a CASES.jsonl")
        generate_one(model, prompt, reference, out, seed, shape, steps, guidance, lora, device, dtype=dtype)
        print(f"{out}: drawn by {model}; {licences.line(model, lora)}")
        return
    if prompt is not None or reference:
        raise BadInput("a CASES.jsonl has its own prompts and references: leave --prompt and --reference out")
    counts = generate_cases(model, cases, out, seeds, shape, steps, guidance, lora, device, dtype=dtype)
    print(f"{counts.drawn} pictures drawn, {counts.kept} were there already -> {out}/CASES.jsonl")
    print(licences.line(model, lora))


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise BadInput(f"--size {text}: give HEIGHTxWIDTH in pixels, such as 64x128")
    return int(height), int(width)
