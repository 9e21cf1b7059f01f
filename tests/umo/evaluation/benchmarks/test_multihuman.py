"""MultiHuman-Testbench: counts, summed cosines, places from its own prompts."""

from pathlib import Path

import numpy as np
import pytest

from tests.umo.evaluation.benchmarks.conftest import BLUE, GREEN, RED, TEAL, cosine
from umo.errors import BadInput
from umo.evaluation.benchmarks import multihuman
from umo.evaluation.benchmarks.multihuman import MultiHuman

NAMES = {RED: "data/faces/ffhq_1.jpg", GREEN: "data/faces/sfhq_2.jpg", BLUE: "data/faces/ffhq_3.jpg"}
ENTRIES = [
    (
        (RED, GREEN),
        "The person on the left is <img><|image_2|></img>. The person on the right is <img><|image_1|></img>.",
    ),
    ((RED,), "<img><|image_1|></img> waits."),
    ((RED, GREEN, BLUE), "Left: <|image_1|>, in the middle <|image_3|>, and on the right <|image_2|>."),
    ((GREEN, BLUE), "<img><|image_1|></img> cooks for <img><|image_2|></img>."),
]
DRAWN = {"0": (GREEN, RED), "1": (), "2": (RED, BLUE), "3": (BLUE, TEAL, RED)}


@pytest.fixture
def root(put, put_json, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four entries the last is complex, as those from 1500 on are."""
    monkeypatch.setattr(multihuman, "SIMPLE", 3)
    for colour, path in NAMES.items():
        put(f"root/{path}", colour, format="PNG")
    rows = [
        {
            "people": [NAMES[colour] for colour in people],
            "prompt": "Some cooks.",
            "attributes": [[3, 6, 2]] * len(people),
            "omnigen_prompt": prompt,
            "identifier": ["woman"] * len(people),
            "vlm_questions": [],
        }
        for people, prompt in ENTRIES
    ]
    put_json("root/data/multihuman_metadata.json", rows)


@pytest.fixture
def results(root, put) -> None:
    for key, people in DRAWN.items():
        put(f"results/{key}.png", *people)


def test_counts_and_likeness_are_those_of_the_published_script(results, scored) -> None:
    """The sum over the assignment by the number of people: who is missing counts 0."""
    likeness = [1.0, 0.0, 2 / 3, (1 + cosine(TEAL, GREEN)) / 2]
    right = [1, 0, 0, 0]
    result = scored("multihuman")
    found = result["benchmark"]["published"]
    assert found["id_match/all"]["mean"] == pytest.approx(100 * np.mean(likeness), abs=1e-4)
    assert found["count_accuracy/all"]["mean"] == pytest.approx(100 * np.mean(right))
    assert found["id_match/complex-2"]["mean"] == pytest.approx(100 * likeness[3], abs=1e-4)
    assert found["id_match/simple-3"]["n"] == 1
    assert result["id_sim_strict"]["mean"] == pytest.approx(np.mean(likeness), abs=1e-6), "here they are one"
    assert "glintr100" in result["benchmark"]["comparable"]


def test_who_was_to_stand_where_is_read_from_its_prompts(root, results, scored, tmp_path: Path) -> None:
    items = MultiHuman().items(tmp_path / "root", tmp_path)
    assert [item.places for item in items] == [(2, 0), None, (0, 2, 1), None]
    result = scored("multihuman")
    assert (result["swapped"]["mean"], result["swapped"]["n"]) == (0, 2)


def test_a_missing_file_leaves_the_published_mean_and_costs_the_strict_number(results, scored, tmp_path) -> None:
    (tmp_path / "results/0.png").unlink()
    result = scored("multihuman")
    found = result["benchmark"]["published"]["id_match/all"]
    assert found["skipped"] == {"missing or unreadable picture": 1}
    assert found["mean"] == pytest.approx(100 * np.mean([0.0, 2 / 3, (1 + cosine(TEAL, GREEN)) / 2]), abs=1e-4)
    assert result["id_sim_strict"]["n"] == 4
    assert result["benchmark"]["missing"] == 1


def test_a_reference_without_a_face_is_counted(results, scored, put) -> None:
    put(f"root/{NAMES[BLUE]}", format="PNG")
    result = scored("multihuman")
    found = result["benchmark"]["published"]
    assert found["id_match/all"]["skipped"] == {"reference without a face": 2}
    assert found["count_accuracy/all"]["n"] == 4
    assert result["benchmark"]["skipped"] == {"pictures whose references cannot be used": 2}


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: (folder / "results/0.png").rename(folder / "results/000.png"), "000.png: no result of this"),
        (lambda folder: (folder / "results/4.png").write_bytes(b""), "4.png: no result of this benchmark"),
        (
            lambda folder: (folder / "root/data/multihuman_metadata.json").write_text("[{}]"),
            "entry 0 has no 'people'",
        ),
        (lambda folder: (folder / "root/data/multihuman_metadata.json").write_text("["), "not JSON"),
        (lambda folder: (folder / "root/data/multihuman_metadata.json").unlink(), "not there; put the benchmark's"),
    ],
)
def test_other_layouts_are_refused(results, scored, tmp_path: Path, spoil, reason: str) -> None:
    spoil(tmp_path)
    with pytest.raises(BadInput, match=reason):
        scored("multihuman")
