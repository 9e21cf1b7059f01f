"""What reads the exported sets: the same sets as from the whole table, with a few pictures in memory."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.cases import stage as cases
from pipelines.core import products
from pipelines.core.shards import Shard, digest
from pipelines.export.formats import parquet
from pipelines.generate import stage as generate
from pipelines.report import data
from tests.umo.test_rows import memory
from umo.evaluation.cases import read_cases
from umo.images import encode_png, read_image
from umo.scenes.prompts import prompt

SIDE = 128


def picture(seed: int) -> dict:
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)  # noise: nearly as large encoded
    return {"bytes": encode_png(pixels), "path": f"{seed}.png"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty validation sets in two files, of one to three people, in no order."""
    root = tmp_path_factory.mktemp("world")
    (root / products.EXPORTED).mkdir(parents=True)
    made = [picture(seed) for seed in range(40)]
    for k in range(2):
        with parquet.writing(root / products.EXPORTED, f"validation-{k:05d}") as write:
            for first in range(20 * k, 20 * k + 20, 4):
                write([row(number, made) for number in range(first, first + 4)])
    return root


def row(number: int, made: list[dict]) -> dict:
    n = 1 + number % 3
    place = np.array([[40, 40], [80, 40], [60, 60], [45, 80], [75, 80]], np.float32).flatten().tolist()
    return dict.fromkeys(parquet.COLUMNS) | {
        "set_id": f"s{(number * 7) % 40:02d}",
        "n": n,
        "prompt": f"{number}" if number % 4 else prompt([(k + 0.5) / n for k in range(n)]),
        "cross_cosine": ((number * 11) % 40) / 100 if n > 1 else None,
        "target": made[number],
        "references": [made[(number + k) % 40] for k in range(n)],
        "person_ids": [f"p{number}-{k}" for k in range(n)],
        "target_boxes": [[10.0, 10, 50, 50]] * n,
        "target_landmarks": [place] * n,
        "reference_landmarks": [place] * n,
    }


@pytest.fixture
def rows(world: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """All of them at once, in the order of the files."""
    monkeypatch.chdir(world)
    return [row for file in products.exported_files("validation") for row in pq.read_table(file).to_pylist()]


def size(rows: list[Mapping]) -> int:
    return sum(len(one["bytes"]) for row in rows for one in (row["target"], *row["references"]))


def test_cases_are_the_most_alike_and_of_the_others_the_first_by_a_draw(rows: list[dict], tmp_path: Path) -> None:
    params = cases.Params(split="validation", per_n=3, alike=2, seed=5)
    with memory() as peak:
        cases._cases(params, Shard("", {}), tmp_path)
        assert peak() < size(rows) / 2
    expected, alike = [], {}
    for n in (1, 2, 3):
        same = sorted((row for row in rows if row["n"] == n), key=lambda row: digest(5, row["set_id"]))
        by_cosine = sorted(same, key=lambda row: row["cross_cosine"] or 0)
        alike[n] = [row["set_id"] for row in by_cosine[-2:]] if n > 1 else []
        expected += [row for row in same if row["set_id"] in alike[n]]
        expected += [row for row in same if row["set_id"] not in alike[n]][:3]
    expected.sort(key=lambda row: row["set_id"])
    found = read_cases(tmp_path / products.CASES_FILE, drawn=False)
    assert [(case.case_id, case.prompt) for case in found] == [(row["set_id"], row["prompt"]) for row in expected]
    for case, row in zip(found, expected, strict=True):
        said = "placed" if ":" in row["prompt"] else "open"
        assert case.tags == ((said, "alike") if case.case_id in alike[row["n"]] else (said,))
        assert (tmp_path / str(case.target)).read_bytes() == row["target"]["bytes"]
        assert [(tmp_path / path).read_bytes() for (path,) in case.references] == [
            one["bytes"] for one in row["references"]
        ]


def test_the_report_shows_a_spread_over_the_numbers_of_people(
    rows: list[dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "grid", lambda headings, cells, width: cells)
    with memory() as peak:
        shown = data.set_sheets(4)["validation"]
        assert peak() < size(rows) / 2
    expected = sorted(rows, key=lambda row: -row["n"])[::10][:4]
    for (references, (target,)), row in zip(shown, expected, strict=True):
        assert np.array_equal(target.image, read_image(row["target"]["bytes"]))
        assert len(references) == row["n"] and len(target.marks) == row["n"]
        assert np.array_equal(references[-1].image, read_image(row["references"][-1]["bytes"]))


def test_pasted_pictures_are_made_one_by_one(rows: list[dict], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "load", lambda section: cases.Params(split="validation", per_n=1, alike=0, seed=0))
    monkeypatch.setattr(generate, "_paste", lambda row: read_image(row["target"]["bytes"]))
    asked = [cases.Case(row["set_id"], "", (), (), None, None) for row in sorted(rows, key=lambda row: row["set_id"])]
    expected = {row["set_id"]: row["target"]["bytes"] for row in rows}
    with memory() as peak:
        for case, made in zip(asked, generate._pasted(asked), strict=True):
            assert np.array_equal(read_image(made), read_image(expected[case.case_id]))
        assert peak() < size(rows) / 2
