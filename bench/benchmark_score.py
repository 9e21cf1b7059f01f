"""`umo benchmark score` against `umo evaluate` on the same pictures: what layouts and published formulas cost.

Each published layout holds the same 200 pictures of two people; both sides judge them in this process, in turns.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.evaluate_floor import seconds
from bench.photos import portraits
from bench.result import Result
from pipelines.core.shards import WORK
from umo import faces
from umo.evaluation.benchmarks import BENCHMARKS
from umo.evaluation.benchmarks.scoring import CASES, score
from umo.evaluation.judges import Spec
from umo.evaluation.scoring import evaluate

NAME = "benchmark-score"
BAR = 1.2
SIDE = 256


def run(pictures: int = 200, turns: int = 4) -> Result:
    """Seconds of `umo benchmark score` / of `umo evaluate` on the cases that it made; the slowest layout counts.

    Args:
        pictures: a layout; a multiple of 4, which one file of XVerseBench holds.
        turns: of both sides; the first of several is not measured; the median of the others' ratios counts.
    """
    home = WORK.resolve() / "bench" / NAME
    shutil.rmtree(home, ignore_errors=True)
    judge, ratios = faces.load("dlib"), {}
    for name, write in LAYOUTS.items():
        root, results, out = (home / name / part for part in ("root", "results", "out"))
        write(root, results, pictures)

        def scored(name: str = name, root: Path = root, results: Path = results, out: Path = out) -> None:
            shutil.rmtree(out, ignore_errors=True)
            score(BENCHMARKS[name], root, results, out, Spec("dlib"))

        def evaluated(out: Path = out) -> None:
            shutil.rmtree(out / "again", ignore_errors=True)
            evaluate(out / CASES, out / "again", judge)

        ran = [seconds(scored) / seconds(evaluated) for _ in range(turns)]
        ratios[name] = round(median(ran[1:] or ran), 3)
    return Result(
        name=NAME,
        value=max(ratios.values()),
        unit="seconds of umo benchmark score / of umo evaluate; the slowest layout",
        against="umo evaluate on the cases that the layout holds: the same judge, pictures and threads",
        bar=BAR,
        lower_is_better=True,
        details={"pictures": pictures, "side": SIDE, "ratios": ratios},
    )


def picture(number: int) -> tuple[np.ndarray, list[int]]:
    """(SIDE, SIDE, 3) of two people of ORL, and who they are; the same for the same number."""
    photos, generator = portraits(), np.random.default_rng(number)
    found = cv2.resize(generator.integers(80, 170, (32, 32, 3), dtype=np.uint8), (SIDE, SIDE))
    cast = [int(person) for person in generator.choice(len(photos) // 10, 2, replace=False)]
    for person, left in zip(cast, (14, 138), strict=True):
        found[60:190, left : left + 106] = cv2.resize(photos[10 * person + int(generator.integers(1, 10))], (106, 130))
    return found, cast


def reference(person: int) -> np.ndarray:
    return cv2.copyMakeBorder(portraits()[10 * person], 20, 20, 20, 20, cv2.BORDER_REPLICATE)


def put(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def put_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def xverse(part: str) -> Callable[[Path, Path, int], None]:
    def write(root: Path, results: Path, count: int) -> None:
        rows = []
        for index in range(count // 4):
            cells = [picture(4 * index + k)[0] for k in range(4)]
            put(results / f"{index}_x.png", np.vstack([np.hstack(cells[:2]), np.hstack(cells[2:])]))
            cast = picture(4 * index)[1][: 1 if part == "single" else 2]
            paths = [f"assets/human/{person}.png" for person in cast]
            for person, path in zip(cast, paths, strict=True):
                put(root / path, reference(person))
            sources = [{"image_path": path, "caption": "a man"} for path in paths]
            rows.append({"index": index, "prompt": "x", "modulation": [{"src_inputs": sources}]})
        put_json(root / f"eval/tools/XVerseBench_{part}.json", rows)

    return write


def omnicontext(root: Path, results: Path, count: int) -> None:
    rows = []
    for number in range(count):
        image, cast = picture(number)
        put(results / f"fullset/multi_character/{number:04}.png", image)
        inputs = [{"bytes": cv2.imencode(".png", reference(person))[1].tobytes(), "path": None} for person in cast]
        row = {"key": f"{number:04}", "task_type": "multi_character", "instruction": "x", "input_images": inputs}
        rows.append(row)
    root.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), root / "train.parquet")


def multiid(root: Path, results: Path, count: int) -> None:
    rows = []
    for number in range(count):
        image, cast = picture(number)
        key = f"{number + 1:04}"
        put(results / key / "out.jpg", image)
        put(root / f"p2/untar/{key}.jpg", picture(number)[0])
        for k, person in enumerate(cast, start=1):
            put(root / f"p2/untar/{key}_{k}.jpg", reference(person))
        rows.append({"prompt": "x", "image_paths": [f"{key}_1.jpg", f"{key}_2.jpg"], "ori_img_path": f"{key}.jpg"})
    put_json(root / "p2.json", rows)


def multihuman(root: Path, results: Path, count: int) -> None:
    rows = []
    for number in range(count):
        image, cast = picture(number)
        put(results / f"{number}.png", image)
        paths = [f"data/faces/{person}.png" for person in cast]
        for person, path in zip(cast, paths, strict=True):
            put(root / path, reference(person))
        rows.append({"people": paths, "prompt": "x"})
    put_json(root / "data/multihuman_metadata.json", rows)


LAYOUTS = {
    "xverse-single": xverse("single"),
    "xverse-multi": xverse("multi"),
    "omnicontext": omnicontext,
    "multiid": multiid,
    "multihuman": multihuman,
}
