"""Products keep to their schemas."""

import pyarrow as pa
import pytest

from umo import records
from umo.errors import BadInput

ROW = {
    "face_id": "f",
    "image_id": "i",
    "person_id": None,
    "cosine": 0.5,
    "keep": True,
    "reason": None,
}


def test_a_product_comes_back_as_it_was(tmp_path):
    path = tmp_path / "faces.parquet"
    records.write(path, [ROW], records.PEOPLE_FACES)
    assert records.read(path, records.PEOPLE_FACES).to_pylist() == [ROW]
    assert records.read(path, records.PEOPLE_FACES, ["keep"]).to_pylist() == [{"keep": True}]
    first = path.read_bytes()
    records.write(path, [ROW], records.PEOPLE_FACES)
    assert path.read_bytes() == first


def test_no_rows_are_a_product_too(tmp_path):
    path = tmp_path / "faces.parquet"
    records.write(path, [], records.PEOPLE_FACES)
    assert records.read(path, records.PEOPLE_FACES).num_rows == 0


@pytest.mark.parametrize("change", [{"extra": 1}, {"keep": None, "reason": None, "cosine": None, "x": 2}])
def test_unknown_columns_are_a_bug(change):
    with pytest.raises(ValueError, match="missing or unknown"):
        records.table([ROW | change], records.PEOPLE_FACES)


def test_missing_columns_are_a_bug():
    with pytest.raises(ValueError, match=r"\['cosine'\] missing or unknown"):
        records.table([{key: value for key, value in ROW.items() if key != "cosine"}], records.PEOPLE_FACES)


def test_a_wrong_type_is_refused(tmp_path):
    bad = pa.table({name: ["text"] for name in records.PEOPLE_FACES.names})
    with pytest.raises((ValueError, pa.ArrowInvalid)):
        records.write(tmp_path / "faces.parquet", bad, records.PEOPLE_FACES)
    assert not list(tmp_path.iterdir())


def test_another_record_another_version_and_rubbish_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "faces.parquet"
    records.write(path, [ROW], records.PEOPLE_FACES)
    with pytest.raises(BadInput, match=r"instead of .*'people'"):
        records.read(path, records.PEOPLE)
    monkeypatch.setattr(records, "VERSION", "another")
    with pytest.raises(BadInput, match="run dvc repro"):
        records.read(path, records.PEOPLE_FACES)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(BadInput, match="not a readable Parquet file"):
        records.read(path, records.PEOPLE_FACES)
    with pytest.raises(BadInput, match="missing"):
        records.read(tmp_path / "nowhere.parquet", records.PEOPLE_FACES)
