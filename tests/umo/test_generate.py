"""Drawing cases: resumable, the same bytes whole or resumed, and bad input refused before any drawing."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.umo.customizers.conftest import PROMPTS, smooth, tiny
from umo import generate
from umo.errors import BadInput, WorkFailed
from umo.evaluation.cases import read_cases
from umo.generate import Counts, generate_cases, generate_one


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny().save(folder)
    return folder


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    folder = tmp_path / "cases"
    (folder / "refs").mkdir(parents=True)
    for index, photo in enumerate(smooth(3, 70, 80, seed=4)):
        array = ((photo + 1) * 127.5).byte().permute(1, 2, 0).numpy()
        Image.fromarray(array).save(folder / "refs" / f"{index}.png")
    rows = [
        {"case_id": "one", "prompt": PROMPTS[0], "references": ["refs/0.png"], "images": [], "people": ["a"]},
        {
            "case_id": "two/strange id",
            "prompt": PROMPTS[1],
            "references": [["refs/1.png", "refs/0.png"], "refs/2.png"],
            "target": "refs/0.png",
        },
    ]
    return write(folder / "CASES.jsonl", rows)


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def drawn(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "images").iterdir())}


def test_cases_are_drawn_and_can_be_scored(base: Path, cases: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert generate_cases(base, cases, out, seeds=2, steps=2) == Counts(drawn=4, kept=0)
    found = read_cases(out / "CASES.jsonl")
    assert [case.case_id for case in found] == ["one", "two/strange id"]
    for case in found:
        assert len(case.images) == 2
        assert all((out / path).is_file() for path in case.paths)
    assert found[0].people == ("a",) and len(found[1].references[0]) == 2
    with Image.open(out / found[1].images[0]) as image:
        assert image.size == (128, 64) and image.mode == "RGB"
    pictures = drawn(out)
    assert len(set(pictures.values())) == 4, "two seeds or two cases gave the same picture"


def test_a_killed_run_goes_on_to_the_same_bytes(
    base: Path, cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    generate_cases(base, cases, whole, seeds=2, steps=2)
    real, calls = generate._write, []

    def dies_at_the_second(path: Path, picture: np.ndarray, key: str) -> None:
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(path)
        real(path, picture, key)

    with monkeypatch.context() as patch:
        patch.setattr(generate, "_write", dies_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            generate_cases(base, cases, resumed, seeds=2, steps=2)
    assert not (resumed / "CASES.jsonl").exists()
    assert generate_cases(base, cases, resumed, seeds=2, steps=2) == Counts(drawn=3, kept=1)
    assert drawn(resumed) == drawn(whole)
    assert (resumed / "CASES.jsonl").read_text() == (whole / "CASES.jsonl").read_text()
    assert generate_cases(base, cases, resumed, seeds=2, steps=2) == Counts(drawn=0, kept=4)


def test_seeds_and_cases_have_a_noise_each(base: Path, cases: Path, tmp_path: Path) -> None:
    """Pixels: the files differ by their keys already."""
    alone = json.loads(cases.read_text().splitlines()[0])
    cases.write_text("".join(json.dumps({**alone, "case_id": name}) + "\n" for name in "ab"))
    generate_cases(base, cases, tmp_path / "out", seeds=2, steps=2)
    pixels = {Image.open(path).tobytes() for path in (tmp_path / "out/images").iterdir()}
    assert len(pixels) == 4


@pytest.fixture
def many(cases: Path) -> Path:
    """Five cases of one shape and, between them, two of others."""
    alone, pair = (json.loads(line) for line in cases.read_text().splitlines())
    photo = Image.open(cases.parent / "refs" / "0.png")
    photo.crop((0, 0, 60, 70)).save(cases.parent / "refs" / "narrow.png")
    same = [{**alone, "case_id": f"c{k}", "prompt": PROMPTS[0], "references": [f"refs/{k % 3}.png"]} for k in range(5)]
    narrow = {**alone, "case_id": "narrow", "references": ["refs/narrow.png"]}
    return write(cases, [*same[:2], pair, *same[2:4], narrow, same[4]])


def test_a_batch_draws_what_one_at_a_time_draws(base: Path, many: Path, tmp_path: Path) -> None:
    """But for rounding, whatever a case stands beside, in the cases' own order."""
    single, batched = tmp_path / "single", tmp_path / "batched"
    for out, batch in ((single, 1), (batched, 3)):
        assert generate_cases(base, many, out, seeds=2, steps=2, batch=batch) == Counts(14, 0)
    assert (single / "CASES.jsonl").read_text() == (batched / "CASES.jsonl").read_text()
    assert [case.case_id for case in read_cases(batched / "CASES.jsonl")][2] == "two/strange id"
    for path in sorted((single / "images").iterdir()):
        with Image.open(path) as mine, Image.open(batched / "images" / path.name) as theirs:
            assert np.abs(np.asarray(mine, int) - np.asarray(theirs, int)).max() <= 1


def test_only_cases_of_one_shape_share_a_batch(
    base: Path, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, shapes = generate.draw, []

    def seen(customizer: object, prompts: object, references: list, *rest: object) -> torch.Tensor:
        shapes.append([[photo.shape[:2] for photo in photos] for photos in references])
        return real(customizer, prompts, references, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(generate, "draw", seen)
    generate_cases(base, many, tmp_path / "out", steps=2, batch=4)
    wide, narrow = [(70, 80)], [(70, 60)]
    assert shapes == [[wide] * 4, [wide], [wide * 2], [narrow]]


def test_a_large_base_draws_one_at_a_time(
    base: Path, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, batches = generate._draw, []
    monkeypatch.setattr(generate, "_draw", lambda *given: batches.append(len(given[1])) or real(*given))
    generate_cases(base, many, tmp_path / "small", steps=1)
    assert max(batches) == generate.BATCH
    batches.clear()
    monkeypatch.setattr(generate, "LARGE", 1000)
    generate_cases(base, many, tmp_path / "large", steps=1)
    assert batches == [1] * 7


def test_what_changed_is_drawn_again(base: Path, cases: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    generate_cases(base, cases, out, steps=2)
    assert generate_cases(base, cases, out, steps=3) == Counts(2, 0)
    photo = cases.parent / "refs" / "2.png"
    Image.open(photo).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(photo)
    assert generate_cases(base, cases, out, steps=3) == Counts(1, 1)
    (out / "images" / "one-0.png").write_bytes(b"cut")
    assert generate_cases(base, cases, out, steps=3) == Counts(1, 1)


def test_one_picture_is_the_seeds(base: Path, cases: Path, tmp_path: Path) -> None:
    photos = [cases.parent / "refs" / "0.png"]
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        generate_one(base, PROMPTS[0], photos, tmp_path / "new" / f"{name}.png", seed=seed, steps=2)
    a, b, c = ((tmp_path / "new" / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c


def test_bad_input_is_refused_before_any_drawing(base: Path, cases: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    good = [json.loads(line) for line in cases.read_text().splitlines()]

    def refused(rows: list[dict] | str, match: str, **options: object) -> None:
        changed = cases.with_name("bad.jsonl")
        changed.write_text(rows) if isinstance(rows, str) else write(changed, rows)
        with pytest.raises(BadInput, match=match) as error:
            generate_cases(base, changed, out, **options)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)
        assert not out.exists()

    refused("", "holds no case")
    refused("{", r"bad\.jsonl:1: .*nothing was drawn")
    refused([*good, good[0]], r"bad\.jsonl:3: case_id 'one' is already taken")
    refused([{**good[0], "references": []}], r":1: references must be")
    refused([{**good[0], "references": ["refs/0.png"] * 4, "people": None}], "4 references, and tiny takes at most 3")
    refused([{**good[0], "references": ["CASES.jsonl"]}], "case one: reference .*not an image: convert")
    refused([{**good[0], "references": ["refs/9.png"]}], "case one: reference .*cannot be read")
    refused(good, "draws 64x128, 64x192 only", size=(64, 64))
    with pytest.raises(BadInput, match=r"missing\.jsonl: not a readable file"):
        generate_cases(base, tmp_path / "missing.jsonl", out)
    with pytest.raises(BadInput, match=r"nowhere: no diffusers folder"):
        generate_cases(tmp_path / "nowhere", cases, out)
    with pytest.raises(BadInput, match=r"reference .*not an image"):
        generate_one(base, PROMPTS[0], [cases], tmp_path / "x.png")


def test_a_picture_that_is_not_finite_fails_the_work(
    base: Path, cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "draw", lambda *_: torch.full((1, 3, 64, 128), torch.nan))
    with pytest.raises(WorkFailed, match="not finite; check the base's and the LoRA's weights"):
        generate_cases(base, cases, tmp_path / "out", steps=1)
