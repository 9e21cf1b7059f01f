"""How the time of `identify` and `curate` grows from a tenth of a corpus to the whole of it."""

from bench.engine import identify_and_curate, rounded, workspace
from bench.result import Result

NAME = "curate-growth"
FACES = 1_000_000
BAR = 14


def run(faces: int = FACES) -> Result:
    """Seconds for so many faces / seconds for a tenth of them, one after the other."""
    costs = {size: identify_and_curate(workspace(size)) for size in (faces // 10, faces)}
    few, many = (sum(cost.seconds for cost in stages.values()) for stages in costs.values())
    return Result(
        name=NAME,
        value=many / few,
        unit=f"seconds for {faces:,} faces / seconds for {faces // 10:,}",
        against="a tenth of the faces, of a tenth of the people; linear growth would be 10",
        bar=BAR,
        lower_is_better=True,
        details={"stages": {f"{size:,}": rounded(stages) for size, stages in costs.items()}},
    )
