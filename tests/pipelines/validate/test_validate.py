"""A planted fault of each kind is named in one line; the untouched products have none."""

import copy
import shutil
from pathlib import Path

import pytest

from pipelines.core import products
from pipelines.validate import stage as validate
from pipelines.validate.suites import suites
from tests.pipelines.conftest import Workspace
from umo import records
from umo.errors import WorkFailed


@pytest.fixture
def workspace(repro, tmp_path, monkeypatch) -> Workspace:
    """What the suites read, to be broken; of faults no Data Docs are built, which takes most of the time."""
    monkeypatch.setattr("great_expectations.data_context.AbstractDataContext.build_data_docs", lambda *args: None)
    shutil.copytree(repro.path / "datasets", tmp_path / "umo/datasets")
    shutil.copy(repro.path / "params.yaml", tmp_path / "umo")
    return Workspace(tmp_path / "umo")


def faults(*names: str, min_sets: int = 1) -> list[str]:
    """What the suites of these names, or all of them, find in the products below the current folder."""
    wanted = [suite for suite in suites(min_sets) if not names or suite.name in names]
    assert len(wanted) >= len(names)
    results = validate.check(wanted, Path("docs_of_the_test"))
    return [fault for outcome in results.values() for fault in outcome["faults"]]


def rewrite(path, schema, change) -> None:
    """Change a product's rows in place."""
    rows = records.read(path, schema).to_pylist()
    change(rows)
    path.unlink()  # it may be a hard link into .work
    records.write(path, rows, schema)


def kept(rows):
    return [row for row in rows if row["keep"]]


def twice(rows):
    rows.append(copy.deepcopy(kept(rows)[0]))


def other_split(rows):
    """Move one set to another split: its people are then in two."""
    row = kept(rows)[0]
    row["split"] = "test" if row["split"] != "test" else "train"


def source_as_reference(rows):
    row = kept(rows)[0]
    row["pool"][0][0]["image_id"] = row["target_sources"][0]


def outside_the_band(rows):
    kept(rows)[0]["pool"][0][0]["cosine"] = 0.999


def drop_a_person(rows):
    next(row for row in kept(rows) if row["n"] > 1)["person_ids"].pop()


def set_field(field, value):
    def change(rows):
        kept(rows)[0][field] = value

    return change


SETS = {
    "a set twice": twice,
    "a person in sets of two splits": other_split,
    "a reference whose photograph the target's face was made from": source_as_reference,
    "a reference outside curate's band": outside_the_band,
    "a set without a licence": set_field("licence", None),
    "a set without a consent": set_field("consent", None),
    "a set without a source": set_field("source", None),
    "a set without a prompt": set_field("prompt", None),
    "a number of people outside curate's bounds": set_field("n", 7),
    "two people more alike than curate.max_cross_cosine": set_field("cross_cosine", 0.9),
    "a set in no split": set_field("split", "holdout"),
    "a set in no split (none is given)": set_field("split", None),
    "a set whose lists of people, faces and references differ in length": drop_a_person,
    "a reference whose licence or consent its set does not state": set_field("licence", "another licence"),
}


def test_the_products_are_sound(repro, inside):
    inside(repro)
    assert faults() == []


@pytest.mark.parametrize("fault", SETS)
def test_a_planted_fault_in_the_sets_is_named(workspace, inside, fault):
    inside(workspace)
    rewrite(products.CURATED / products.SETS_TABLE, records.SETS, SETS[fault])
    found = faults("sets", "people of sets", "references")
    wanted = fault.replace("without a consent", "without consent")
    assert any(wanted in line for line in found), found


def first_shard(product, table):
    return sorted(product.glob(f"*/{table}"))[0]


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [
        ("licence", None, "images@ingested: a picture without a licence"),
        ("consent", "maybe", "images@ingested: consent outside the vocabulary"),
        ("consent", None, "images@ingested: consent outside the vocabulary (none is given)"),
        ("width", 3, "images@ingested: a picture narrower than 16 px"),
        ("source", None, "images@ingested: a picture without a source"),
    ],
)
def test_a_planted_fault_in_the_pictures_is_named(workspace, inside, field, value, fault):
    inside(workspace)
    path = first_shard(products.INGESTED, products.IMAGES_TABLE)

    def change(rows):
        next(row for row in rows if row["status"] == "ok")[field] = value

    rewrite(path, records.IMAGES, change)
    assert any(line.startswith(fault) for line in faults("images@ingested"))


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [
        ("score", 0.1, "a detection score under measure.min_score"),
        ("score", None, "a detection score under measure.min_score (none is given)"),
        ("side_px", 3.0, "a face under measure.min_side"),
        ("embedder", "facenet", "an embedding of another network than measure.faces"),
        ("embedding", [0.5] * 128, "an embedding that is not a unit vector"),
        ("box", [5, 5, 5, 5], "an empty box"),
    ],
)
def test_a_planted_fault_in_the_faces_is_named(workspace, inside, field, value, fault):
    inside(workspace)
    path = first_shard(products.MEASURED_PHOTOS, products.FACES_TABLE)

    def change(rows):
        rows[0][field] = value

    rewrite(path, records.measured_faces(128), change)
    assert any(fault in line for line in faults("faces@ingested"))


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [
        ("split", None, "people: a person in no split (none is given)"),
        ("split", "holdout", "people: a person in no split"),
        ("n", 1, "people: a person with fewer faces than identify.min_faces"),
        ("spread", 0.1, "people: a person looser than identify.min_face_cosine"),
    ],
)
def test_a_planted_fault_in_the_people_is_named(workspace, inside, field, value, fault):
    inside(workspace)

    def change(rows):
        kept(rows)[0][field] = value

    rewrite(products.PEOPLE / products.PEOPLE_TABLE, records.PEOPLE, change)
    assert any(line.startswith(fault) for line in faults("people"))


def test_a_component_in_two_splits_is_named(workspace, inside):
    inside(workspace)

    def change(rows):
        first, second = kept(rows)[:2]
        second["component"] = first["component"]
        second["split"] = "test" if first["split"] != "test" else "train"

    rewrite(products.PEOPLE / products.PEOPLE_TABLE, records.PEOPLE, change)
    assert any("components: a component in two splits" in line for line in faults("components"))


def test_a_row_turned_away_without_a_reason_is_named(workspace, inside):
    inside(workspace)

    def change(rows):
        next(row for row in rows if not row["keep"])["reason"] = None

    rewrite(products.CURATED / products.SETS_TABLE, records.SETS, change)
    assert any("a set turned away without a reason" in line for line in faults("sets turned away"))


def test_too_few_sets_of_a_split_are_named(repro, inside):
    inside(repro)
    assert any("splits: fewer sets than validate.min_sets" in line for line in faults("splits", min_sets=10_000))


def test_a_product_of_another_schema_is_refused(workspace, inside):
    inside(workspace)
    path = products.CURATED / products.SETS_TABLE
    people = (products.PEOPLE / products.PEOPLE_TABLE).read_bytes()
    path.unlink()
    path.write_bytes(people)
    with pytest.raises(Exception, match=r"record .*people.* instead of .*sets"):
        faults()


def test_run_raises_with_every_fault(workspace, inside):
    inside(workspace)
    rewrite(products.CURATED / products.SETS_TABLE, records.SETS, SETS["a set without a prompt"])
    from pipelines.core.params import load
    from pipelines.core.shards import Machine

    with pytest.raises(WorkFailed, match=r"sets: a set without a prompt \(1 of \d+ rows, first set_id s\w+\)"):
        validate.run(load("validate"), Machine())
