"""Scenes with several people, made from people of one split; the layout is kept.

What draws them is a generator (pipelines/generators): `composite` pastes photographed heads, `diffusion` asks a
model and holds what it draws to a strict face filter.
"""

from functools import partial
from pathlib import Path

from pipelines.core import products, store
from pipelines.core.shards import Counts, Machine, Shard
from pipelines.core.shards import run as run_shards
from pipelines.synthesise.base import Generator, Scenes
from pipelines.synthesise.composite import Composite
from pipelines.synthesise.params import Params
from umo import records


def run(params: Params, machine: Machine) -> None:
    """Draw the scenes of each split."""
    generator = _generator(params, machine)
    counts = run_shards(
        "synthesise",
        partial(_synthesise, generator),
        generator.shards(),
        products.SYNTHESISED,
        params=generator.knobs,
        files=generator.files,
        machine=machine,
    )
    generator.finish()
    if counts.rejects:
        accepted = counts.made.get("scenes", 0)
        attempts = accepted + sum(counts.rejects.values())
        print(f"synthesise: {accepted} of {attempts} drawings accepted ({accepted / attempts:.0%})", flush=True)


def _generator(params: Params, machine: Machine) -> Generator:
    if params.generator == "composite" or not any(params.scenes.values()):  # without scenes no model is needed
        return Composite(params)
    from pipelines.synthesise.diffusion import Diffused  # reads params.yaml for the model; composite needs none

    return Diffused.of(params, machine)


def _synthesise(generator: Generator, shard: Shard, folder: Path) -> Counts:
    made: Scenes = generator.scenes(shard)
    store.write(folder, made.images, made.pictures)
    records.write(folder / products.LAYOUT_TABLE, made.layout, records.LAYOUT)
    records.write(folder / products.SCENES_TABLE, made.scenes, records.SCENES)
    return Counts({"scenes": len(made.scenes), "faces": len(made.layout)}, made.rejects)
