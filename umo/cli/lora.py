"""`umo lora`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

lora = typer.Typer(name="lora", help="LoRA files.", no_args_is_help=True, rich_markup_mode=None)


@lora.callback()
def _group() -> None:
    pass


@lora.command()
def convert(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="A LoRA of any naming: a .safetensors file or its folder.")
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="The file to write.")],
    to: Annotated[Literal["diffusers", "uno", "comfyui", "kohya"], typer.Option(help="Whose naming.")],
    family: Annotated[
        str | None, typer.Option(help="Of the base, such as FLUX.1; found from the keys without.")
    ] = None,
) -> None:
    """Write a LoRA as another program names it; alpha is laid in, and what cannot be carried over is refused."""
    from umo.customizers.lora_convert import convert as converted

    found = converted(source, target, to, family)
    ranks = " and ".join(map(str, found.ranks)) if len(found.ranks) < 3 else f"{found.ranks[0]} to {found.ranks[-1]}"
    print(f"{target}: {found.family}, {to} naming, {found.layers} layers of rank {ranks}, alpha = rank")
