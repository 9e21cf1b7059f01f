import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from umo import faces
from umo.generate import Counts

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.fixture
def folder(tmp_path: Path, bands, band_judge, monkeypatch) -> Path:
    """Pictures of coloured people, and a judge that sees them, under the name of the face models."""
    for name, colours in {"r": [RED], "g": [GREEN], "rgr": [RED, GREEN, RED], "nobody": []}.items():
        Image.fromarray(bands(*colours)).save(tmp_path / f"{name}.png")
    (tmp_path / "text.jpg").write_text("not a picture")
    monkeypatch.setattr(faces, "load", lambda name: band_judge)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_match_json(folder: Path, umo) -> None:
    code, out, _ = umo("match", "--reference", "r.png", "--reference", "g.png", "rgr.png", "--json")
    found = json.loads(out)
    assert code == 0
    assert np.allclose(found["cosines"], [[1, 0, 1], [0, 1, 0]])
    assert found["assignment"][1] == 1
    assert (found["covered"], found["missing"], found["duplicated"], found["extra"]) == (2, 0, 1, 0)
    assert found["sir"] == pytest.approx(1)
    assert found["mimr"] == pytest.approx((2 - 1) / 6)
    assert (found["id_sim"], found["id_conf"]) == (pytest.approx(1), pytest.approx(0.5))
    assert found["n_faces"] == len(found["boxes"]) == 3


def test_match_for_people(folder: Path, umo) -> None:
    code, out, _ = umo("match", "--reference", "r.png", "--reference", "g.png", "rgr.png")
    assert code == 0
    for word in ("face 2", "1.000 *", "sir", "mimr", "id_sim", "id_conf", "covered", "missing", "duplicated", "extra"):
        assert word in out
    code, out, _ = umo("match", "--reference", "r.png", "nobody.png")
    assert code == 0
    assert "no face found" in out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--reference", "text.jpg", "r.png"], "text.jpg: not an image"),
        (["--reference", "nobody.png", "r.png"], "nobody.png: no face found"),
        (["--reference", "r.png", "absent.png"], "absent.png: cannot be read"),
    ],
)
def test_match_refuses_bad_pictures_in_one_line(folder: Path, umo, arguments: list[str], reason: str) -> None:
    code, out, err = umo("match", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"umo: {reason}")
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["[flux] run/r.png", "sel [/b]/r.png", "[red]x[/red]:smile:.png", "a  b.png"])
def test_a_path_is_printed_as_it_is(folder: Path, umo, name: str) -> None:
    """Square brackets are markup to rich, and colons emoji."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / "r.png").rename(folder / name)
    code, out, _ = umo("match", "--reference", name, name)
    assert (code, out.count(f" {name} "), out.count(f"\n{name}\n")) == (0, 1, 1)
    code, _, err = umo("match", "--reference", f"{name}.gone", name)
    assert (code, err.partition(": cannot be read")[0]) == (2, f"umo: {name}.gone")
    code, _, err = umo("match", "--reference", name, name, "--faces", "[/b]")
    assert (code, err[:28]) == (2, "umo: no face model '[/b]': c")
    code, _, err = umo("generate", "--out", "o", "--steps", "[/b] [red]")
    assert (code, err.count("\n")) == (2, 4)


def test_a_name_of_other_bytes_is_printed_in_escapes(folder: Path, umo) -> None:
    name = os.fsdecode(b"caf\xe9\x1b[31m.png")
    (folder / "r.png").rename(folder / name)
    code, out, _ = umo("match", "--reference", name, name)
    assert code == 0
    assert out.count(r"caf\udce9\x1b[31m.png") == 2
    assert "\x1b" not in out
    code, _, err = umo("match", "--reference", f"{name}.gone", name)
    assert (code, err.partition(": cannot be read")[0]) == (2, r"umo: caf\udce9\x1b[31m.png.gone")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--seed", str(2**63)),
        ("--size", "²x²"),
        ("--shard", "3/2"),
        ("--shard", "0/2"),
        ("--shard", "²/2"),
        ("--shard", "1/2"),
    ],
)
def test_numbers_that_cannot_be_drawn_with_are_wrong_usage(folder: Path, umo, arguments: tuple[str, str]) -> None:
    code, _, err = umo("generate", "--prompt", "a man", "--reference", "r.png", "--out", "o.png", *arguments)
    assert (code, arguments[0] in err, (folder / "o.png").exists()) == (2, True, False)


@pytest.mark.parametrize(
    ("flags", "one", "many"), [([], True, False), (["--crop"], True, True), (["--no-crop"],) + (False,) * 2]
)
def test_photographs_are_cut_where_they_are_a_users_own(
    folder: Path, umo, monkeypatch: pytest.MonkeyPatch, flags: list[str], one: bool, many: bool
) -> None:
    asked = []
    monkeypatch.setattr("umo.generate.generate_one", lambda *given: asked.append(given[10]))
    monkeypatch.setattr(
        "umo.drawing.cases.generate_cases",
        lambda *_, crop, shard, dtype: asked.append((crop is not None, shard)) or Counts(1, 2, whole=False),
    )
    assert umo("generate", "--prompt", "a man", "--reference", "r.png", "--out", "o.png", *flags)[0] == 0
    code, out, _ = umo("generate", "CASES.jsonl", "--out", "o", "--shard", "2/3", *flags)
    assert (code, asked) == (0, [one, (many, (2, 3))])
    assert out.splitlines()[0] == "1 pictures drawn, 2 were there already; o/CASES.jsonl comes with the last shard"


@pytest.mark.parametrize("arguments", [["match", "r.png"], ["evaluate", "x.jsonl"], ["other"], ["compare", "a"]])
def test_wrong_usage_is_two(umo, arguments: list[str]) -> None:
    code, _, err = umo(*arguments)
    assert code == 2
    assert "Usage" in err


def test_a_lora_is_converted(folder: Path, umo) -> None:
    layer = "double_blocks.0.processor.qkv_lora1"
    save_file({f"{layer}.down.weight": torch.ones(4, 8), f"{layer}.up.weight": torch.ones(24, 4)}, "uno.safetensors")
    code, out, _ = umo("lora", "convert", "uno.safetensors", "comfy.safetensors", "--to", "comfyui")
    assert (code, out) == (0, "comfy.safetensors: FLUX.1, comfyui naming, 1 layers of rank 4, alpha = rank\n")
    halves = {f"diffusion_model.double_blocks.0.img_attn.qkv.lora_{half}.weight" for half in "AB"}
    assert load_file("comfy.safetensors").keys() == halves
    code, _, err = umo("lora", "convert", "comfy.safetensors", "other.safetensors", "--to", "uno", "--family", "SD")
    assert (code, err.count("\n"), "no such family" in err) == (2, 1, True)


def test_evaluate_and_compare(folder: Path, umo) -> None:
    case = {"case_id": "a", "prompt": "", "references": ["r.png", "g.png"], "images": ["rgr.png", "text.jpg"]}
    (folder / "CASES.jsonl").write_text(json.dumps(case) + "\n" + json.dumps(case | {"case_id": "b"}) + "\n")
    code, out, err = umo("evaluate", "CASES.jsonl", "--out", "out")
    assert code == 0
    assert "copy_paste" in out
    assert "4 pictures of 2 cases, 2 failures" in out
    assert err.count("text.jpg: not an image") == 2
    assert "pass as the same person" not in err
    code, out, _ = umo("compare", "out", "out", "--json")
    assert code == 0
    assert json.loads(out)["coverage"]["verdict"] == "cannot tell"
    code, out, _ = umo("compare", "out", "out")
    assert code == 0
    assert "cannot tell" in out
    assert "holds" in out
    assert "4 pairs of 2 cases" in out


def test_evaluate_warns_of_a_scale_that_does_not_fit(folder: Path, umo, bands) -> None:
    for k in range(5):
        Image.fromarray(bands((255, 10 * k, 0))).save(folder / f"{k}.png")
    case = {"case_id": "a", "prompt": "", "references": [f"{k}.png" for k in range(5)], "images": ["r.png"]}
    (folder / "CASES.jsonl").write_text(json.dumps(case) + "\n")
    code, _, err = umo("evaluate", "CASES.jsonl", "--out", "out")
    assert code == 0
    (said,) = err.splitlines()
    assert said.startswith("100 % of 10 pairs of different people")
    assert json.loads((folder / "out/metrics.json").read_text())["strangers"]["warning"] == said


def test_a_bad_case_is_refused_before_the_judge_is_loaded(folder: Path, umo, monkeypatch) -> None:
    monkeypatch.setattr(faces, "load", lambda name: pytest.fail("loaded"))
    (folder / "CASES.jsonl").write_text("{\n")
    code, _, err = umo("evaluate", "CASES.jsonl", "--out", "out")
    assert code == 2
    assert err.startswith("umo: CASES.jsonl:1: not JSON")


def test_work_that_failed_is_one(folder: Path, umo) -> None:
    case = {"case_id": "a", "prompt": "", "references": ["nobody.png"], "images": ["r.png"]}
    (folder / "CASES.jsonl").write_text(json.dumps(case))
    code, _, err = umo("evaluate", "CASES.jsonl", "--out", "out")
    assert code == 1
    assert err.startswith("umo: CASES.jsonl: none of 1 cases could be judged")
    assert err.count("\n") == 1


def test_any_other_os_error_is_one_line(folder: Path, umo, monkeypatch) -> None:
    def full(name: str) -> None:
        raise OSError(28, "No space left on device", "cache.bin")

    monkeypatch.setattr(faces, "load", full)
    code, _, err = umo("match", "--reference", "r.png", "r.png")
    assert code == 1
    assert err.startswith("umo: cache.bin: No space left on device;")


def test_an_unknown_face_model_is_bad_input(umo) -> None:
    code, _, err = umo("match", "--reference", "r.png", "r.png", "--faces", "other")
    assert code == 2
    assert err.startswith("umo: no face model 'other'")


def test_calibrate_is_handed_on(umo, monkeypatch) -> None:
    from umo.faces import calibration

    given: list[tuple[object, ...]] = []
    monkeypatch.setattr(calibration, "calibrate_command", lambda *arguments: given.append(arguments))
    code, _, _ = umo("calibrate", "PHOTOS.csv", "--faces", "dlib", "--out", "dlib.json")
    assert code == 0
    assert given == [(Path("PHOTOS.csv"), "dlib", Path("dlib.json"), None)]


def test_help_and_version_are_quick() -> None:
    start = time.perf_counter()
    ran = subprocess.run([sys.executable, "-m", "umo.cli", "--help"], capture_output=True, text=True, check=True)
    assert time.perf_counter() - start < 3  # .2 s on an idle machine
    assert "evaluate" in ran.stdout
    ran = subprocess.run([sys.executable, "-m", "umo.cli", "--version"], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("umo 0.")
    heavy = "import sys, umo.cli; print([m for m in ('torch', 'scipy', 'pyarrow', 'numpy') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
