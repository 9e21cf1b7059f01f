"""Scenes with several people of one split, and their layout: `composite` pastes photographed heads, `diffusion` asks a
model and holds what it draws to a strict face filter.
"""

import shutil
from functools import partial
from pathlib import Path

from pipelines.core import products, store
from pipelines.core.shards import Counts, Machine, Shard
from pipelines.core.shards import run as run_shards
from pipelines.synthesise.composite import Composite
from pipelines.synthesise.diffusion import DRAWN, Diffused
from pipelines.synthesise.params import Params
from umo import records


def run(params: Params, machine: Machine) -> None:
    """Draw the scenes of each split."""
    drawn = params.generator == "diffusion" and any(params.scenes.values())  # without scenes no model is needed
    generator: Composite | Diffused = Diffused.of(params, machine) if drawn else Composite(params)
    knobs: dict = {"scenes": {}} if drawn else {"scenes": {}, "diffusion": None}  # how many there are is in the shards
    counts = run_shards(
        "synthesise",
        partial(_synthesise, generator),
        generator.shards(),
        products.SYNTHESISED,
        params=params.model_copy(update=knobs),
        machine=machine,
    )
    if drawn:  # the next run finds the drawings in .work/synthesise by their key
        shutil.rmtree(DRAWN, ignore_errors=True)
    if counts.rejects:
        accepted = counts.made.get("scenes", 0)
        attempts = accepted + sum(counts.rejects.values())
        print(f"synthesise: {accepted} of {attempts} drawings accepted ({accepted / attempts:.0%})", flush=True)


def _synthesise(generator: Composite | Diffused, shard: Shard, folder: Path) -> Counts:
    made = generator.scenes(shard)
    store.write(folder, made.images, made.pictures)
    records.write(folder / products.LAYOUT_TABLE, made.layout, records.LAYOUT)
    records.write(folder / products.SCENES_TABLE, made.scenes, records.SCENES)
    return Counts({"scenes": len(made.scenes), "faces": len(made.layout)}, made.rejects, made.pieces)
