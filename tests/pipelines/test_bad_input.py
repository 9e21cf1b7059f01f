"""What goes wrong at the edges: one clear line, the right exit code, nothing half-written."""

import json
import resource
import shutil
import subprocess
import sys

import polars as pl
import pytest

from pipelines.core import products
from tests.pipelines import quick
from tests.pipelines.conftest import Workspace


@pytest.fixture(scope="module")
def rows(repro) -> dict[str, dict]:
    """The user's photographs as ingested, by file name."""
    tables = [pl.read_parquet(file) for file in (repro.path / products.INGESTED).glob("*/images.parquet")]
    return {row["path"]: row for row in pl.concat(tables).filter(pl.col("source") == "mine").to_dicts()}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("truncated.jpg", "truncated or corrupt"),
        ("corrupt.png", "not an image|truncated or corrupt"),
        ("empty.jpg", "empty file"),
        ("text.jpg", "not an image"),
        ("dot.png", "1x1 px is too small"),
        ("huge.png", "20000x20000 px is over the limit"),
    ],
)
def test_a_bad_photograph_keeps_a_row_with_its_reason(rows, name, reason):
    row = rows[name]
    assert row["status"] == "error"
    assert row["key"] is None
    assert any(part in row["error"] for part in reason.split("|"))
    assert ":" in row["error"], "a reason and a remedy"


def test_the_good_photographs_go_on(rows):
    good = {name for name, row in rows.items() if row["status"] == "ok"}
    assert {"colour.png", "grey.webp", "rotated.jpg", "nobody.png"} <= good
    assert len({"plain.jpg", "twice.jpg"} & good) == 1
    assert rows["rotated.jpg"]["height"] == rows["plain.jpg"]["height"] or rows["twice.jpg"]["height"]
    assert rows["rotated.jpg"]["width"] < rows["rotated.jpg"]["height"], "EXIF rotation was applied"


def test_a_picture_without_a_face_is_measured_and_joins_nobody(repro, rows):
    image_id = rows["nobody.png"]["image_id"]
    files = (repro.path / products.MEASURED_PHOTOS).glob("*/measured.parquet")
    measured = {row["image_id"]: row for file in files for row in pl.read_parquet(file).to_dicts()}
    assert measured[image_id]["n_faces"] == 0
    assert measured[image_id]["error"] is None
    assert measured[rows["empty.jpg"]["image_id"]]["error"].startswith("empty file")


def test_a_bad_photograph_is_named_in_the_log(workspace):
    subprocess.run(["rm", "-rf", str(workspace.path / ".work/ingest")], check=True)
    done = workspace.stage("ingest", check=True)
    assert "ingest: mine/empty.jpg: empty file (0 bytes): copy it again from its origin" in done.stdout


@pytest.fixture
def inputs(repro, tmp_path) -> Workspace:
    """What is written by hand, to be spoiled, and the first product."""
    for folder in ("datasets/photos", str(products.INGESTED)):
        shutil.copytree(repro.path / folder, tmp_path / "umo" / folder)
    for name in ("params.yaml", "datasets/sources.yaml"):
        shutil.copy(repro.path / name, tmp_path / "umo" / name)
    return Workspace(tmp_path / "umo")


@pytest.mark.parametrize(
    ("section", "change", "line"),
    [
        ("synthesise", {"scenes": {"trian": 6}}, "'synthesise.scenes.trian.[key]'"),
        ("synthesise", {"min_scale": 0.5}, "min_scale must not exceed max_scale"),
        ("identify", {"fractions": {"train": 1.5, "validation": -0.5, "test": 0}}, "'identify.fractions.train'"),
        ("curate", {"min_cosin": 0.1}, "params.yaml: unknown key 'curate.min_cosin'; did you mean 'min_cosine'?"),
        ("curate", {"pool": 0}, "'curate.pool': input should be greater than or equal to 1, found 0"),
        ("curate", {"min_cosine": 0.99}, "min_cosine must be below max_cosine"),
        ("identify", {"fractions": {"train": 0.5, "validation": 0.1, "test": 0.1}}, "add up to 1"),
        ("synthesise", {"generator": "dream"}, "'synthesise.generator': input should be 'composite'"),
        ("measure", {"faces": "facenet"}, "no face model 'facenet': choose one of opencv_zoo, dlib, insightface"),
        ("evaluate", {"judge": "opencv_zoo"}, "evaluate.judge is 'opencv_zoo', which also curates"),
    ],
)
def test_a_bad_parameter_is_one_line(inputs, section, change, line):
    inputs.params(**{section: change})
    stages = {"measure": ["measure", "--of", "ingested"], "evaluate": ["evaluate", "--of", "target"]}
    done = inputs.stage(*stages.get(section, ["ingest"]))
    assert done.returncode == 2
    assert line in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_missing_key_and_an_unknown_section(inputs):
    file = inputs.path / "params.yaml"
    text = file.read_text()
    file.write_text(text.replace("  pool: 4\n", ""))
    assert "key 'curate.pool' is missing" in inputs.stage("check").stderr
    file.write_text(text + "\nmeazure: {}\n")
    done = inputs.stage("check")
    assert done.returncode == 2
    assert "unknown section 'meazure'; did you mean 'measure'?" in done.stderr


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("mine: {path: datasets/nowhere, licence: CC0}", "datasets/nowhere is not a folder"),
        ("mine: {path: datasets/photos, licence: CC0}", "no picture in datasets/photos fits"),
        ("mine: {path: datasets/photos/mine, licens: CC0}", "'licens'"),
        ("mine: {path: datasets/photos/mine, consent: sure}", "'consent'"),
        ("mine: {package: no-such-package, path: x}", "no package no-such-package"),
        ("- just a list", "not a mapping of names to sources"),
    ],
)
def test_a_bad_source_is_one_line(inputs, text, line):
    mine = inputs.path / "datasets/photos/mine"
    if "datasets/photos," in text:
        subprocess.run(["rm", "-r", str(mine)], check=True)
    (inputs.path / "datasets/sources.yaml").write_text(text)
    done = inputs.stage("ingest")
    assert done.returncode == 2
    assert line in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_photographs_without_a_licence_are_refused(inputs):
    (inputs.path / "datasets/sources.yaml").write_text("mine: {path: datasets/photos/mine}")
    done = inputs.stage("ingest", check=True)
    assert "mine/plain.jpg: no licence: state it for 'mine'" in done.stdout
    inputs.params(ingest={"allow_missing_licence": True})
    assert "5 pictures" in inputs.stage("ingest", check=True).stdout


def test_a_full_disk_stops_with_one_line_and_leaves_the_old_product(repro, workspace):
    """A limit on the size of files stands for a full disk: the write fails in the same place."""
    subprocess.run(["rm", "-rf", str(workspace.path / ".work/ingest")], check=True)
    done = workspace.run(
        sys.executable,
        "-m",
        "pipelines",
        "ingest",
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)),
    )
    assert done.returncode == 1
    assert "free some space and run again" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((workspace.path / ".work/ingest").glob("*/images.tar"))
    for file in (repro.path / products.INGESTED).rglob("*.parquet"):
        relative = file.relative_to(repro.path)
        assert (workspace.path / relative).read_bytes() == file.read_bytes()


def test_a_missing_product_says_what_to_run(workspace):
    subprocess.run(["rm", "-rf", str(workspace.path / products.PEOPLE)], check=True)
    done = workspace.stage("curate")
    assert done.returncode == 2
    assert done.stderr.strip() == ("curate: datasets/people: missing; run the stage that makes it (dvc repro)")


def test_a_missing_weight_file_is_one_line(workspace):
    script = (
        "import sys; from umo.faces import weights; from pathlib import Path;"
        "import importlib.metadata as m; real = m.distribution;"
        "import umo.faces as f; f.MODELS['opencv_zoo'] = lambda: __import__('umo.faces.opencv_zoo',"
        " fromlist=['OpenCVZoo']).OpenCVZoo(weights=Path('nowhere'));"
        "from pipelines.__main__ import main; sys.exit(main(['measure', '--of', 'ingested']))"
    )
    done = subprocess.run(
        [quick.python(), "-c", script],
        cwd=workspace.path,
        env=workspace.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "face_detection_yunet_2023mar_int8bq.onnx" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_unknown_stages_and_parts(inputs):
    assert inputs.stage("measur").returncode == 2
    done = inputs.stage("measure")
    assert done.returncode == 2
    assert "--of, one of ingested, synthesised" in done.stderr
    assert inputs.stage("curate", "--of", "ingested").returncode == 2


def test_the_failing_stage_of_dvc_repro_names_its_fault(workspace):
    sets = workspace.path / products.CURATED / products.SETS_TABLE
    from umo import records

    table = records.read(sets, records.SETS)
    rows = table.to_pylist()
    kept = next(row for row in rows if row["keep"])
    kept["licence"] = None
    sets.unlink()
    records.write(sets, rows, records.SETS)
    done = workspace.run("dvc", "repro", "--single-item", "validate", check=False)
    assert done.returncode != 0
    assert "validate: sets: a set without a licence (1 of" in done.stderr
    assert kept["set_id"] in done.stderr
    results = json.loads((workspace.path / products.VALIDATED / products.VALIDATION).read_text())
    assert results["faults"]
    assert (workspace.path / products.VALIDATED / products.DATA_DOCS / "index.html").exists()
