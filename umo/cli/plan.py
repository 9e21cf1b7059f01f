"""`umo plan`."""

from typing import Annotated, Any, Literal

import typer

from umo.cli.options import size_of
from umo.cli.tables import Json, print_json, print_table
from umo.errors import WorkFailed

PARTS = {
    "transformer": "frozen transformer",
    "autoencoder": "frozen autoencoder",
    "lora": "LoRA, float32",
    "gradients": "its gradients",
    "optimizer": "the optimizer's state",
    "copies": "averaged and best weights",
    "faces": "face networks of the reward",
}
PASSES = {
    "diffusion_pass": "diffusion pass",
    "rollout": "rollout",
    "reward_pass": "reward pass, with the decoder",
    "optimizer_step": "optimizer's step",
}


def plan(
    base: Annotated[str, typer.Option(help="A diffusers folder, or a published base such as flux2-klein-4b.")],
    gpu_memory: Annotated[float, typer.Option(help="Of one card, in GiB.")],
    rank: Annotated[int | None, typer.Option(help="Of the LoRA. What is not given is chosen.")] = None,
    checkpointing: Annotated[bool | None, typer.Option(help="Recompute activations in the backward pass.")] = None,
    weights: Annotated[
        Literal["full", "fp8", "int8", "nf4"] | None, typer.Option(help="How the frozen transformer is stored.")
    ] = None,
    optimizer: Annotated[Literal["adamw", "adamw8bit"] | None, typer.Option(help="Its state in 32 or 8 bits.")] = None,
    size: Annotated[str | None, typer.Option(metavar="HEIGHTxWIDTH", help="In pixels; the base's own without.")] = None,
    references: Annotated[int, typer.Option(min=0, help="Of a sample.")] = 2,
    reference_size: Annotated[int | None, typer.Option(help="Side in pixels; the base's own without.")] = None,
    batch: Annotated[int, typer.Option(help="Samples at once: the recipe's micro_batch.")] = 1,
    ema: Annotated[bool, typer.Option(help="The recipe averages weights.")] = False,
    validate: Annotated[bool, typer.Option(help="The recipe validates, and keeps the best weights.")] = False,
    merge_rollout: Annotated[bool, typer.Option(help="The recipe merges the LoRA for the rollout.")] = False,
    as_json: Json = False,
) -> None:
    """Whether an update of ReReFL fits a card, part by part, and what to switch on; nothing is loaded."""
    shape = size_of(size)
    from umo.planning import search
    from umo.planning.bases import find
    from umo.planning.memory import Work

    found = find(base)
    side = reference_size or found.reference_side(references)
    work = Work(shape or found.size, references, side, batch, ema, validate, merge_rollout)
    switches = {"rank": rank, "checkpointing": checkpointing, "weights": weights, "optimizer": optimizer}
    given = {name: value for name, value in switches.items() if value is not None}
    planned = search.plan(found, work, gpu_memory, given)
    if as_json:
        print_json(_json(planned))
    else:
        _print(planned)
    if not planned.fits:
        raise WorkFailed(
            f"{base}: does not fit {gpu_memory:g} GiB: {'with what is held' if given else 'even with every switch'} it "
            f"needs {planned.memory.needed / 2**30:.1f}: take a larger card, or a smaller size, batch or base"
        )


def _print(planned: Any) -> None:
    from umo.customizers.frozen import REMEDY

    memory, work, chosen = planned.memory, planned.work, planned.chosen
    height, width = work.size
    held = [(text, getattr(memory, part)) for part, text in PARTS.items() if getattr(memory, part)]
    passes = [(f"+ {text}", getattr(memory, part)) for part, text in PASSES.items()]
    rows = [*held, *passes, ("update: all of the first, and the largest +", memory.update)]
    rows += [("before it: text encoders and autoencoder", memory.encoding), ("reserve: CUDA, cuBLAS", memory.reserve)]
    print_table(
        f"{planned.base.name}: rank {chosen.rank}, weights {chosen.weights}, {chosen.optimizer}, checkpointing "
        f"{'on' if chosen.checkpointing else 'off'}; {work.batch} of {height}x{width}, {work.references} references of "
        f"{work.side}",
        ["part", "GiB"],
        [(text, f"{size / 2**30:.2f}") for text, size in [*rows, ("needed", memory.needed)]],
    )
    if not planned.fits:
        return
    if chosen != planned.asked:
        print(f"Without a switch it needs {planned.asked_memory.needed / 2**30:.1f} GiB. The cheapest that fits:")
    if chosen.weights in ("int8", "nf4") or chosen.optimizer == "adamw8bit":
        print(f"It needs bitsandbytes ({REMEDY}).")
    print(
        "umo train --device cuda " + " ".join(f"--set {key}={_yaml(value)}" for key, value in planned.settings.items())
    )


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _json(planned: Any) -> dict[str, Any]:
    names = [*PARTS, *PASSES, "text_encoders", "reserve", "update", "encoding", "needed"]
    return {
        "base": planned.base.name,
        "fits": planned.fits,
        "gpu_memory": planned.card,
        "recipe": planned.settings,
        "bytes": {name: getattr(planned.memory, name) for name in names},
        "needed_without_switches": planned.asked_memory.needed,
    }
