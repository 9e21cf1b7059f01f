"""`umo evaluate` against decoding, detecting and embedding alone: what matching, metrics and writing cost.

Both in this process, by the embedded judge, on the same pictures of 1024 px with two people each, in turns.
"""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import cv2
import numpy as np

from bench.photos import portraits
from bench.result import Result
from pipelines.core.shards import WORK
from umo import faces
from umo.evaluation.cases import read_cases
from umo.evaluation.scoring import evaluate
from umo.images import read_image

NAME = "evaluate-floor"
BAR = 0.9
SIDE = 1024


def run(pictures: int = 100, repeats: int = 3) -> Result:
    """Pictures a second of `umo evaluate` / of the bare loop.

    Args:
        pictures: drawn ones, each a case.
        repeats: of each, in turns after one turn that is not measured; the median of the turns' ratios counts.
    """
    cases = write_cases(pictures)
    judge = faces.load("dlib")

    def bare() -> None:
        for path in sorted({path for case in read_cases(cases) for path in case.paths}):
            picture = read_image(cases.parent / path)
            judge.embed([picture], judge.detect([picture]))

    turns = [(seconds(bare), seconds(lambda: evaluate(cases, empty(), judge))) for _ in range(1 + repeats)][1:]
    return Result(
        name=NAME,
        value=median(one / other for one, other in turns),
        unit="pictures a second of umo evaluate / of the bare loop",
        against="decode + detect + embed alone: the same judge, pictures and threads",
        bar=BAR,
        lower_is_better=False,
        details={
            "pictures": pictures,
            "side": SIDE,
            "ratios": [round(one / other, 3) for one, other in turns],
            "pictures_per_second": round(pictures / median(other for _, other in turns), 1),
        },
    )


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def empty() -> Path:
    """A folder for results, without those of the turn before."""
    out = WORK.resolve() / "bench" / "evaluate-out"
    shutil.rmtree(out, ignore_errors=True)
    return out


def write_cases(count: int) -> Path:
    """So many pictures of two ORL people on a blurred ground, with other photographs of them as references."""
    folder = WORK.resolve() / "bench" / f"evaluate-{count}"
    folder.mkdir(parents=True, exist_ok=True)
    photos, generator, lines = portraits(), np.random.default_rng(0), []
    people = len(photos) // 10  # ten photographs each, in the order of the people
    for person in range(people):
        cv2.imwrite(str(folder / f"reference-{person}.png"), photos[10 * person])
    for number in range(count):
        noise = generator.integers(80, 170, (32, 32, 3), dtype=np.uint8)
        picture = cv2.resize(noise, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        cast = generator.choice(people, 2, replace=False)
        for person, left in zip(cast, (80, 560), strict=True):
            head = cv2.resize(photos[10 * person + int(generator.integers(1, 10))], (330, 402))
            picture[220 : 220 + 402, left : left + 330] = head
        cv2.imwrite(str(folder / f"{number}.png"), picture)
        case = {"case_id": str(number), "prompt": "two people", "images": [f"{number}.png"]}
        lines.append(json.dumps(case | {"references": [f"reference-{person}.png" for person in cast]}))
    cases = folder / "CASES.jsonl"
    cases.write_text("\n".join(lines) + "\n")
    return cases
