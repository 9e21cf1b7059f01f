"""`umo benchmark`: what it lists and misses, drawing in shards and after a kill, what it prints of a score."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.umo.conftest import Run
from tests.umo.evaluation.benchmarks.conftest import GREEN, RED
from umo.drawing import batches
from umo.evaluation.benchmarks import BENCHMARKS

LIST = "root/eval/tools/XVerseBench_multi.json"
MAN, GIRL, TOY = "a/human/01_man.jpg", "a/human/04_little girl.jpg", "a/object/65_toy.jpg"
PROMPTS = {0: ("A man greets a girl", MAN, GIRL), 1: ("A toy\nand a toy", TOY, TOY), 2: ("Many", *[MAN] * 5)}


@pytest.fixture
def benchmark(tmp_path: Path, named_bands, umo, monkeypatch: pytest.MonkeyPatch) -> Run:
    """benchmark(...) -> exit code, stdout and stderr of `umo benchmark ...` in the test's folder."""
    monkeypatch.chdir(tmp_path)
    return partial(umo, "benchmark")


@pytest.fixture
def root(put, put_json) -> None:
    """Of three cases one has more references than the base takes."""
    for path, colour in ((MAN, RED), (GIRL, GREEN), (TOY, RED)):
        put(f"root/{path}", colour, format="PNG")
    rows = [
        {"index": k, "prompt": prompt, "modulation": [{"src_inputs": [{"image_path": path} for path in paths]}]}
        for k, (prompt, *paths) in PROMPTS.items()
    ]
    put_json(LIST, rows)


@pytest.fixture
def draw(root, base: Path, benchmark) -> Run:
    def run(*more: str) -> tuple[int, str, str]:
        given = ["run", "xverse-multi", "--root", "root", "--out", "results", "--model", str(base), "--steps", "1"]
        return benchmark(*given, *more)

    return run


def made(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "results").glob("*.png"))}


def test_each_is_listed_with_its_layout_judge_and_licence(benchmark) -> None:
    code, out, _ = benchmark("list")
    assert code == 0
    for one in BENCHMARKS.values():
        assert all(said in out for said in (one.name, one.revision, one.layout, one.results, one.judge, one.licence))
    code, _, err = benchmark("check", "xversebench", "--root", "root")
    assert code == 2 and "no benchmark 'xversebench': choose one of xverse-single, xverse-multi" in err


def test_every_missing_file_is_named(root, benchmark, tmp_path: Path) -> None:
    assert benchmark("check", "xverse-multi", "--root", "root")[:2] == (
        0,
        "root: 3 items, and every picture that they name\n",
    )
    (tmp_path / "root" / MAN).unlink()
    (tmp_path / "root" / TOY).unlink()
    code, out, err = benchmark("check", "xverse-multi", "--root", "root")
    assert code == 2 and out.splitlines() == [f"root/{MAN}", f"root/{TOY}"]
    assert "2 files are missing, listed above" in err


def test_it_draws_what_it_can_as_published_and_goes_on(draw, tmp_path: Path, monkeypatch) -> None:
    real, calls = batches.write_picture, []

    def dies_at_the_sixth(path: Path, picture: np.ndarray, key: str) -> None:
        calls.append(path)
        if len(calls) == 6:
            raise KeyboardInterrupt
        real(path, picture, key)

    with monkeypatch.context() as patch:
        patch.setattr(batches, "write_picture", dies_at_the_sixth)
        assert draw()[0] == 130
    code, out, _ = draw()
    assert code == 0
    assert "cannot draw the published 768x768: drawn at its own size" in out
    assert "1 items have more references than tiny takes: not drawn, and scored as missing" in out
    assert "3 pictures drawn, 5 were there already -> results" in out
    pictures = made(tmp_path)
    assert list(pictures) == ["0_A_man_greets_a_girl.png", "1_A_toy\nand_a_toy.png"]
    with Image.open(tmp_path / "results/0_A_man_greets_a_girl.png") as grid:
        assert grid.size == (256, 128)
        cells = [np.asarray(grid)[y : y + 64, x : x + 128] for y in (0, 64) for x in (0, 128)]
    drawn = [np.asarray(Image.open(tmp_path / f"results/.drawn/images/0-{k}.png")) for k in range(4)]
    assert all(np.array_equal(*pair) for pair in zip(cells, drawn, strict=True))
    assert "0 pictures drawn, 8 were there already" in draw()[1]
    assert made(tmp_path) == pictures


def test_shards_make_the_whole(draw, tmp_path: Path) -> None:
    code, out, _ = draw("--shard", "2/2")
    assert code == 0 and "the other shards are not finished" in out
    assert list(made(tmp_path)) == ["1_A_toy\nand_a_toy.png"]
    assert "not finished" not in draw("--shard", "1/2")[1]
    shared = made(tmp_path)
    (tmp_path / "results").rename(tmp_path / "shared")
    draw()
    assert made(tmp_path) == shared


def test_what_cannot_be_drawn_is_refused_before_the_first_picture(draw, put_json, tmp_path: Path) -> None:
    assert draw("--size", "100x100")[0] == 2
    (tmp_path / "root" / MAN).unlink()
    code, _, err = draw()
    assert code == 2 and "1 pictures are missing, the first root/a/human/01_man.jpg; umo benchmark check" in err
    put_json(LIST, [{"index": 0, "prompt": "a", "modulation": [{"src_inputs": [{"image_path": TOY}] * 9}]}])
    assert "references, and no item has so few" in draw()[2]
    assert not made(tmp_path)


def test_a_score_says_what_made_it_and_what_it_leaves_out(draw, benchmark, tmp_path: Path) -> None:
    draw()
    score = ["score", "xverse-multi", "results", "--root", "root", "--out", "out", "--judge", "bands"]
    code, out, err = benchmark(*score)
    assert code == 0
    for said in (
        "bytedance/XVerse @65e2581; judge bands: bands.weights ",
        "none   n 0; 3 skipped: the published script stops at 2 files",
        "skipped: 1, nobody is asked for",
        "4 pictures are missing: strict counts them as pictures without a face",
        "not comparable: published tables are by IR-SE50",
        "8 pictures of 2 items",
    ):
        assert said in out, out
    assert "results/2.png: cannot be read" in err
    result = json.loads((tmp_path / "out/metrics.json").read_text())
    assert result["benchmark"]["revision"] == BENCHMARKS["xverse-multi"].revision
    assert benchmark(*score)[1] == out, "the same again"
    code, _, err = benchmark(*score, "--rewarded-by", "bands")
    assert code == 2 and "its network is that of bands, which rewarded or curated; choose another" in err
