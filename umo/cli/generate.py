"""`umo generate`."""

from pathlib import Path
from typing import Annotated

import typer

from umo.cli.options import guidance_of, shard_of, size_of
from umo.devices import Precision
from umo.errors import BadInput

MOST = 2**63 - 1  # that torch takes


def generate(
    out: Annotated[Path, typer.Option(help="The picture, or a folder for the pictures of a file of cases.")],
    model: Annotated[
        str, typer.Option(help="A base: a diffusers folder, or its name on the Hub, ORG/NAME or ORG/NAME@REVISION.")
    ] = "models/tiny-uno",
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
    guidance: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT[,IMAGE]",
            help="How strongly it follows the prompt and, in OmniGen2, the references, such as 5,2; the base's own "
            "without.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[Precision | None, typer.Option(help="Of the weights; bf16 on cuda, fp32 on cpu without.")] = None,
    crop: Annotated[
        bool | None,
        typer.Option(
            "--crop/--no-crop",
            help="Cut photographs around their largest face, as the base was trained; without either, only those of "
            "--reference are.",
            show_default=False,
        ),
    ] = None,
    shard: Annotated[
        str, typer.Option(metavar="K/N", help="Draw every N-th case from the K-th; other processes draw the others.")
    ] = "1/1",
) -> None:
    """Draw people from their photographs: one picture, or every case of a file."""
    from umo import licences
    from umo.customizers.hub import local_folder
    from umo.drawing.cases import generate_cases
    from umo.drawing.photographs import face_square
    from umo.generate import generate_one

    shape, part, strength = size_of(size), shard_of(shard), guidance_of(guidance)
    if cases is not None and (prompt is not None or reference):
        raise BadInput("a CASES.jsonl has its own prompts and references: leave --prompt and --reference out")
    if cases is None and (prompt is None or not reference):
        raise BadInput("nothing to draw: give --prompt and --reference for one picture, or a CASES.jsonl")
    if cases is None and part != (1, 1):
        raise BadInput(f"--shard {shard}: shares the cases of a file out: give a CASES.jsonl, or leave it out")
    base = local_folder(model)
    if cases is None:
        assert prompt is not None and reference is not None
        generate_one(base, prompt, reference, out, seed, shape, steps, strength, lora, device, crop is not False, dtype)
        print(f"{out}: drawn by {model}; {licences.line(base, lora)}")
        return
    cut = face_square if crop else None
    counts = generate_cases(
        base,
        cases,
        out,
        seeds,
        shape,
        steps,
        strength,
        lora,
        device,
        crop=cut,
        shard=part,
        dtype=dtype,
    )
    whole = f" -> {out}/CASES.jsonl" if counts.whole else f"; {out}/CASES.jsonl comes with the last shard"
    print(f"{counts.drawn} pictures drawn, {counts.kept} were there already{whole}")
    print(licences.line(base, lora))
