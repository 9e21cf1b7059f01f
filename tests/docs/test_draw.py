"""docs/how-to/draw.md: its commands in their order, but those that need a GPU or what was trained; its Python."""

import json
import re
import shlex
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipelines.core.shards import ROOT
from tests.pipelines.conftest import photograph_folder
from umo import cli

PAGE = (ROOT / "docs/how-to/draw.md").read_text()


def commands() -> list[list[str]]:
    blocks = "".join(re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
    return [shlex.split(line) for line in blocks.replace("\\\n", " ").splitlines()]


@pytest.mark.slow
def test_the_page_draws_and_its_drawings_can_be_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("models").symlink_to(ROOT / "models")
    for name, person in (("ann", 4), ("bob", 20)):
        photo = cv2.imread(str(photograph_folder() / f"s{person}/1.pgm"))
        cv2.imwrite(f"{name}.jpg", cv2.resize(photo, None, fx=2, fy=2))
    prompt = "A photo of one person in front of a plain blue background."
    case = {"case_id": "1", "prompt": prompt, "references": ["ann.jpg"], "images": []}
    Path("cases.jsonl").write_text(json.dumps(case))
    asked = [words for words in commands() if not {"lora", "--lora"} & set(words)]
    assert [words[1] for words in asked] == ["generate", "generate", "evaluate"]
    for words in asked:
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert not left.value.code, words
    assert np.asarray(cv2.imread("two.png")).shape == (64, 128, 3)
    scores = json.loads(Path("scores/drawn/metrics.json").read_text())
    assert scores["id_sim_strict"]["n"] == 1 and scores["failures"] == []
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    exec(code, {})
    pictures = {cv2.imread(f"{seed}.png").tobytes() for seed in range(8)}
    assert len(pictures) == 8 and "24 of 24" in capsys.readouterr().out
