import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from umo import records
from umo.errors import BadInput, WorkFailed
from umo.evaluation import scoring as evaluation
from umo.evaluation.metrics import METRICS
from umo.evaluation.scoring import evaluate

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
GOOD = {"case_id": "a", "prompt": "two people", "references": ["r.png", "g.png"], "images": ["rg.png"]}


@pytest.fixture
def folder(tmp_path: Path, bands: Callable[..., np.ndarray]) -> Path:
    """Pictures of coloured people."""
    pictures = {
        "r": bands(RED),
        "r2": bands((250, 60, 0)),
        "g": bands(GREEN),
        "b": bands(BLUE),
        "rg": bands(GREEN, RED),
        "rr": bands(RED, RED),
        "rgr": bands(RED, GREEN, RED),
        "rgb": bands(RED, GREEN, BLUE),
        "mixed": bands((200, 40, 0), (30, 220, 0)),
        "nobody": bands(),
    }
    for name, picture in pictures.items():
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes((tmp_path / "rgb.png").read_bytes()[:60])
    return tmp_path


def write_cases(folder: Path, *cases: dict[str, Any], name: str = "CASES.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(case) + "\n" for case in cases), encoding="utf-8")
    return path


def scores(out: Path) -> list[dict[str, Any]]:
    return records.read(out / "scores.parquet", records.SCORES).to_pylist()


def test_a_bad_line_is_refused_before_any_work(folder: Path, band_judge) -> None:
    with pytest.raises(BadInput, match=r"CASES.jsonl:2: .*already taken.*nothing was scored"):
        evaluate(write_cases(folder, GOOD, GOOD), folder / "out", band_judge)
    assert band_judge.calls.detect == 0
    assert not (folder / "out").exists()


def test_scores_and_metrics(folder: Path, band_judge) -> None:
    cases = write_cases(
        folder,
        GOOD | {"images": ["rg.png", "rr.png", "rgb.png", "rgr.png", "nobody.png"], "people": ["R", "G"]},
        GOOD | {"case_id": "b", "references": ["b.png"], "images": ["b.png"], "people": ["B"]},
    )
    result = evaluate(cases, folder / "out", band_judge)
    rows = scores(folder / "out")
    counts = [[row[name] for name in ("covered", "missing", "duplicated", "extra")] for row in rows]
    assert counts == [[2, 0, 0, 0], [1, 1, 0, 0], [2, 0, 0, 1], [2, 0, 1, 0], [0, 2, 0, 0], [1, 0, 0, 0]]
    counts = [[row[name] for name in ("absent", "surplus", "doubled")] for row in rows]
    assert counts == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1], [2, 0, 0], [0, 0, 0]]
    assert [row["collapse"] for row in rows] == [0, 1, 0, pytest.approx(1 / 3), None, None]
    assert [row["blend"] for row in rows] == [0, 0.5, 0, 0, None, None]
    assert rows[0]["assignment"] == [1, 0]
    assert rows[0]["cosines"] == [[0, 1], [1, 0]]
    assert rows[0]["boxes"][1] == [32, 0, 64, 32]
    assert [row["seed"] for row in rows] == [0, 1, 2, 3, 4, 0]
    assert [row["id_conf"] for row in rows] == [1, 0, 1, 0.5, None, None]
    assert [row["id_sim"] for row in rows] == [1, 0.5, 1, 1, 0, 1]
    assert rows[4]["n_faces"] == 0
    assert rows[4]["error"] is None
    assert result == json.loads((folder / "out" / "metrics.json").read_text())
    assert result["coverage"]["mean"] == pytest.approx(((1 + 0.5 + 1 + 1 + 0) / 5 + 1) / 2)
    assert result["id_conf"]["n"] == 1
    assert result["by_n"]["1"]["id_conf"] == {"mean": None, "low": None, "high": None, "n": 0}
    assert result["by_n"]["2"]["duplicates"]["mean"] == pytest.approx(0.2)
    assert (result["cases"], result["images"], result["failures"], result["clustered"]) == (2, 6, [], True)
    assert result["judge"]["name"] == "bands"
    assert len(result["judge"]["files"]["bands.weights"]) == 64
    assert set(METRICS) <= result.keys()
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["metrics.json", "scores.parquet"]


def test_several_photographs_of_a_person_are_averaged(folder: Path, band_judge) -> None:
    cases = write_cases(folder, GOOD | {"references": [["r.png", "g.png"]], "images": ["r.png"]})
    evaluate(cases, folder / "out", band_judge)
    assert scores(folder / "out")[0]["cosines"] == [[pytest.approx(0.5**0.5)]]


def test_people_are_swapped_where_places_are_asked(folder: Path, band_judge) -> None:
    said = "A photo of two people: the first person on the left and the second person on the right."
    cases = write_cases(
        folder,
        GOOD | {"prompt": said, "images": ["rg.png", "rgb.png", "rr.png"]},
        GOOD | {"case_id": "b", "prompt": said, "places": [2, 1]},
        GOOD | {"case_id": "c"},
    )
    result = evaluate(cases, folder / "out", band_judge)
    found = [(row["swapped"], row["placed"]) for row in scores(folder / "out")]
    assert found == [(1, 1), (0, 1), (None, 0), (0, 1), (None, 0)]
    assert (result["swapped"]["mean"], result["swapped"]["n"]) == (0.25, 2)


def test_copy_paste_needs_a_target(folder: Path, band_judge) -> None:
    pasted = GOOD | {"images": ["rg.png"], "target": "mixed.png"}
    drawn = GOOD | {"case_id": "b", "images": ["mixed.png"], "target": "mixed.png"}
    without = GOOD | {"case_id": "c"}
    nobody = GOOD | {"case_id": "d", "target": "nobody.png"}
    result = evaluate(write_cases(folder, pasted, drawn, without, nobody), folder / "out", band_judge)
    values = [row["copy_paste"] for row in scores(folder / "out")]
    assert values == [pytest.approx(1, abs=5e-3), pytest.approx(-1, abs=5e-3), None, None]
    assert result["copy_paste"]["n"] == 2
    assert [(bad["case_id"], bad["path"]) for bad in result["failures"]] == [("d", "nobody.png")]


def test_likeness_to_the_target_and_copying_by_who_is_covered(folder: Path, band_judge, bands) -> None:
    Image.fromarray(bands((220, 80, 0), (40, 220, 0))).save(folder / "far.png")
    red, green = np.arctan([80 / 220, 40 / 220])  # 0.35 and 0.18 radians from the references: the second is too near
    drawn = GOOD | {"images": ["rg.png", "far.png", "rr.png", "nobody.png"], "target": "far.png"}
    half = GOOD | {"case_id": "b", "target": "r.png"}
    evaluate(write_cases(folder, drawn, half), folder / "out", band_judge)
    rows = scores(folder / "out")
    both = pytest.approx([np.cos(red), np.cos(green)], abs=1e-5)
    assert [row["target_cosines"] for row in rows] == [both, both, both, both, [1, None]]
    expected = [np.mean([np.cos(red), np.cos(green)]), 1, np.mean([np.cos(red), np.sin(green)]), 0, 1]
    assert [row["sim_target"] for row in rows] == pytest.approx(expected, abs=1e-5)
    far = [row["copy_paste_covered"] for row in rows]
    assert far == [pytest.approx(1, abs=5e-3), pytest.approx(-1, abs=5e-3), pytest.approx(1, abs=5e-3), None, None]
    assert rows[2]["copy_paste"] < 0.9, "over both, though the second person was not drawn"


def test_cases_with_tags_are_summarised_by_tag(folder: Path, band_judge) -> None:
    cases = [
        GOOD | {"tags": ["two", "right"]},
        GOOD | {"case_id": "b", "images": ["rgb.png"], "tags": ["two"]},
        GOOD | {"case_id": "c", "images": ["rr.png"]},
    ]
    found = evaluate(write_cases(folder, *cases), folder / "out", band_judge)["by_tag"]
    assert {tag: own["count_difference"]["mean"] for tag, own in found.items()} == {"right": 0, "two": 0.5}
    assert found["two"]["coverage"]["n"] == 2
    assert found["two"].keys() == set(METRICS)
    assert "by_tag" not in evaluate(write_cases(folder, GOOD), folder / "plain", band_judge)


def test_the_gap_is_between_groups_of_people(folder: Path, band_judge) -> None:
    """Red people are drawn, green ones in every second of two pictures; both are in their real pictures."""
    cases = []
    for k in range(5):
        people = {"people": [f"R{k}", f"G{k}"], "groups": ["red", "green"], "target": "rg.png"}
        cases.append(GOOD | people | {"case_id": str(k), "images": ["rg.png", "r.png"]})
    cases.append(GOOD | {"case_id": "of no group", "people": ["R9", "G9"], "images": ["nobody.png"]})
    result = evaluate(write_cases(folder, *cases), folder / "out", band_judge)
    assert result["gap"]["groups"] == {
        "green": {"people": 5, "drawn": 0.5, "judge": 1},
        "red": {"people": 5, "drawn": 1, "judge": 1},
    }
    assert result["gap"]["difference"] == {"gap": 0.5, "low": 0.5, "high": 0.5}
    few = evaluate(write_cases(folder, *cases[1:]), folder / "few", band_judge)
    assert "gap" not in few
    without = [{key: value for key, value in case.items() if key != "target"} for case in cases]
    assert evaluate(write_cases(folder, *without), folder / "unreal", band_judge)["gap"]["difference"] is None


def test_strangers_are_different_people_once_each(folder: Path, band_judge) -> None:
    shutil.copy(folder / "r.png", folder / "same.png")
    named = [
        GOOD | {"case_id": "a", "people": ["R", "G"]},
        GOOD | {"case_id": "b", "references": ["r2.png", "b.png"], "people": ["R", "B"]},
        GOOD | {"case_id": "c", "references": ["same.png", "g.png"]},  # the same photographs, unnamed
    ]
    found = evaluate(write_cases(folder, *named), folder / "out", band_judge)["strangers"]
    assert (found["people"], found["pairs"], found["passing"], found["warning"]) == (3, 3, 0, None)
    unnamed = [{key: value for key, value in case.items() if key != "people"} for case in named]
    bad = GOOD | {"case_id": "d", "references": ["nobody.png"]}
    found = evaluate(write_cases(folder, *unnamed, bad), folder / "unnamed", band_judge)["strangers"]
    assert (found["people"], found["pairs"], found["passing"]) == (4, 6, pytest.approx(1 / 6))  # r and r2 pass as one
    assert evaluate(write_cases(folder, GOOD), folder / "two", band_judge)["strangers"] is None


def test_only_so_many_strangers_are_compared(folder: Path, band_judge, monkeypatch) -> None:
    monkeypatch.setattr(evaluation, "STRANGERS_AT_MOST", 3)
    cases = write_cases(folder, GOOD | {"references": ["r.png", "g.png", "b.png", "r2.png"], "images": ["rgb.png"]})
    assert evaluate(cases, folder / "out", band_judge)["strangers"]["people"] == 3


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("text.jpg", "not an image"),
        ("empty.jpg", "empty file"),
        ("cut.png", "truncated"),
        ("absent.png", "No such file"),
    ],
)
def test_an_unreadable_drawn_picture_is_listed_and_counts_as_one_without_a_face(
    folder: Path, band_judge, path: str, reason: str
) -> None:
    result = evaluate(write_cases(folder, GOOD | {"images": [path, "rg.png"]}), folder / "out", band_judge)
    (failure,) = result["failures"]
    assert (failure["case_id"], failure["path"]) == ("a", path)
    assert reason in failure["error"]
    bad, good = scores(folder / "out")
    assert (bad["n_faces"], bad["id_sim"], bad["missing"]) == (0, 0, 2)
    assert reason in bad["error"]
    assert (good["covered"], good["error"]) == (2, None)
    assert result["coverage"]["mean"] == 0.5


@pytest.mark.parametrize("path", ["text.jpg", "nobody.png", "absent.png"])
def test_a_bad_reference_leaves_its_case_out_and_the_rest_goes_on(folder: Path, band_judge, path: str) -> None:
    bad = GOOD | {"references": ["r.png", path], "images": ["rg.png", "rr.png"]}
    result = evaluate(write_cases(folder, bad, GOOD | {"case_id": "b"}), folder / "out", band_judge)
    assert [(failure["case_id"], failure["path"]) for failure in result["failures"]] == [("a", path)]
    rows = scores(folder / "out")
    assert [row["case_id"] for row in rows] == ["a", "a", "b"]
    assert all("cannot be judged" in row["error"] for row in rows[:2])
    assert all(row[name] is None for row in rows[:2] for name in ("n_faces", "id_sim", "covered", "cosines"))
    assert result["coverage"] == {"mean": 1, "low": None, "high": None, "n": 1}


def test_no_case_that_can_be_judged_is_a_failure_without_results(folder: Path, band_judge) -> None:
    with pytest.raises(WorkFailed, match=r"none of 1 cases could be judged; the first: nobody.png: no face"):
        evaluate(write_cases(folder, GOOD | {"references": ["nobody.png"]}), folder / "out", band_judge)
    assert not (folder / "out" / "metrics.json").exists()


def test_each_picture_is_looked_at_once(folder: Path, band_judge) -> None:
    shutil.copy(folder / "r.png", folder / "same.png")
    cases = [GOOD | {"case_id": str(i), "references": ["r.png", "same.png"], "images": ["r.png"]} for i in range(9)]
    evaluate(write_cases(folder, *cases), folder / "out", band_judge)
    assert band_judge.calls.pictures == 1


def test_a_killed_run_goes_on_where_it_stopped(folder: Path, band_judge, monkeypatch) -> None:
    images = ["rg", "rr", "rgr", "rgb", "mixed", "nobody", "r2", "b"]
    cases = write_cases(folder, *(GOOD | {"case_id": name, "images": [f"{name}.png"]} for name in images))
    evaluate(cases, folder / "whole", band_judge)
    honest, done = evaluation.score_case, []

    def killed(case, gallery):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(case.case_id)
        return honest(case, gallery)

    monkeypatch.setattr(evaluation, "score_case", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate(cases, folder / "out", band_judge)
    assert [path.name for path in (folder / "out").iterdir()] == [".partial"]
    next((folder / "out" / ".partial").rglob("*.npz")).write_bytes(b"cut short")
    monkeypatch.setattr(evaluation, "score_case", honest)
    band_judge.calls.pictures = 0
    evaluate(cases, folder / "out", band_judge)
    assert band_judge.calls.pictures == 1, "of ten pictures only the one whose file was spoilt"
    for name in ("scores.parquet", "metrics.json"):
        assert (folder / "out" / name).read_bytes() == (folder / "whole" / name).read_bytes()


def test_what_another_judge_saw_and_a_changed_picture_are_looked_at_again(
    folder: Path, band_judge, monkeypatch
) -> None:
    cases, partial = write_cases(folder, GOOD), folder / "out" / ".partial"
    monkeypatch.setattr(evaluation, "_score_all", lambda cases, gallery: gallery.look(cases[0].paths) or exit())
    pictures = []
    for change in (lambda: None, lambda: shutil.copy(folder / "rr.png", folder / "rg.png"), lambda: None):
        change()
        with pytest.raises(SystemExit):
            evaluate(cases, folder / "out", band_judge)
        pictures.append(band_judge.calls.pictures)
    band_judge.same_person_cosine = 0.8
    with pytest.raises(SystemExit):
        evaluate(cases, folder / "out", band_judge)
    assert [*pictures, band_judge.calls.pictures] == [3, 4, 4, 7]
    assert len(list(partial.iterdir())) == 2


def test_a_full_disk_is_one_line_and_leaves_no_result(folder: Path, band_judge, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "scores.parquet")

    monkeypatch.setattr(records, "write", full)
    with pytest.raises(WorkFailed, match=r"scores.parquet: cannot be written .No space left on device.; make room"):
        evaluate(write_cases(folder, GOOD), folder / "out", band_judge)
    assert not (folder / "out" / "metrics.json").exists()


def test_out_that_is_a_file_is_one_line(folder: Path, band_judge) -> None:
    with pytest.raises(WorkFailed, match="cannot be written"):
        evaluate(write_cases(folder, GOOD), folder / "r.png", band_judge)


# With the judge itself, on photographs.


def test_photographs_of_people(tmp_path: Path, dlib_judge, orl, group_photo) -> None:
    def pair(left: np.ndarray, right: np.ndarray, name: str) -> str:
        Image.fromarray(np.concatenate([left, right], axis=1)).save(tmp_path / name)
        return name

    for person in (1, 2, 3):
        Image.fromarray(orl(person, 1)).save(tmp_path / f"{person}.png")
    Image.fromarray(group_photo).save(tmp_path / "group.png")
    case = {
        "case_id": "both",
        "prompt": "two people",
        "references": ["1.png", "2.png"],
        "images": [
            pair(orl(2, 5), orl(1, 4), "right.png"),
            pair(orl(1, 4), orl(3, 2), "stranger.png"),
            "group.png",
            "1.png",
        ],
        "target": pair(orl(1, 8), orl(2, 7), "target.png"),
        "people": ["one", "two"],
    }
    pasted = case | {"case_id": "pasted", "images": [pair(orl(1, 1), orl(2, 1), "pasted.png")]}
    result = evaluate(write_cases(tmp_path, case, pasted), tmp_path / "out", dlib_judge)
    right, stranger, group, alone, copy = scores(tmp_path / "out")
    one, two = (right["boxes"][face] for face in right["assignment"])
    assert right["covered"] == 2
    assert one[0] > two[0]  # the first person is on the right
    assert (stranger["covered"], stranger["missing"]) == (1, 1)
    assert (group["covered"], group["duplicated"]) == (0, 0)
    assert group["n_faces"] == 6
    assert (alone["n_faces"], alone["covered"], alone["missing"]) == (1, 1, 1)
    assert copy["copy_paste"] > 0.6 > right["copy_paste"]
    assert right["id_sim"] > 0.5
    assert result["failures"] == []
    assert result["clustered"]
    assert set(result["judge"]["files"]) == {path.name for path in dlib_judge.files}
    fitted = result["judge"]["calibration"]
    low, high = fitted["same_person_cosine_interval"]
    assert low < result["judge"]["same_person_cosine"] < high
    assert sum(fitted["people_by_kind"].values()) == fitted["people"] == 65


def test_a_reference_with_several_faces_is_said_and_its_largest_taken(folder: Path, band_judge, monkeypatch) -> None:
    honest = band_judge._bands
    monkeypatch.setattr(band_judge, "_bands", lambda pixels: wider(honest(pixels)))

    def wider(found: list) -> list:
        """The second face of two is the larger."""
        for face in found[1:2]:
            face.box[3] += 40
            face.box[2] += 40
        return found

    cases = write_cases(folder, GOOD | {"references": ["rg.png", "b.png"], "images": ["b.png", "r.png"]})
    result = evaluate(cases, folder / "out", band_judge)
    (said,) = result["failures"]
    assert (said["path"], said["error"]) == (
        "rg.png",
        "reference with 2 faces: the largest is taken; crop it to the person to be sure",
    )
    assert scores(folder / "out")[0]["cosines"][1] == [1]
    assert result["coverage"]["n"] == 1
