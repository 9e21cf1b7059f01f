"""XVerseBench: grids, names, and its two formulas, with every trap of its layout."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.umo.evaluation.benchmarks.conftest import BLUE, GREEN, ORANGE, RED, TEAL, cosine
from umo.errors import BadInput
from umo.evaluation.benchmarks.xverse import has_seam

LIST = "root/eval/tools/XVerseBench_{}.json"
PEOPLE = {
    "assets/XVerseBench/human/01_man.jpg": RED,
    "assets/XVerseBench/human/04_little girl.jpg": GREEN,
    "assets/XVerseBench/object/65_toy.jpg": BLUE,
}
MAN, GIRL, TOY = PEOPLE
NEWLINE = "A very long prompt of a man who waits\n and more"


def entry(index: int, prompt: str, *paths: str) -> dict:
    sources = [{"image_path": path, "caption": "a man"} for path in paths]
    words = [[k, "man", "man"] for k in range(len(paths))]
    modulation = [{"type": "adapter", "src_inputs": sources, "use_words": words}]
    return {"index": index, "input_images": [], "position_delta": [0, -32], "prompt": prompt, "modulation": modulation}


@pytest.fixture
def root(put, put_json) -> None:
    for path, colour in PEOPLE.items():
        put(f"root/{path}", colour, format="PNG")
    rows = [
        entry(0, "A man greets a girl", MAN, GIRL),
        entry(1, "A girl with a toy", TOY, GIRL),
        entry(2, "A toy", TOY, TOY),
        entry(3, NEWLINE, MAN, GIRL),
    ]
    put_json(LIST.format("multi"), rows)
    put_json(LIST.format("single"), [entry(0, NEWLINE, MAN)])


@pytest.fixture
def grid(tmp_path: Path, bands) -> Callable[..., Path]:
    """grid(name, four lists of colours) -> a result; each cell is three bands wide."""

    def write(name: str, *cells: tuple) -> Path:
        pictures = [np.pad(bands(*cell), ((0, 0), (0, 96 - bands(*cell).shape[1]), (0, 0))) for cell in cells]
        file = tmp_path / "results" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.vstack([np.hstack(pictures[:2]), np.hstack(pictures[2:])])).save(file)
        return file

    return write


CELLS = {
    "0": [(RED, GREEN), (ORANGE,), (), (RED, ORANGE, TEAL)],
    "1": [(GREEN,), (TEAL, GREEN), (BLUE, RED), (GREEN, BLUE)],
    "2": [(RED,), (), (BLUE,), ()],
    "3": [(ORANGE, TEAL), (RED, RED), (TEAL,), (GREEN, RED)],
}
ASKED = {"0": (RED, GREEN), "1": (GREEN,), "3": (RED, GREEN)}
NAMES = {
    "0": "0_A_man_greets_a_girl.png",
    "1": "1_A_girl_with_a_toy.png",
    "2": "2_A_toy.png",
    "3": "3_A_very_long_prompt_of_a_man_who_waits\n_an.png",
}


@pytest.fixture
def results(root, grid) -> None:
    for key, cells in CELLS.items():
        grid(NAMES[key], *cells)


def test_both_numbers_are_those_of_the_published_script(results, scored, tmp_path: Path) -> None:
    """Written anew from its rules: the most alike face of each reference, whoever else has it; ID-Conf of two faces."""
    (tmp_path / "results/0_A_man_greets_a_girl.json").write_text("{}")  # a sidecar
    similar, certain = [], []
    for key, references in ASKED.items():
        for cell in CELLS[key]:
            for reference in references:
                alike = sorted((cosine(reference, face) for face in cell), reverse=True)
                similar.append(alike[0] if alike else 0.0)
                if len(alike) >= 2:
                    certain.append(0.0 if alike[0] <= 0 else min(1.0, (alike[0] - alike[1]) / alike[0]))
    result = scored("xverse-multi")
    found = result["benchmark"]["published"]
    assert found["id_sim"]["mean"] == pytest.approx(100 * np.mean(similar), abs=1e-4)
    assert found["id_sim"]["n"] == len(similar) == 20 and found["id_sim"]["skipped"] == {}
    assert found["id_conf"]["mean"] == pytest.approx(100 * np.mean(certain), abs=1e-4)
    assert found["id_conf"]["n"] == len(certain)
    assert found["id_conf"]["skipped"] == {"picture with fewer than two faces": 20 - len(certain)}
    own = result["benchmark"]
    assert (own["items"], own["missing"], own["skipped"]) == (4, 0, {"nobody is asked for": 1})
    assert "IR-SE50" in own["comparable"] and "bands" in own["comparable"]
    assert (result["cases"], result["images"]) == (3, 12)


def test_strict_counts_whoever_is_not_there(results, scored) -> None:
    """One face serves one person, and a picture without faces is 0."""
    result = scored("xverse-multi")
    of_0 = [(1 + 1) / 2, cosine(ORANGE, RED) / 2, 0, (1 + cosine(TEAL, GREEN)) / 2]
    of_1 = [1, 1, 0, 1]
    of_3 = [
        (cosine(ORANGE, RED) + cosine(TEAL, GREEN)) / 2,
        (1 + 0) / 2,
        cosine(TEAL, GREEN) / 2,
        1,
    ]
    expected = np.mean([np.mean(of_0), np.mean(of_1), np.mean(of_3)])
    assert result["id_sim_strict"]["mean"] == pytest.approx(expected, abs=1e-6)
    assert result["by_tag"]["1 people"]["id_sim_strict"]["n"] == 1


def test_a_missing_file_stops_the_published_script_and_costs_the_strict_number(results, scored, tmp_path) -> None:
    whole = scored("xverse-multi", out="whole")
    (tmp_path / "results" / NAMES["3"]).unlink()
    result = scored("xverse-multi")
    found = result["benchmark"]
    assert found["published"]["id_sim"] == {
        "mean": None,
        "n": 0,
        "skipped": {"the published script stops at 3 files": 4},
    }
    assert found["missing"] == 4
    assert result["id_sim_strict"]["mean"] < whole["id_sim_strict"]["mean"]
    assert result["id_sim_strict"]["n"] == 3


def test_a_broken_grid_is_told(results, scored, tmp_path: Path) -> None:
    (tmp_path / "results" / NAMES["0"]).write_bytes(b"no picture")
    result = scored("xverse-multi")
    assert result["benchmark"]["published"]["id_sim"]["skipped"] == {"picture that cannot be read": 8}
    assert any("not an image" in failure["error"] for failure in result["failures"])


def test_the_single_list_has_no_id_conf(root, grid, scored) -> None:
    grid("0_" + NEWLINE[:40].replace(" ", "_") + ".png", (RED,), (ORANGE,), (RED,), (RED, RED))
    found = scored("xverse-single")["benchmark"]["published"]
    assert found.keys() == {"id_sim"}
    assert found["id_sim"]["mean"] == pytest.approx(100 * (3 + cosine(RED, ORANGE)) / 4, abs=1e-4)


def test_a_file_may_be_named_by_its_index_alone(results, scored, tmp_path: Path) -> None:
    before = scored("xverse-multi", out="before")["benchmark"]["published"]
    (tmp_path / "results" / NAMES["3"]).rename(tmp_path / "results/3.png")
    assert scored("xverse-multi")["benchmark"]["published"] == before


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda results: (results / "4_more.png").write_bytes(b""), "4_more.png: no result of this benchmark"),
        (lambda results: (results / "cover.jpg").write_bytes(b""), "cover.jpg: no result of this benchmark"),
        (lambda results: (results / "2.png").write_bytes(b""), "2.png and 2_A_toy.png are both of index 2: remove one"),
        (lambda results: [path.unlink() for path in results.iterdir()], "holds no results; draw them first"),
        (lambda results: results.rename(results.with_name("away")), "no such folder of results"),
        (
            lambda results: [_lone(path) for path in results.iterdir()],
            "3 of 3 files look like one picture each and not like a 2x2 grid",
        ),
        (
            lambda results: Image.new("RGB", (65, 64)).save(results / "2_A_toy.png"),
            None,  # nobody is asked for in it
        ),
        (
            lambda results: Image.new("RGB", (65, 64)).save(results / "1_A_girl_with_a_toy.png"),
            "65x64 px has no middle; a 2x2 grid is needed",
        ),
    ],
)
def test_results_of_another_layout_are_refused(results, scored, tmp_path: Path, spoil, reason) -> None:
    spoil(tmp_path / "results")
    if reason is None:
        assert scored("xverse-multi")["images"] == 12
        return
    with pytest.raises(BadInput, match=reason.replace(".", r"\.")):
        scored("xverse-multi")


def _lone(path: Path) -> None:
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 255, (6, 9, 3), dtype=np.uint8))
    smooth.resize((96, 64), Image.Resampling.BICUBIC).save(path)


def test_the_list_must_be_as_published(root, grid, scored, put_json) -> None:
    grid("0.png", (RED,), (), (), ())
    for rows, reason in (
        ([], "not a list of cases"),
        ([{"index": 0}], "entry 0 has no 'prompt'"),
        ([entry(1, "a", MAN)], "its index is 1, and must be its position"),
        ([entry(0, "a", "../../outside/human/a.jpg")], "lies outside"),
        ([entry(0, "a") | {"modulation": [{}]}], "no modulation with src_inputs"),
        ([entry(0, "a", "assets/human/gone.jpg")], "1 pictures are missing, the first .*gone.jpg"),
    ):
        put_json(LIST.format("single"), rows)
        with pytest.raises(BadInput, match=reason):
            scored("xverse-single")


def test_seams() -> None:
    rng = np.random.default_rng(1)
    cells = [
        np.asarray(Image.fromarray(rng.integers(0, 255, (5, 5, 3), dtype=np.uint8)).resize((64, 64))) for _ in range(4)
    ]
    assert has_seam(np.vstack([np.hstack(cells[:2]), np.hstack(cells[2:])]))
    assert not has_seam(np.asarray(Image.fromarray(cells[0]).resize((128, 128), Image.Resampling.BICUBIC)))
    assert has_seam(np.full((64, 64, 3), 200, np.uint8)), "flat: it may be a grid"
