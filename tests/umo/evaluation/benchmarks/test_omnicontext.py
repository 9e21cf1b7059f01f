"""OmniContext: its table in both forms, likeness pooled over references, and the language model's files."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import datasets
from tests.umo.evaluation.benchmarks.conftest import BLUE, GREEN, ORANGE, RED, TEAL, cosine
from umo.errors import BadInput

ROWS = {  # key: (task_type, colours of each input, colours drawn)
    "0001": ("single_character", [(RED,)], (ORANGE,)),
    "0002": ("multi_character", [(RED,), (GREEN,)], (RED, TEAL)),
    "0003": ("multi_character", [(GREEN,), (BLUE,)], ()),
    "0004": ("multi_character_object", [(RED,), ()], (RED, BLUE)),  # a thing: no face in it
    "0005": ("scene_character", [(BLUE,), (GREEN, RED)], (BLUE, GREEN)),  # somebody in the scene: counted too
    "0006": ("single_object", [(RED,)], (RED,)),
}


def encoded(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG")
    return file.getvalue()


@pytest.fixture
def rows(bands) -> list[dict]:
    return [
        {
            "key": key,
            "task_type": kind,
            "instruction": f"The people of {key} dance",
            "instruction_language": "en",
            "input_images": [{"bytes": encoded(bands(*colours)), "path": None} for colours in inputs],
        }
        for key, (kind, inputs, _) in ROWS.items()
    ]


@pytest.fixture
def root(tmp_path: Path, rows) -> Path:
    (tmp_path / "root/data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows[:4]), tmp_path / "root/data/train-00000-of-00002.parquet")
    pq.write_table(pa.Table.from_pylist(rows[4:]), tmp_path / "root/data/train-00001-of-00002.parquet")
    return tmp_path / "root"


@pytest.fixture
def results(root, put) -> None:
    for key, (kind, _, drawn) in ROWS.items():
        put(f"results/fullset/{kind}/{key}.png", *drawn)


def expected(*keys: str) -> tuple[list[float], list[float]]:
    """ID-Sim and ID-Conf of the references, from UMO's rules: the most alike face, and two at least."""
    similar, certain = [], []
    for key in keys:
        _, inputs, drawn = ROWS[key]
        for colours in filter(None, inputs):
            alike = sorted((cosine(colours[0], face) for face in drawn), reverse=True)
            similar.append(alike[0] if alike else 0.0)
            if len(alike) > 1:
                certain.append(min(1.0, (alike[0] - alike[1]) / alike[0]) if alike[0] > 0 else 0.0)
    return similar, certain


def test_likeness_is_pooled_over_references(results, scored) -> None:
    result = scored("omnicontext")
    found = result["benchmark"]["published"]
    parts = {
        "single_character": ["0001"],
        "multi_character": ["0002", "0003"],
        "multi_character_object": ["0004"],
        "scene_character": ["0005"],
        "avg": ["0001", "0002", "0003", "0004", "0005"],
    }
    assert found.keys() == {f"{name}/{part}" for part in parts for name in ("id_sim", "id_conf")}
    for part, keys in parts.items():
        for name, values in zip(("id_sim", "id_conf"), expected(*keys), strict=True):
            mean = pytest.approx(10 * np.mean(values), abs=1e-5) if values else None
            assert (found[f"{name}/{part}"]["mean"], found[f"{name}/{part}"]["n"]) == (mean, len(values)), part
    assert found["id_sim/avg"]["skipped"] == {"input without a face": 1}
    assert found["id_conf/multi_character_object"]["n"] == 1, "of one reference too"
    assert result["benchmark"]["skipped"] == {"nobody is asked for": 1}
    assert (result["cases"], result["by_n"].keys()) == (5, {"1", "2"})


def test_the_largest_face_of_an_input_is_the_reference(root, results, scored, rows, bands) -> None:
    wide = np.concatenate([bands(GREEN), np.zeros((32, 32, 3), np.uint8), bands(RED)], axis=1)
    rows[0]["input_images"] = [{"bytes": encoded(np.repeat(wide, 1, axis=0)), "path": None}]
    pq.write_table(pa.Table.from_pylist(rows[:4]), root / "data/train-00000-of-00002.parquet")
    found = scored("omnicontext")["benchmark"]["published"]["id_sim/single_character"]
    assert found["n"] == 1, "one reference an input, however many faces it shows"


def test_a_folder_of_datasets_is_read_alike(results, scored, rows, tmp_path: Path) -> None:
    before = scored("omnicontext", out="before")["benchmark"]["published"]
    (tmp_path / "root").rename(tmp_path / "parquet")
    table = datasets.Dataset.from_list(rows)
    table = table.cast_column("input_images", datasets.Sequence(datasets.Image()))
    datasets.DatasetDict({"train": table}).save_to_disk(str(tmp_path / "root"))
    assert scored("omnicontext")["benchmark"]["published"] == before


def test_a_missing_picture_stops_the_published_script(results, scored, tmp_path: Path) -> None:
    whole = scored("omnicontext", out="whole")
    (tmp_path / "results/fullset/multi_character/0002.png").unlink()
    result = scored("omnicontext")
    found = result["benchmark"]["published"]["id_sim/avg"]
    assert found == {"mean": None, "n": 0, "skipped": {"the published script stops: 1 pictures missing": 1}}
    assert result["id_sim_strict"]["mean"] < whole["id_sim_strict"]["mean"] and result["id_sim_strict"]["n"] == 5


def test_scores_of_a_language_model_are_read(results, scored, tmp_path: Path) -> None:
    """The geometric mean of both parts; kinds weigh alike; an item without a line is passed over, and counted."""
    given = {
        "single_character": {"0001": (8, 2)},
        "multi_character": {"0003": (9, 4)},
        "single_object": {"0006": (0, 7)},
    }
    for kind, scores in given.items():
        folder = tmp_path / "results/gpt4dot1" / kind
        folder.mkdir(parents=True)
        lines = [json.dumps({"key": key, "PF_score": pf, "SC_score": sc}) for key, (pf, sc) in scores.items()]
        (folder / "score.jsonl").write_text("\n".join(lines) + "\n")
    found = scored("omnicontext")["benchmark"]["published"]
    assert found["vlm/single_character"] == {"mean": 4.0, "n": 1, "skipped": {}}
    assert found["vlm/multi_character"] == {"mean": 6.0, "n": 1, "skipped": {"without a score": 1}}
    assert found["vlm/scene_character"] == {"mean": None, "n": 0, "skipped": {"without a score": 1}}
    assert found["vlm/overall"]["mean"] == pytest.approx(np.mean([math.sqrt(16), math.sqrt(36), 0]))
    (tmp_path / "results/gpt4dot1/single_object/score.jsonl").write_text('{"key": "0006", "PF_score": "good"}\n')
    with pytest.raises(BadInput, match=r"score.jsonl:1: no line with key, PF_score and SC_score"):
        scored("omnicontext")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: (folder / "results/fullset").rename(folder / "results/full"), "no folder fullset in it"),
        (
            lambda folder: (folder / "results/fullset/single_object/0006.png").rename(
                folder / "results/fullset/single_object/six.png"
            ),
            "fullset/single_object/six.png: no result of this benchmark",
        ),
        (
            lambda folder: [path.rename(path.with_suffix(".jpg")) for path in folder.rglob("fullset/*/*.png")],
            "none of its 6 files is a result",
        ),
        (lambda folder: [path.unlink() for path in folder.rglob("*.parquet")], r"neither \*.parquet nor a folder"),
        (
            lambda folder: pq.write_table(pa.table({"key": ["a"]}), folder / "root/data/more.parquet"),
            "no column 'task_type'",
        ),
    ],
)
def test_other_layouts_are_refused(results, scored, tmp_path: Path, spoil, reason: str) -> None:
    spoil(tmp_path)
    with pytest.raises(BadInput, match=reason):
        scored("omnicontext")


@pytest.mark.parametrize("key", ["../../etc", "0001", "", None, 7])
def test_keys_that_are_no_names_are_refused(results, scored, rows, root, key) -> None:
    pq.write_table(pa.Table.from_pylist([rows[4] | {"key": key}]), root / "data/train-00001-of-00002.parquet")
    with pytest.raises(BadInput, match=r"names no file, or is there twice"):
        scored("omnicontext")
