import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from umo import records
from umo.errors import BadInput
from umo.evaluation.comparison import compare, compare_rows, correct
from umo.evaluation.metrics import METRICS, score

JUDGE = {"name": "bands", "same_person_cosine": 0.9}
BOTH = [[1.0, 0.0], [0.0, 1.0]]
FIRST_TWICE = [[1.0, 1.0], [0.0, 0.0]]
BOTH_FIRST_TWICE = [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
NOTHING = dict.fromkeys(("difference", "low", "high", "p", "p_holm")) | {
    "n": 0,
    "verdict": "cannot tell",
    "holds": False,
}
Cosines = Sequence[Sequence[float]]


def write_run(
    folder: Path,
    cases: Mapping[str, Sequence[Cosines | None]],
    judge: Mapping[str, Any] = JUDGE,
    people: Mapping[str, list[str]] | None = None,
) -> Path:
    """An evaluation as it lies on the disk; cases are the cosines of each picture, None where it was not judged."""
    rows = []
    for case_id, pictures in cases.items():
        for seed, cosines in enumerate(pictures):
            known = {"case_id": case_id, "seed": seed, "n": len(cosines or BOTH), "people": (people or {}).get(case_id)}
            scored = score(np.array(cosines), JUDGE["same_person_cosine"]) if cosines else {}
            rows.append(dict.fromkeys(records.SCORES.names) | known | scored)
    folder.mkdir()
    records.write(folder / "scores.parquet", rows, records.SCORES)
    (folder / "metrics.json").write_text(json.dumps({"judge": judge}))
    return folder


@pytest.fixture
def two_runs(tmp_path: Path) -> tuple[Path, Path]:
    """A draws both people, B twice the same one; A has a case more."""
    a = write_run(tmp_path / "A", {str(i): [BOTH, BOTH] for i in range(5)})
    b = write_run(tmp_path / "B", {str(i): [FIRST_TWICE, BOTH_FIRST_TWICE] for i in range(4)})
    return a, b


def test_compare(two_runs: tuple[Path, Path]) -> None:
    a, b = two_runs
    result = compare(a, b)
    least, tests = 1 / 10_001, sum(result[name]["p"] is not None for name in METRICS)
    numbers = {
        "difference": 0.25,
        "low": 0.25,
        "high": 0.25,
        "n": 4,
        "p": least,
        "p_holm": pytest.approx(least * tests),
    }
    assert result["coverage"] == numbers | {"verdict": "better", "holds": True}
    assert result["duplicates"]["difference"] == -0.5
    assert result["duplicates"]["verdict"] == "better"
    assert result["extra"]["verdict"] == "cannot tell"
    assert (result["extra"]["p"], result["extra"]["p_holm"], result["extra"]["holds"]) == (1, 1, False)
    assert result["copy_paste"] == NOTHING
    assert result["count_difference"]["verdict"] == "cannot tell"
    assert result["count_difference"]["high"] < 0, "fewer faces are neither better nor worse"
    assert (result["cases"], result["pairs"], result["unpaired"]) == (4, 8, {"a": 2, "b": 0})
    assert result["judge"] == "bands"
    back = compare(b, a)
    assert back["coverage"]["difference"] == -0.25
    assert {back[name]["verdict"] for name in ("coverage", "duplicates")} == {"worse"}


def test_compare_with_itself_cannot_tell(two_runs: tuple[Path, Path]) -> None:
    result = compare(two_runs[0], two_runs[0])
    assert {result[name]["verdict"] for name in METRICS} == {"cannot tell"}


def test_a_picture_that_one_folder_could_not_judge_is_left_out(tmp_path: Path) -> None:
    a = write_run(tmp_path / "A", {"1": [BOTH, BOTH], "2": [BOTH], "3": [BOTH]})
    b = write_run(tmp_path / "B", {"1": [FIRST_TWICE, None], "2": [None], "3": [BOTH]})
    result = compare(a, b)
    assert (result["cases"], result["pairs"]) == (3, 4)
    assert (result["coverage"]["difference"], result["coverage"]["n"]) == (0.25, 2)


def test_people_are_the_clusters(tmp_path: Path) -> None:
    cases = {str(i): [BOTH] for i in range(3)}
    shared = {str(i): ["R", "G"] for i in range(3)}
    a, b = (write_run(tmp_path / name, cases, people=shared) for name in "AB")
    assert compare(a, b)["coverage"]["low"] is None  # one independent group
    c, d = (write_run(tmp_path / name, cases) for name in "CD")
    assert compare(c, d)["coverage"]["low"] == 0


def test_compare_refuses_what_cannot_be_compared(two_runs: tuple[Path, Path], tmp_path: Path) -> None:
    a, _ = two_runs
    with pytest.raises(BadInput, match=r"metrics.json: cannot be read"):
        compare(a, tmp_path / "absent")
    with pytest.raises(BadInput, match="no case and seed in common"):
        compare(a, write_run(tmp_path / "C", {"other": [BOTH]}))
    with pytest.raises(BadInput, match="case 1 has different references"):
        compare(a, write_run(tmp_path / "D", {"1": [[[1.0, 0.0]]]}))
    other = write_run(tmp_path / "E", {"1": [BOTH]}, judge=JUDGE | {"same_person_cosine": 0.8})
    with pytest.raises(BadInput, match="bands with other same_person_cosine"):
        compare(a, other)
    with pytest.raises(BadInput, match=r"judged differently \(bands, dlib\)"):
        compare(a, write_run(tmp_path / "F", {"1": [BOTH]}, judge=JUDGE | {"name": "dlib"}))
    (other / "metrics.json").write_text("[]")
    with pytest.raises(BadInput, match="not the result of an evaluation"):
        compare(a, other)


def table(values: Mapping[tuple[str, int], float | bool | None]) -> list[dict[str, Any]]:
    """Rows (case_id, seed) -> value, under two names; every case has a person of its own."""
    return [
        {"case_id": case_id, "seed": seed, "people": [case_id], "variety": value, "diffusion_loss": value}
        for (case_id, seed), value in values.items()
    ]


def test_any_values_are_paired_by_case_and_seed() -> None:
    a = table({("1", 0): 4.0, ("1", 1): 6.0, ("2", 0): 8.0, ("3", 0): 9.0, ("4", 0): None})
    b = table({("2", 0): 7.0, ("1", 1): 3.0, ("1", 0): 2.0, ("2", 1): 0.0, ("4", 0): 1.0})
    found = compare_rows(a, b, ["variety", "diffusion_loss"])
    # The mean over the cases 1, (2 + 3) / 2, and 2, 1: a case counts once, whatever its pictures.
    least = 1 / 10_001
    expected = {"difference": 1.75, "low": 1.0, "high": 2.5, "n": 2, "p": least, "p_holm": 2 * least, "holds": True}
    assert found == {
        "variety": {**expected, "verdict": "better"},
        "diffusion_loss": {**expected, "verdict": "worse"},
    }


def test_shares_and_absent_values_compare() -> None:
    right, wrong = (table({(str(case), 0): value for case in range(5)}) for value in (True, False))
    assert compare_rows(right, wrong, ["variety"])["variety"]["difference"] == 1
    nothing = compare_rows(right, table({(str(case), 0): None for case in range(5)}), ["variety"])["variety"]
    assert nothing == NOTHING


def test_a_verdict_holds_against_the_number_of_comparisons() -> None:
    found = [
        {"verdict": verdict, "p": p}
        for verdict, p in [
            ("better", 0.02),
            ("worse", 0.001),
            ("cannot tell", 0.0001),
            ("cannot tell", None),
            ("better", 0.03),
        ]
    ]
    correct(found)
    assert [one["p_holm"] for one in found] == pytest.approx([0.04, 0.003, 0.0004, None, 0.04])
    assert [one["holds"] for one in found] == [True, True, False, False, True]
    many = [{"verdict": "better", "p": 0.01} for _ in range(6)]
    correct(many)
    assert [one["holds"] for one in many] == [False] * 6
    correct(many[:5])
    assert [one["holds"] for one in many] == [False] * 6
    correct(many[:4])
    assert [one["holds"] for one in many] == [True] * 4 + [False] * 2


def test_comparing_needs_no_face_model() -> None:
    heavy = "import sys, umo.evaluation.comparison; print([m for m in ('torch', 'umo.faces') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
