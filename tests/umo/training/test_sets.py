"""Whom a training may not begin with."""

import json
from pathlib import Path

import pytest

from umo.errors import BadInput
from umo.training.sets import refuse_seen


def test_nobody_of_the_test_split_may_be_known_already(tmp_path: Path) -> None:
    base, lora = tmp_path / "base", tmp_path / "lora/weights.safetensors"
    for folder in (base, lora.parent):
        folder.mkdir()
    refuse_seen(["ann"], base, lora)  # neither says whom it has seen
    (base / "people.json").write_text(json.dumps({"ann": ["1.jpg"], "bob": []}))
    (lora.parent / "training.json").write_text(json.dumps({"people": ["cas"]}))
    refuse_seen(["dee"], base, lora)
    refuse_seen(["cas"], base)
    with pytest.raises(BadInput, match=r"base: 1 people of the test split were trained on there \(first bob"):
        refuse_seen(["dee", "bob"], base, lora)
    for given in (lora, lora.parent):
        with pytest.raises(BadInput, match=r"lora: 1 people .* \(first cas, see .*training.json\)"):
            refuse_seen(["cas"], base, given)
