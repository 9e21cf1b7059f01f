"""`umo train`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from umo.devices import Precision, precision_on
from umo.errors import BadInput


def train(
    base: Annotated[
        str, typer.Option(help="What is trained: a diffusers folder, or its name on the Hub, ORG/NAME[@REVISION].")
    ],
    data: Annotated[
        str, typer.Option(help="Reference sets: a folder as exported, or what Hugging Face's datasets loads.")
    ],
    method: Annotated[
        Literal["sft", "sir", "mimr", "ours"],
        typer.Option(help="sft has no reward; sir and mimr are the paper's; ours counts people too."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the LoRA, its card and its curves.")],
    lora: Annotated[Path | None, typer.Option(help="A LoRA that the base has already; it is trained on.")] = None,
    recipe: Annotated[
        str | None, typer.Option(metavar="FILE.yaml[:KEY]", help="How it is trained; KEY, such as a.b, is a part.")
    ] = None,
    values: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A value of the recipe; repeat for others.")
    ] = None,
    reward: Annotated[
        str,
        typer.Option(help="The face model that rewards: a name, a folder, or a recogniser's file; never the judge."),
    ] = "opencv_zoo",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[
        Precision | None, typer.Option(help="The recipe's precision; without both, bf16 on cuda and fp32 on cpu.")
    ] = None,
) -> None:
    """Tune a base on reference sets; a run that was killed goes on when it is started again."""
    given = _recipe(recipe, values or [])  # what is wrong in it is said before torch is loaded
    from umo import licences
    from umo.customizers.hub import local_folder
    from umo.training import folder
    from umo.training.recipe import Recipe

    given["precision"] = precision_on(device, dtype or given.get("precision"))
    there = local_folder(base)
    job = folder.Job(there, there.resolve().name, method, Recipe.model_validate(given), reward, lora, device)
    folder.train(job, data, out)
    print(licences.line(there, lora))
    print(f"{method} on {base} -> {out}")


def _recipe(source: str | None, values: list[str]) -> dict[str, Any]:
    """A recipe's own values, checked.

    Raises:
        BadInput: the file cannot be read, or a value is unknown, out of its range or left out.
    """
    from pydantic import ValidationError

    from umo.texts import parse_yaml, read_yaml
    from umo.training.recipe import Recipe

    file, _, part = (source or "").partition(":")
    try:
        found = read_yaml(Path(file)) if source else {}
        for key in filter(None, part.split(".")):
            found = found[key]
        given = dict(found or {})
        for one in values:
            key, equals, text = one.partition("=")
            if not equals:
                raise BadInput(f"--set {one}: give KEY=VALUE, such as steps=100")
            given[key] = parse_yaml(text, f"--set {key}")
        Recipe.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or source or "--set"
        remedy = "--set steps=NUMBER, or give a --recipe" if where == "steps" else "see umo/training/recipe.py"
        raise BadInput(f"recipe: {where}: {first['msg'].lower()}; {remedy}") from error
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise BadInput(f"--recipe {source}: no recipe there ({' '.join(str(error).split())[:120]})") from error
    return given
