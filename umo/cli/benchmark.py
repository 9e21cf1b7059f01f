"""`umo benchmark`."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umo.cli.options import guidance_of, shard_of, size_of
from umo.cli.tables import print_estimates
from umo.devices import Precision
from umo.errors import BadInput

if TYPE_CHECKING:
    from umo.evaluation.benchmarks import Benchmark

benchmark = typer.Typer(
    name="benchmark", help="Published benchmarks: draw them, and score results.", no_args_is_help=True
)
Name = Annotated[str, typer.Argument(help="As umo benchmark list names it.")]
Root = Annotated[Path, typer.Option(help="Your copy of the benchmark, in its published layout.")]


@benchmark.command("list")
def list_() -> None:
    """Name the benchmarks, and how their files must lie."""
    from umo.evaluation.benchmarks import BENCHMARKS

    for one in BENCHMARKS.values():
        print(f"{one.name}: {one.title} ({one.revision})\n  files:   {one.layout}\n  results: {one.results}")
        print(f"  judge:   {one.judge}\n  licence: {one.licence}")


@benchmark.command()
def check(name: Name, root: Root) -> None:
    """Name every file that is missing from a copy."""
    from tempfile import TemporaryDirectory

    found = _named(name)
    with TemporaryDirectory() as work:
        items = found.items(root, Path(work))
        missing = found.missing(items)
    for path in missing:
        print(path)
    if missing:
        raise BadInput(f"{root}: {len(missing)} files are missing, listed above; put them there")
    print(f"{root}: {len(items)} items, and every picture that they name")


@benchmark.command()
def run(
    name: Name,
    root: Root,
    out: Annotated[Path, typer.Option(help="Folder of results, laid out as published.")],
    model: Annotated[str, typer.Option(help="A base: a diffusers folder, or its name on the Hub.")],
    lora: Annotated[Path | None, typer.Option(help="A LoRA for the base.")] = None,
    size: Annotated[str | None, typer.Option(metavar="HEIGHTxWIDTH", help="The published one without.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps; the base's own without.")] = None,
    guidance: Annotated[str | None, typer.Option(metavar="TEXT[,IMAGE]", help="The base's own without.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[Precision | None, typer.Option(help="Of the weights; bf16 on cuda, fp32 on cpu without.")] = None,
    crop: Annotated[bool, typer.Option("--crop", help="Cut every reference around its largest face.")] = False,
    shard: Annotated[str, typer.Option(metavar="K/N", help="Draw every N-th item from the K-th.")] = "1/1",
) -> None:
    """Draw a benchmark with a base; killed, it goes on when it is started again."""
    found, part, shape, strength = _named(name), shard_of(shard), size_of(size), guidance_of(guidance)
    from umo import licences
    from umo.customizers.hub import local_folder
    from umo.drawing.benchmarks import run as draw
    from umo.drawing.photographs import face_square

    base = local_folder(model)
    cut = face_square if crop else None
    made = draw(
        found,
        root,
        out,
        base,
        lora,
        size=shape,
        steps=steps,
        guidance=strength,
        device=device,
        dtype=dtype,
        crop=cut,
        shard=part,
    )
    if made.own_size:
        print(f"{base.name} cannot draw the published {'x'.join(map(str, found.size))}: drawn at its own size")
    if made.too_many:
        print(f"{made.too_many} items have more references than {base.name} takes: not drawn, and scored as missing")
    whole = "" if made.whole else "; the other shards are not finished"
    print(f"{made.drawn} pictures drawn, {made.kept} were there already -> {out}{whole}")
    print(licences.line(base, lora))


@benchmark.command()
def score(
    name: Name,
    root: Root,
    results: Annotated[Path, typer.Argument(help="Drawn pictures, laid out as published.")],
    out: Annotated[Path, typer.Option(help="Folder for scores.parquet and metrics.json.")],
    judge: Annotated[str, typer.Option(help="The face model that judges, as umo evaluate takes it.")] = "dlib",
    calibration: Annotated[Path | None, typer.Option(help="Its calibration, instead of its own.")] = None,
    rewarded_by: Annotated[
        list[str] | None, typer.Option(help="A face model that rewarded or curated: its network may not judge; repeat.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, or cuda.")] = "cpu",
    workers: Annotated[int, typer.Option(min=0, help="Processes that look at pictures; 0 is one a core.")] = 0,
) -> None:
    """Score results of any model: as published, and strict."""
    found = _named(name)
    from umo.evaluation.benchmarks import scoring
    from umo.evaluation.judges import Spec

    spec = Spec(judge, device, calibration)
    processes = workers or len(os.sched_getaffinity(0))
    result = scoring.score(found, root, results, out, spec, processes, rewarded_by or [])
    own = result["benchmark"]
    print(f"{found.title}, {found.revision}; judge {result['judge']['name']}: {_checksums(result['judge'])}")
    print("as published:")
    for key, value in own["published"].items():
        skipped = "".join(f"; {count} skipped: {why}" for why, count in value["skipped"].items())
        number = "none" if value["mean"] is None else f"{value['mean']:.2f}"
        print(f"  {key:32} {number:>8}   n {value['n']}{skipped}")
    print_estimates("strict", result, "mean")
    for why, count in own["skipped"].items():
        print(f"skipped: {count}, {why}")
    if own["missing"]:
        print(f"{own['missing']} pictures are missing: strict counts them as pictures without a face")
    for failure in result["failures"]:
        print(f"{failure['case_id']}: {failure['path']}: {failure['error']}", file=sys.stderr)
    if own["comparable"]:
        print(f"not comparable: {own['comparable']}")
    print(f"{result['images']} pictures of {result['cases']} items, {len(result['failures'])} failures -> {out}")


def _named(name: str) -> "Benchmark":
    from umo.evaluation.benchmarks import BENCHMARKS

    if name not in BENCHMARKS:
        raise BadInput(f"no benchmark {name!r}: choose one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def _checksums(judge: dict[str, Any]) -> str:
    return ", ".join(f"{file} {digest[:12]}" for file, digest in judge["files"].items())
