"""How long it takes to change a threshold of `curate` on a million faces: the stage again, and nothing before it."""

from bench.engine import identify_and_curate, rounded, workspace
from bench.result import Result
from pipelines.core import products
from pipelines.core.shards import file_digest

NAME = "rethreshold-million"
FACES = 1_000_000
BAR = 60
MIN_COSINE = 0.55  # .5 in params.yaml


def run(faces: int = FACES) -> Result:
    """Seconds of `python -m pipelines curate` after curate.min_cosine was changed.

    Raises:
        WorkFailed: a stage failed.
    """
    found = workspace(faces)
    costs = identify_and_curate(found)
    sets = found.path / products.CURATED / products.SETS_TABLE
    before = file_digest(sets)
    found.params(curate={"min_cosine": MIN_COSINE})
    again = found.stage("curate")
    return Result(
        name=NAME,
        value=again.seconds if file_digest(sets) != before else None,
        unit=f"seconds of `curate` with another min_cosine, {faces:,} faces",
        against="what is promised: a minute",
        bar=BAR,
        lower_is_better=True,
        details={"faces": faces, "stages": rounded(costs | {"curate again": again})},
    )
