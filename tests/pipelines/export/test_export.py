"""The export, each form read back with its own library and compared with the sets that went in."""

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.core import products
from pipelines.core.locks import alone
from pipelines.core.shards import WORK, Machine
from pipelines.export import stage as export
from pipelines.export.card import BAR, histogram
from pipelines.export.formats import parquet
from pipelines.export.parts import numbered
from tests.pipelines import killed
from tests.pipelines.made_sets import Made, make, write_captions
from umo import records
from umo.errors import BadInput, WorkFailed

ROOT = Path(__file__).resolve().parents[3]
FORMATS = ("parquet", "webdataset", "uno", "croissant")
PARAMS = export.Params(formats=FORMATS, reference_crop=1.5, reference_side=64, rows_per_file=3)


@pytest.fixture(scope="module")
def made(orl: Callable[[int, int], np.ndarray]) -> Made:
    return make(orl)


@pytest.fixture(scope="module")
def world(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the products and the export of them, in every form; three sets a file."""
    folder = tmp_path_factory.mktemp("world")
    _export(folder, made)
    return folder


def _export(
    folder: Path, made: Made | None = None, params: export.Params = PARAMS, machine: Machine | None = None
) -> None:
    before = Path.cwd()
    os.chdir(folder)
    try:
        if made:
            made.write()
        export.run(params, machine or Machine())
    finally:
        os.chdir(before)


@pytest.fixture
def here(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder is a copy of the world that a test may spoil."""
    shutil.copytree(world, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    return tmp_path / "copy"


@pytest.fixture(scope="module")
def rows(world: Path) -> dict[str, dict]:
    """set_id -> row of Parquet."""
    files = sorted((world / products.EXPORTED).glob("*.parquet"))
    assert [file.name for file in files] == ["test-00000.parquet", "train-00000.parquet", "train-00001.parquet"]
    return {row["set_id"]: row for file in files for row in pq.read_table(file).to_pylist()}


def pixels(image: bytes | Image.Image) -> np.ndarray:
    opened = image if isinstance(image, Image.Image) else Image.open(io.BytesIO(image))
    return np.asarray(opened.convert("RGB"))


def same(a: bytes | Image.Image, b: bytes | Image.Image) -> bool:
    return np.array_equal(pixels(a), pixels(b))


# Parquet against the products.


def test_every_kept_set_is_there_once_and_nothing_is_lost(made: Made, rows: dict[str, dict]) -> None:
    kept = {row["set_id"]: row for row in made.sets if row["keep"]}
    assert set(rows) == set(kept)
    for set_id, row in rows.items():
        truth = kept[set_id]
        assert row["prompt"] == f"In a park. {truth['prompt']}"  # the caption
        for name in ("n", "person_ids", "background", "split", "source", "licence", "consent"):
            assert row[name] == truth[name], name
        assert np.allclose(row["target_boxes"], truth["target_boxes"])
        assert row["target"]["bytes"] == made.pictures[truth["target_image_id"]][1]
        faces = [[entry["face_id"] for entry in pool] for pool in truth["pool"]]
        assert [image["path"] for image in row["references"]] == [f"{pool[0]}.jpg" for pool in faces]
        assert [[image["path"] for image in pool] for pool in row["pool"]] == [
            [f"{face}.jpg" for face in pool[1:]] for pool in faces
        ]
        assert row["reference_recall"] == ["group"] * truth["n"]
        assert row["pool_recall"] == [["corpus"] * (len(pool) - 1) for pool in faces]


def test_a_reference_is_the_square_around_its_face_and_shows_nobody_else(made: Made, rows: dict[str, dict]) -> None:
    """Against slicing the photograph: 1.5 sides of the box or up to the next face, scaled down to 64 px."""
    sides = set()
    for image, landmarks in (pair for row in rows.values() for pair in _references(row)):
        image_id, box, points = made.faces[image["path"].removesuffix(".jpg")]
        middle = (box[:2] + box[2:]) / 2
        others = [at for picture, at, _ in made.faces.values() if picture == image_id and at is not box]
        free = [2 * max(at[0] - middle[0], middle[0] - at[2]) for at in others]
        side = round(float(min([1.5 * (box[3] - box[1]), *free])))
        x, y = (round(float(value)) for value in middle - side / 2)
        cut = Image.fromarray(pixels(made.pictures[image_id][1])[y : y + side, x : x + side])
        assert cut.size == (side, side)
        scaled = np.asarray(cut.resize((64, 64), Image.Resampling.BOX), np.float64)
        assert np.abs(scaled - pixels(image["bytes"])).mean() < 3
        expected = (points.reshape(5, 2) - [x, y] + 0.5) * 64 / side - 0.5
        assert np.allclose(np.reshape(landmarks, (5, 2)), expected, atol=1e-3)
        sides.add(side)
    assert len(sides) == 2, "one of them has neighbours"


def _references(row: dict) -> Iterator[tuple[dict, list[float]]]:
    yield from zip(row["references"], row["reference_landmarks"], strict=True)
    for pool, landmarks in zip(row["pool"], row["pool_landmarks"], strict=True):
        yield from zip(pool, landmarks, strict=True)


def test_a_row_names_every_source_licence_and_consent_of_what_it_shows(made: Made, rows: dict[str, dict]) -> None:
    by_sources = {tuple(row["sources"]): row for row in rows.values()}
    drawn = by_sources["composite", "diptych", "one", "two"]
    assert drawn["consent"] == "drawn"
    assert by_sources["composite", "one", "two"]["licence"] == "CC-BY + CC0"
    assert {"two"} < {name for row in rows.values() for name in row["sources"]}
    for row in rows.values():
        assert row["source"] in row["sources"]


def test_the_schema_is_what_datasets_itself_would_write() -> None:
    from datasets import Features

    written = parquet.schema()
    assert Features.from_arrow_schema(written).arrow_schema.equals(written, check_metadata=True)


def test_rows_leave_in_small_groups(
    here: Path, made: Made, rows: dict[str, dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "ROW_GROUP", 2)
    shutil.rmtree(".work")
    export.run(PARAMS, Machine())
    table = pq.ParquetFile(products.EXPORTED / "train-00000.parquet")
    assert [table.metadata.row_group(k).num_rows for k in range(table.num_row_groups)] == [2, 1]
    assert {row["set_id"]: row for row in table.read().to_pylist()}.items() <= rows.items()


# The other forms against Parquet.


def test_datasets_opens_the_folder_and_a_folder_of_tars_for_each_number_of_people(
    here: Path, rows: dict[str, dict]
) -> None:
    from datasets import load_dataset

    opened = load_dataset(str(products.EXPORTED))
    assert {name: len(opened[name]) for name in opened} == {"train": 5, "test": 2}
    for row in (row for split in opened.values() for row in split):
        truth = rows[row["set_id"]]
        assert all(same(a, b["bytes"]) for a, b in zip(row["references"], truth["references"], strict=True))
        assert [len(pool) for pool in row["pool"]] == [len(pool) for pool in truth["pool"]]
    seen = set()
    for n in (1, 2, 3):
        for split in load_dataset(str(products.EXPORTED / "webdataset"), f"n{n}").values():
            for row in split:
                truth = rows[row["__key__"]]
                assert truth["n"] == n
                assert all(same(row[f"ref_{k}.jpg"], truth["references"][k]["bytes"]) for k in range(n))
                seen.add(row["__key__"])
    assert seen == set(rows)


def test_what_datasets_keeps_of_an_export_is_not_taken_for_the_next(here: Path, made: Made) -> None:
    """It keeps what it has read under the folder's name and the card's configurations, and looks at no file again."""
    from datasets import load_dataset

    def opened() -> list[str]:
        tables = load_dataset(str(products.EXPORTED), split="test")["set_id"]
        return [*tables, *load_dataset(str(products.EXPORTED / "webdataset"), "n2", split="test")["__key__"]]

    before = opened()
    gone = next(row["set_id"] for row in made.sets if row["split"] == "test" and row["n"] == 2)
    # The files keep their names, and the other files their bytes.
    moved = [row | {"set_id": "s0123456789abcdef" if row["set_id"] == gone else row["set_id"]} for row in made.sets]
    records.write(products.CURATED / products.SETS_TABLE, moved, records.SETS)
    write_captions(moved)
    export.run(PARAMS, Machine())
    assert before.count(gone) == 2 and gone not in opened()


def test_webdataset_reads_the_same_sets(world: Path, rows: dict[str, dict]) -> None:
    import webdataset

    tars = sorted((world / products.EXPORTED / "webdataset").glob("*/*.tar"))
    seen = set()
    for tar in tars:
        split = tar.name.split("-")[0]
        for sample in webdataset.WebDataset(str(tar), shardshuffle=False).decode("pil"):
            truth = rows[sample["__key__"]]
            seen.add(sample["__key__"])
            suffix = {1: "jpg", 2: "png", 3: "png"}[truth["n"]]
            members = {"txt", "json", f"target.{suffix}", *(f"ref_{k}.jpg" for k in range(truth["n"]))}
            assert {name for name in sample if not name.startswith("__")} == members
            assert tar.parent.name == f"n{truth['n']}" and truth["split"] == split
            assert sample["txt"] == truth["prompt"]
            assert same(sample[f"target.{suffix}"], truth["target"]["bytes"])
            for k, reference in enumerate(truth["references"]):
                assert same(sample[f"ref_{k}.jpg"], reference["bytes"])
            for name in ("person_ids", "target_boxes", "reference_landmarks", "licence", "consent", "sources"):
                assert sample["json"][name] == truth[name]
    assert seen == set(rows)


def test_tars_tell_nothing_of_the_day_and_the_truth_of_their_pictures(world: Path) -> None:
    for tar in (world / products.EXPORTED / "webdataset").glob("*/*.tar"):
        with tarfile.open(tar) as archive:
            members = archive.getmembers()
            begins = {(Path(one.name).suffix, archive.extractfile(one).read(2)) for one in members}
        assert {pair for pair in begins if pair[0] in (".jpg", ".png")} <= {(".jpg", b"\xff\xd8"), (".png", b"\x89P")}
        assert {(one.mtime, one.uid, one.gid, one.uname, one.gname, one.mode) for one in members} == {
            (0, 0, 0, "", "", 0o644)
        }


def test_uno_reads_its_json(world: Path, rows: dict[str, dict]) -> None:
    """As UNO's FluxPairedDatasetV2 does: paths are joined to the folder of the JSON."""
    seen = set()
    for split in ("train", "test"):
        file = world / products.EXPORTED / "uno" / f"{split}.json"
        for record in json.loads(file.read_text()):
            truth = rows[record["set_id"]]
            seen.add(record["set_id"])
            assert truth["split"] == split and record["prompt"] == truth["prompt"]
            assert same((file.parent / record["image_tgt_path"]).read_bytes(), truth["target"]["bytes"])
            read = [(file.parent / path).read_bytes() for path in record["image_paths"]]
            assert read == [image["bytes"] for image in truth["references"]]
            assert record["licence"] == truth["licence"] and record["consent"] == truth["consent"]
    assert seen == set(rows)


def test_croissant_is_valid_and_reads_the_records(here: Path, rows: dict[str, dict]) -> None:
    import mlcroissant

    file = products.EXPORTED / "croissant.json"
    described = mlcroissant.Dataset(file)
    assert not described.metadata.ctx.issues.errors
    read = list(described.records("sets"))
    assert {record["sets/set_id"].decode() for record in read} == set(rows)
    for record in read:
        truth = rows[record["sets/set_id"].decode()]
        assert same(record["sets/target"], truth["target"]["bytes"])
        assert all(same(a, b["bytes"]) for a, b in zip(record["sets/references"], truth["references"], strict=True))
        assert np.allclose(record["sets/target_boxes"], truth["target_boxes"])
        assert [name.decode() for name in record["sets/sources"]] == truth["sources"]
        assert record["sets/n"] == truth["n"] and record["sets/consent"].decode() == truth["consent"]
    fields = {field.name: field for field in described.metadata.record_sets[0].fields}
    assert set(fields) == set(parquet.COLUMNS) - {"pool", "pool_recall", "pool_landmarks"}
    assert fields["target_boxes"].array_shape_tuple == (-1, 4) and fields["person_ids"].is_array
    assert any("one village" in text for text in described.metadata.data_biases)
    assert described.metadata.personal_sensitive_information
    assert described.metadata.license == ["CC-BY", "CC0"]


def test_mlcroissant_validates_it_and_it_lists_the_tables(world: Path) -> None:
    folder = world / products.EXPORTED
    done = subprocess.run(
        ["mlcroissant", "validate", "--jsonld", "croissant.json"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0 and "Done" in done.stderr, done.stderr
    listed = [
        entry for entry in json.loads((folder / "croissant.json").read_text())["distribution"] if "sha256" in entry
    ]
    assert [(entry["contentUrl"], entry["contentSize"], entry["sha256"]) for entry in listed] == [
        (path.name, f"{path.stat().st_size} B", hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.glob("*.parquet"))
    ]


def test_the_examples_of_the_document_run(here: Path) -> None:
    local, *_ = (ROOT / "docs" / "loading.md").read_text().partition("\n## From S3\n")  # those: release/test_loading.py
    blocks = re.findall(r"```python\n(.*?)```", local, re.DOTALL)
    assert len(blocks) == 7
    for block in blocks:
        exec(compile(block, "docs/loading.md", "exec"), {"print": lambda *values: None})


# The folder as a whole.


def test_the_same_input_gives_the_same_bytes(world: Path, made: Made, tmp_path: Path) -> None:
    """In another folder, in two processes."""
    _export(tmp_path, made, machine=Machine(executor="process", workers=2))
    there, here = (_contents(folder / products.EXPORTED) for folder in (world, tmp_path))
    assert there == here


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_checksums_are_of_every_file(world: Path) -> None:
    folder = world / products.EXPORTED
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    checked = {line.removesuffix(": OK") for line in done.stdout.splitlines()}
    assert checked | {"SHA256SUMS"} == set(_contents(folder))
    assert {"webdataset/n2/train-00000.tar", "uno/train.json", "croissant.json", "contact_sheet_test.jpg"} < checked


def test_nothing_tells_where_it_was_made(world: Path) -> None:
    for name, data in _contents(world / products.EXPORTED).items():
        assert str(world).encode() not in data and str(Path.home()).encode() + b"/" not in data, name
        if name.endswith((".jpg", ".png")):
            opened = Image.open(io.BytesIO(data))
            assert not opened.getexif() and not set(opened.info) - {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


def test_the_card_counts_credits_and_warns(world: Path, made: Made) -> None:
    card = (world / products.EXPORTED / "README.md").read_text()
    assert "7 training examples" in card and "9 pictures were considered and 7 kept" in card
    assert "| too few people | 2 |" in card
    assert "| one | CC0 | given | Somebody, 2024 |" in card
    assert "| composite | of what it was made from |" in card and "| diptych |" in card and "unused" not in card
    assert "- two: only people of one village" in card
    licences = {(row["licence"], row["consent"]) for row in made.sets if row["keep"]}
    for licence, consent in licences:
        count = sum(row["keep"] and (row["licence"], row["consent"]) == (licence, consent) for row in made.sets)
        assert f"| {licence} | {consent} | {count} |" in card


def test_a_histogram_counts_what_numpy_counts() -> None:
    values = np.array([0.65, 0.66, 0.7, 0.7, 0.7, 0.849], np.float32)
    lines = [line.split() for line in histogram(values, 0.05, ".2f").splitlines()]
    assert [line[0] for line in lines] == ["0.65", "0.70", "0.75", "0.80"]
    assert [int(line[-1]) for line in lines] == [2, 3, 0, 1]
    assert [len(line[1]) if len(line) == 3 else 0 for line in lines] == [round(BAR * 2 / 3), BAR, 0, round(BAR / 3)]
    assert histogram(np.array([]), 1, ".0f") == "(none)"


# Again, and with faults.


def test_what_did_not_change_is_not_done_again(here: Path, made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    """Another form cuts nothing again; a set that is turned away rewrites its own file, and cuts nothing either."""
    before = _contents(products.EXPORTED)
    export.run(PARAMS.model_copy(update={"formats": ("parquet",)}), Machine())
    assert (
        "export: 3 of 3 shards are done already" in capsys.readouterr().out
    )  # crops: two of photographs, one of scenes
    only = {name for name in before if not name.startswith(("webdataset/", "uno/")) and name != "croissant.json"}
    assert set(_contents(products.EXPORTED)) == only
    turned_away = next(row["set_id"] for row in made.sets if row["split"] == "test")
    sets = [row | {"keep": row["keep"] and row["set_id"] != turned_away} for row in made.sets]
    records.write(products.CURATED / products.SETS_TABLE, sets, records.SETS)
    export.run(PARAMS, Machine())
    assert "export: 2 of 3 shards are done already" in capsys.readouterr().out.split(str(export.CROPS))[1]
    after = _contents(products.EXPORTED)
    assert {name for name in before if name.startswith("train-") and after[name] == before[name]}
    assert turned_away.encode() not in b"".join(after.values())


@pytest.mark.parametrize(("rows_per_file", "files"), [(100, 1), (40, 4), (1, None)])
def test_a_set_stays_in_its_file_whatever_comes(rows_per_file: int, files: int | None) -> None:
    """The first bits of its id, in a split of a hundred; only one that is too full halves them."""
    ids = [f"s{hashlib.sha256(bytes([k])).hexdigest()[:16]}" for k in range(100)]
    part = dict(numbered(pl.DataFrame({"set_id": ids, "split": "test"}), rows_per_file).select("set_id", "part").rows())
    assert max(Counter(part.values()).values()) <= rows_per_file
    bits = next(bits for bits in range(33) if {name: int(name[1:9], 16) >> 32 - bits for name in ids} == part)
    assert files is None or 2**bits == files
    fewer = dict(
        numbered(pl.DataFrame({"set_id": ids[3:], "split": "test"}), rows_per_file).select("set_id", "part").rows()
    )
    assert rows_per_file == 1 or fewer == {name: part[name] for name in ids[3:]}


@pytest.mark.parametrize("moment", killed.SWAPS)
def test_killed_while_it_publishes_the_old_data_set_stands_whole_or_the_new_one(
    here: Path, world: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    fewer = PARAMS.model_copy(update={"formats": ("parquet",)})
    before = _contents(products.EXPORTED)
    killed.here(monkeypatch, moment, products.EXPORTED, lambda: export.run(fewer, Machine()))
    left = _contents(products.EXPORTED)
    export.run(fewer, Machine())
    after = _contents(products.EXPORTED)
    assert after != before
    assert left == (after if moment == "after the swap" else before)
    assert not list(products.DATASETS.glob(".*"))


def test_nobody_else_exports_between_its_steps(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first step to the publishing; the steps' own work is done already."""
    seen = []

    def publish(places: Mapping[Path, str], out: Path) -> None:
        with pytest.raises(WorkFailed, match="is being run here already"), alone("export", WORK / "export.lock"):
            pass
        seen.append(out)

    monkeypatch.setattr(export, "publish", publish)
    export.run(PARAMS, Machine())
    assert seen == [products.EXPORTED]


def _replace(path: Path, data: bytes) -> None:
    path.unlink()  # it may be a hard link
    path.write_bytes(data)


def _cut_short(path: Path) -> None:
    _replace(path, path.read_bytes()[: path.stat().st_size // 2])


def _tars_are_cut_short(made: Made) -> None:
    for product in (products.INGESTED, products.SYNTHESISED):
        for path in product.glob("*/images.tar"):
            _cut_short(path)


def _a_target_is_not_in_its_tar(made: Made) -> None:
    image_id = made.sets[0]["target_image_id"]
    for path in products.SYNTHESISED.glob("*/images.tar"):
        with tarfile.open(path) as archive:
            kept = {one.name: archive.extractfile(one).read() for one in archive if image_id not in one.name}
        path.unlink()
        with tarfile.open(path, "w") as archive:
            for name, data in kept.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def _pictures_are_broken(made: Made) -> None:
    for image_id, (product, encoded, source) in made.pictures.items():
        if product == products.INGESTED:
            made.pictures[image_id] = (product, encoded[:300], source)
    _rewrite(made)


def _rewrite(made: Made) -> None:
    for folder in Path("datasets").iterdir():
        if folder.is_dir() and folder != products.EXPORTED:
            shutil.rmtree(folder)
    made.write()


def _no_faces(made: Made) -> None:
    made.faces = {face: at for face, at in made.faces.items() if at[0] != made.sets[0]["pool"][0][0]["image_id"]}
    _rewrite(made)


def _no_picture(made: Made) -> None:
    del made.pictures[made.sets[0]["pool"][0][0]["image_id"]]
    _rewrite(made)


def _nothing_kept(made: Made) -> None:
    records.write(products.CURATED / products.SETS_TABLE, made.sets[-1:], records.SETS)


FAULTS = {
    r"datasets/.*/images.tar: not readable": _tars_are_cut_short,
    r"datasets/synthesised/000\d/images.tar: \w+\.png: not in .* as it was stored .*": _a_target_is_not_in_its_tar,
    r"datasets/ingested/000\d/images.tar: \w+\.(jpg|png): truncated or corrupt .*run dvc repro": _pictures_are_broken,
    r"datasets/measured/ingested/000\d/faces.parquet: a reference's face .* is not in it; run dvc repro": _no_faces,
    r"datasets/curated/sets.parquet: 1 pictures of sets are not in .*run dvc repro": _no_picture,
    r"datasets/curated/sets.parquet: no set was kept; see datasets/curated/funnel.json": _nothing_kept,
}


@pytest.mark.parametrize("message", FAULTS)
def test_a_fault_is_one_line_and_the_old_export_stays(
    here: Path, orl: Callable[[int, int], np.ndarray], message: str
) -> None:
    before = _contents(products.EXPORTED)
    shutil.rmtree(".work")
    FAULTS[message](make(orl))
    with pytest.raises(BadInput) as refused:
        export.run(PARAMS, Machine())
    assert re.search(message, str(refused.value)), refused.value
    assert "\n" not in str(refused.value)
    assert _contents(products.EXPORTED) == before


def test_parquet_cannot_be_left_out() -> None:
    with pytest.raises(ValueError, match="parquet must be among them"):
        export.Params(formats=("uno",), reference_crop=1.5, reference_side=64, rows_per_file=3)
