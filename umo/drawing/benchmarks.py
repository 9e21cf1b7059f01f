"""Drawing what a benchmark asks for, and laying it out as the benchmark's results are published."""

from dataclasses import dataclass
from pathlib import Path

from umo.customizers import load
from umo.customizers.base import Size
from umo.customizers.hub import local_folder
from umo.devices import Precision, dtype_of, precision_on
from umo.drawing.batches import Cut, Progress
from umo.drawing.cases import generate_cases, picture_names
from umo.errors import BadInput
from umo.evaluation.benchmarks.base import Benchmark
from umo.evaluation.benchmarks.scoring import INPUTS, present
from umo.evaluation.cases import Case, write_cases
from umo.guidance import Guidance

DRAWN = ".drawn"


@dataclass(frozen=True)
class Run:
    """What came of it.

    Attributes:
        drawn: pictures drawn now.
        kept: pictures that were there.
        too_many: items with more references than the base takes, which are not drawn.
        own_size: whether they have the base's own size, which cannot draw the published one.
        whole: whether every item that can be drawn is laid out.
    """

    drawn: int
    kept: int
    too_many: int
    own_size: bool
    whole: bool


def run(
    benchmark: Benchmark,
    root: Path,
    results: Path,
    model: Path | str,
    lora: Path | None = None,
    size: Size | None = None,
    steps: int | None = None,
    guidance: Guidance | float | None = None,
    device: str = "cpu",
    dtype: Precision | None = None,
    crop: Cut | None = None,
    shard: tuple[int, int] = (1, 1),
    progress: Progress | None = None,
) -> Run:
    """Draw a benchmark with a base; started again, it goes on.

    Pictures are drawn as `generate_cases` draws them, into `results/.drawn`, from noise of its own: published seeds are
    those of other code. Each finished item of the shard is then laid out in `results`.

    Args:
        size: None takes the published one, or where the base cannot draw that its own.
        crop, shard, progress: as in `generate_cases`.

    Raises:
        BadInput: before any drawing: as `present` and `generate_cases`, or no item can be drawn.
        WorkFailed: a picture came out as not finite.
    """
    customizer = load(local_folder(model), lora, device, dtype_of(precision_on(device, dtype)))
    drawn = results / DRAWN
    items = present(benchmark, root, drawn / INPUTS)
    most = customizer.settings.max_references
    fitting = [item for item in items if 0 < len(item.inputs) <= most]
    if not fitting:
        raise BadInput(f"{root}: {customizer.name} takes at most {most} references, and no item has so few")
    size = size or benchmark.size
    try:
        customizer.check_size(size)
    except BadInput:
        if size != benchmark.size:
            raise
        size = None
    cases = [
        Case(item.key, item.prompt, tuple((str(path.resolve()),) for path in item.inputs), (), None, None)
        for item in fitting
    ]
    drawn.mkdir(parents=True, exist_ok=True)
    file = drawn / f"asked-{shard[0]}.jsonl"  # processes do not write each other's
    write_cases(file, cases)
    counts = generate_cases(
        model,
        file,
        drawn,
        benchmark.seeds,
        size,
        steps,
        guidance,
        lora,
        device,
        customizer=customizer,
        crop=crop,
        shard=shard,
        progress=progress,
        dtype=dtype,
    )
    for item in fitting[shard[0] - 1 :: shard[1]]:
        benchmark.arrange(item, [drawn / name for name in picture_names(item.key, benchmark.seeds)], results)
    return Run(counts.drawn, counts.kept, len(items) - len(fitting), size is None, counts.whole)
