"""Bases of params.yaml, and whom they have seen."""

import json
from pathlib import Path
from typing import get_args

import pytest

from pipelines.core import bases, products
from umo.errors import BadInput
from umo.training.recipe import Method


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


def test_people_that_a_method_was_trained_on_are_refused(tmp_path):
    base = bases.find("tiny")
    with pytest.raises(BadInput, match=r"runs/train/sir/training.json: missing; train .* first \(dvc repro train@sir"):
        bases.refuse_seen(base, ["bob"], "sir")
    folder = tmp_path / products.TRAINED / "sir"
    folder.mkdir(parents=True)
    (folder / products.TRAINING).write_text(json.dumps({"people": ["carl", "dora"]}))
    bases.refuse_seen(base, ["bob"], "sir")
    bases.refuse_seen(base, ["carl"], "base")
    with pytest.raises(BadInput, match=r"1 people of the cases were seen in training by runs/train/sir \(first carl"):
        bases.refuse_seen(base, ["bob", "carl"], "sir")


def test_a_trained_method_draws_with_its_own_lora(tmp_path):
    (tmp_path / "params.yaml").write_text("bases: {tiny: {folder: weights, lora: uno.safetensors}}\n")
    base = bases.find("tiny")
    assert bases.lora_of(base, "base") == bases.lora_of(base, "shuffled") == Path("uno.safetensors")
    with pytest.raises(BadInput, match=r"runs/train/mimr/.*: missing; train .* first \(dvc repro train@mimr\)"):
        bases.lora_of(base, "mimr")
    lora = tmp_path / products.TRAINED / "mimr" / products.LORA
    lora.parent.mkdir(parents=True)
    lora.touch()
    assert bases.lora_of(base, "mimr") == lora.relative_to(tmp_path)


def test_the_trained_methods_are_those_that_the_trainer_knows():
    assert set(products.TRAINED_METHODS) == set(get_args(Method))
