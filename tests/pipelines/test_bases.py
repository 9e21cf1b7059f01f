"""Bases of params.yaml, and whom they have seen."""

import json

import pytest

from pipelines import bases
from umo.errors import BadInput


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("bases: {tiny: {folder: weights}}\n")


def test_a_base_is_found_by_its_name():
    assert str(bases.find("tiny").folder) == "weights"
    with pytest.raises(BadInput, match="no base 'huge' under bases: choose one of tiny"):
        bases.find("huge")


@pytest.mark.parametrize("entry", ["{folder: w, stepz: 3}", "{steps: 3}", "{folder: w, steps: 0}"])
def test_a_bad_entry_is_named(tmp_path, entry):
    (tmp_path / "params.yaml").write_text(f"bases: {{tiny: {entry}}}\n")
    with pytest.raises(BadInput, match=r"bases\.tiny\.(stepz|folder|steps)"):
        bases.find("tiny")


def test_people_seen_in_training_are_refused(tmp_path):
    base = bases.find("tiny")
    bases.refuse_seen(base, ["ann"])  # a base that does not say whom it has seen
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/people.json").write_text(json.dumps({"ann": ["1.jpg"]}))
    bases.refuse_seen(base, ["bob"])
    with pytest.raises(BadInput, match=r"1 people of the cases were seen in training by weights \(first ann"):
        bases.refuse_seen(base, ["bob", "ann"])
