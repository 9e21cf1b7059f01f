"""Drawing cases: resumable, the same bytes whole or resumed, and bad input refused before any drawing."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.umo.customizers.conftest import PROMPTS, smooth
from umo.customizers import Drawing, load
from umo.customizers.flux_uno import FluxUno
from umo.drawing import batches as drawing
from umo.drawing.photographs import face_square
from umo.errors import BadInput, WorkFailed
from umo.evaluation.cases import read_cases
from umo.generate import Counts, generate, generate_cases, generate_one


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
    real, calls = drawing.write_picture, []

    def dies_at_the_second(path: Path, picture: np.ndarray, key: str) -> None:
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(path)
        real(path, picture, key)

    with monkeypatch.context() as patch:
        patch.setattr(drawing, "write_picture", dies_at_the_second)
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
    same = [
        {**alone, "case_id": f"c{k}", "prompt": PROMPTS[k % 4], "references": [f"refs/{k % 3}.png"]} for k in range(5)
    ]
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
    shapes = watched(monkeypatch)
    generate_cases(base, many, tmp_path / "out", steps=1, batch=4)
    wide, narrow = [(70, 80)], [(70, 60)]
    assert shapes == [[wide] * 4, [wide], [wide * 2], [narrow]]


def test_a_family_that_mixes_references_is_given_cases_of_one_size(
    base: Path, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FluxUno, "mixes_references", True)
    shapes = watched(monkeypatch)
    generate_cases(base, many, tmp_path / "out", steps=1, batch=4)
    assert [len(batch) for batch in shapes] == [4, 3]


def watched(monkeypatch: pytest.MonkeyPatch) -> list[list]:
    """Of every call that embeds, the heights and widths of each case's references."""
    real, shapes = FluxUno.condition, []

    def seen(self: FluxUno, prompts: object, references: list, *rest: object) -> object:
        shapes.append([[photo.shape[:2] for photo in photos] for photos in references])
        return real(self, prompts, references, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(FluxUno, "condition", seen)
    return shapes


@pytest.mark.parametrize(("seeds", "batch", "embedded"), [(5, 2, [1, 1]), (3, 4, [1, 1])])
def test_a_case_is_embedded_once_for_its_seeds(
    base: Path, cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeds: int, batch: int, embedded: list
) -> None:
    shapes = watched(monkeypatch)
    generate_cases(base, cases, tmp_path / "out", seeds=seeds, steps=1, batch=batch)
    assert [len(one) for one in shapes] == embedded


def test_a_case_that_straddles_batches_is_resumed_to_the_same_bytes(base: Path, many: Path, tmp_path: Path) -> None:
    """Three seeds in batches of four: the second batch begins with a case that the first has embedded."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    for out in (whole, resumed):
        generate_cases(base, many, out, seeds=3, steps=1)
    for path in (resumed / "images").iterdir():
        if path.name not in ("c0-0.png", "c0-1.png", "c0-2.png", "c1-0.png"):  # the first batch stays
            path.unlink()
    generate_cases(base, many, resumed, seeds=3, steps=1)
    assert drawn(resumed) == drawn(whole)


def test_shards_share_the_cases_out(base: Path, many: Path, tmp_path: Path) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    expected = [Counts(4, 0, whole=False), Counts(6, 0, whole=False), Counts(4, 0, whole=True)]
    for number, counts in zip((2, 1, 3), expected, strict=True):
        assert not (out / "CASES.jsonl").exists()
        assert generate_cases(base, many, out, seeds=2, steps=1, shard=(number, 3)) == counts
    generate_cases(base, many, whole, seeds=2, steps=1)
    assert (out / "CASES.jsonl").read_text() == (whole / "CASES.jsonl").read_text()
    assert drawn(out).keys() == drawn(whole).keys()
    assert generate_cases(base, many, out, seeds=2, steps=1) == Counts(0, 14), "a shard's picture is another's"


def test_progress_counts_what_is_there(base: Path, many: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    generate_cases(base, many, tmp_path / "out", steps=1, batch=4, progress=lambda *of: told.append(of))
    assert told == [(4, 7), (5, 7), (6, 7), (7, 7)]


def test_a_large_base_draws_one_at_a_time(
    base: Path, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, batches = drawing.draw_embedded, []
    monkeypatch.setattr(drawing, "draw_embedded", lambda *given: batches.append(len(given[1])) or real(*given))
    generate_cases(base, many, tmp_path / "small", steps=1)
    assert max(batches) == drawing.BATCH
    batches.clear()
    monkeypatch.setattr(drawing, "LARGE", 1000)
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
        generate_one(base, PROMPTS[0], photos, tmp_path / "new" / f"{name}.png", seed=seed, steps=2, crop=False)
    a, b, c = ((tmp_path / "new" / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c


def test_pictures_in_python_are_those_of_the_command(base: Path, cases: Path, tmp_path: Path) -> None:
    """From a file, a picture of Pillow's, an array; with a base that is loaded already; each step told."""
    path = cases.parent / "refs" / "0.png"
    generate_one(base, PROMPTS[0], [path], tmp_path / "one.png", seed=3, steps=2, crop=False)
    photo, told = Image.open(path), []
    how = Drawing(steps=2)
    given = [(base, path), (str(base), str(path)), (load(base), photo), (load(base), np.asarray(photo))]
    for model, reference in given:
        (found,) = generate(model, PROMPTS[0], [reference], (3,), how, crop=False)
        assert np.array_equal(found, Image.open(tmp_path / "one.png"))
    seeds = range(drawing.BATCH + 1)
    many = list(generate(load(base), PROMPTS[0], [photo], seeds, how, crop=False, progress=lambda *of: told.append(of)))
    assert len({one.tobytes() for one in many}) == len(seeds)
    assert np.abs(np.asarray(many[3], int) - np.asarray(found, int)).max() <= 1
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)], "two steps of two batches"


def test_it_is_refused_when_it_is_asked_for(base: Path, cases: Path) -> None:
    """Not when the first picture is taken."""
    with pytest.raises(BadInput, match=r"reference 1: no face found; .*--no-crop"):
        generate(base, PROMPTS[0], [np.zeros((90, 90, 3), np.uint8)])
    with pytest.raises(BadInput, match="draws 64x128, 64x192 only"):
        generate(base, PROMPTS[0], [cases.parent / "refs" / "0.png"], how=Drawing(size=(64, 64)))


def test_a_users_photograph_is_cut_to_the_face(base: Path, tmp_path: Path, orl, capsys) -> None:
    """As the export cuts references; one that is cut already stays as it is, but for a pixel or two."""
    from umo import faces
    from umo.quality import square_crop

    photo = np.pad(orl(8, 1), ((300, 50), (100, 400), (0, 0)), mode="edge")
    box = faces.load("opencv_zoo").detect([photo])[0][0].box
    expected = square_crop(photo, box, 2.2, 10_000)[0]
    assert np.array_equal(photo[face_square(photo, 2.2, "photo")], expected)
    (cut,) = generate(base, PROMPTS[0], [photo], how=Drawing(steps=1))
    (same,) = generate(base, PROMPTS[0], [expected], how=Drawing(steps=1), crop=False)
    assert np.array_equal(cut, same)
    again = expected[face_square(expected, 2.2, "photo")]
    assert abs(len(again) - len(expected)) <= 0.05 * len(expected)
    assert capsys.readouterr().err == ""
    small = np.asarray(Image.fromarray(photo).reduce(2))
    two = np.hstack([np.pad(small, ((0, len(photo) - len(small)), (0, 0), (0, 0)), mode="edge"), photo])
    rows, columns = face_square(two, 2.2, "reference two.jpg")
    shift = small.shape[1]
    assert columns.start > shift - 40 and rows.stop - rows.start >= 0.8 * len(expected), "the larger face, on the right"
    assert "reference two.jpg: 2 faces; the largest is taken" in capsys.readouterr().err


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
    with pytest.raises(BadInput, match=r"reference .*0\.png: no face found"):
        generate_cases(base, cases, out, crop=face_square)


def test_a_picture_that_is_not_finite_fails_the_work(
    base: Path, cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "draw_embedded", lambda *_: torch.full((1, 3, 64, 128), torch.nan))
    with pytest.raises(WorkFailed, match="not finite; check the base's and the LoRA's weights"):
        generate_cases(base, cases, tmp_path / "out", steps=1)


def test_a_base_that_does_not_know_most_words_says_so(base: Path, cases: Path, tmp_path: Path, capsys) -> None:
    photo = cases.parent / "refs" / "0.png"
    generate(base, "Purple elephants dance wildly, a photo of elephants.", [photo], crop=False)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "tiny does not know most words of the prompt: Purple, elephants, dance, wildly; it cannot draw what they say"
    ]
    generate(base, PROMPTS[0] + " Elephants.", [photo], crop=False)
    assert capsys.readouterr().err == "", "most words are known"
    rows = [json.loads(line) for line in cases.read_text().splitlines()]
    write(cases, [*rows, *({**rows[0], "case_id": f"x{k}", "prompt": "Wild elephants"} for k in range(3))])
    generate_cases(base, cases, tmp_path / "out", steps=1)
    assert "words of the prompt of x0 (and of 2 other prompts): Wild, elephants;" in capsys.readouterr().err
