"""`umo evaluate` against the published loop: a reference and a face at a time, each picture searched again for each.

The same judge on the same pictures; `umo evaluate` in a process a core, whose start counts.
"""

import os

from bench.evaluate_floor import SIDE, empty, seconds, write_cases
from bench.result import Result
from umo import faces
from umo.evaluation.cases import read_cases
from umo.evaluation.judges import Spec
from umo.evaluation.several import evaluate_by
from umo.images import read_image

NAME = "evaluate-peer"
BAR = 3.0


def run(pictures: int = 200) -> Result:
    """Pictures a second of `umo evaluate` / of the published loop.

    Args:
        pictures: drawn ones, each a case.
    """
    cases, cores = write_cases(pictures), len(os.sched_getaffinity(0))
    judge = faces.load("dlib")
    judge.detect([])

    def published() -> None:
        for case in read_cases(cases):
            for photos in case.references:
                photo = read_image(cases.parent / photos[0])
                reference = judge.embed([photo], [judge.detect([photo])[0][:1]])
                picture = read_image(cases.parent / case.images[0])
                found = [judge.embed([picture], [[face]]) for face in judge.detect([picture])[0]]
                max((float((reference @ vector.T).item()) for vector in found), default=0.0)

    ours = seconds(lambda: evaluate_by(cases, empty(), [Spec("dlib")], cores))
    theirs = seconds(published)
    return Result(
        name=NAME,
        value=theirs / ours,
        unit="pictures a second of umo evaluate / of the published loop",
        against="one reference and one face at a time, each picture searched again: the same judge",
        bar=BAR,
        lower_is_better=False,
        details={
            "pictures": pictures,
            "side": SIDE,
            "seconds": {"published": round(theirs, 1), f"umo evaluate in {cores} processes": round(ours, 1)},
            "minutes_for_5000_pictures": round(5000 * ours / pictures / 60, 1),
        },
    )
