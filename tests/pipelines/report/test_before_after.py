"""The README's picture: which cases it shows, and that base and ours stand beside their references."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.core import products
from pipelines.report.before_after import COLUMN, METHODS, SPACE, typical, write_picture
from umo import records
from umo.errors import BadInput
from umo.evaluation import metrics
from umo.evaluation.cases import Case, write_cases
from umo.images import encode_png

RED, GREEN, BLUE = (np.array(colour, np.uint8) for colour in ((220, 30, 30), (30, 200, 30), (30, 30, 220)))


def scored(case_id: str, n: int, cosine: float) -> dict:
    found = {"case_id": case_id, "image": f"images/{case_id}.png", "seed": 0, "judge": "somebody", "n": n, "boxes": []}
    return dict.fromkeys(records.SCORES.names) | found | metrics.score(np.eye(n, dtype=np.float32) * cosine, 0.4)


def by_key(rows: list[dict]) -> dict[tuple[str, int], dict]:
    return {(row["case_id"], row["seed"]): row for row in rows}


def test_the_cases_in_the_middle_are_shown_and_not_the_best() -> None:
    twos, threes = [f"two{k}" for k in range(5)], [f"three{k}" for k in range(6)]
    before = by_key([scored(name, n, 0.1) for n, names in ((2, twos), (3, threes)) for name in names])
    after = by_key(
        [scored(name, n, 0.2 + 0.1 * k) for n, names in ((2, twos), (3, threes)) for k, name in enumerate(names)]
    )
    assert [name for name, _ in typical({"base": before, "ours": after})] == ["two2", "three2", "three3"]


def test_references_base_and_ours_stand_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paint(products.CASES / "ann.png", RED, 100, 100)
    write_cases(products.CASES / products.CASES_FILE, [Case("a", "two", (("ann.png",), ("ann.png",)), (), None, None)])
    for method, colour, cosine in zip(METHODS, (GREEN, BLUE), (0.3, 0.6), strict=True):
        paint(products.GENERATED / method / "images/a.png", colour, 64, 128)
        (products.EVALUATED / method).mkdir(parents=True)
        table = products.EVALUATED / method / products.SCORES_TABLE
        records.write(table, [scored("a", 2, cosine)], records.SCORES)
    drawn = np.asarray(Image.open(write_picture(Path("docs/picture.jpg"))))
    middle = drawn[drawn.shape[0] // 2 + 20]
    for k, colour in enumerate((RED, GREEN, BLUE)):
        np.testing.assert_allclose(middle[k * (COLUMN + SPACE) + COLUMN // 4], colour, atol=12)


def test_without_scores_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=r"base/scores\.parquet: missing; run the stage that makes it"):
        write_picture()
    assert not Path("docs").exists()


def paint(path: Path, colour: np.ndarray, height: int, width: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(np.broadcast_to(colour, (height, width, 3)).copy()))
