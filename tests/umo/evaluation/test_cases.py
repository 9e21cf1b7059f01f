import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from umo.errors import BadInput
from umo.evaluation.cases import Case, parse_case, read_cases, write_cases

GOOD = {"case_id": "a", "prompt": "two people", "references": ["r.png", "g.png"], "images": ["rg.png"]}
FULL = {
    "case_id": "b",
    "prompt": "two people",
    "references": [["r.png", "r2.png"], "g.png"],
    "images": ["rg.png"],
    "target": "rg.png",
    "people": ["R", "G"],
    "places": [1, None],
    "tags": ["two", "indoors"],
    "groups": ["warm", "cold"],
}


def write(path: Path, *lines: object) -> Path:
    texts = (line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)
    path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    return path


def without(case: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in case.items() if key != name}


def test_read_cases(tmp_path: Path) -> None:
    path = write(tmp_path / "CASES.jsonl", GOOD | {"target": None, "people": None}, FULL)
    path.write_text("\ufeff" + path.read_text().replace("\n", "\r\n") + "\n")
    first, second = read_cases(path)
    assert (first.target, first.people) == (None, None)
    assert second.references == (("r.png", "r2.png"), ("g.png",))
    assert second.paths == ["r.png", "r2.png", "g.png", "rg.png", "rg.png"]
    assert second.people == ("R", "G")


BAD_LINES = [
    ("{", "not JSON"),
    ("[]", "not a JSON object"),
    ('"text"', "not a JSON object"),
    (GOOD | {"case_id": "b", "refs": []}, r"unknown \['refs'\]"),
    (GOOD, "already taken"),
    (GOOD | {"case_id": ""}, "case_id must be"),
    (GOOD | {"case_id": 7}, "case_id must be"),
    (GOOD | {"case_id": "b", "prompt": None}, "prompt must be"),
    (GOOD | {"case_id": "b", "references": []}, "references must be"),
    (GOOD | {"case_id": "b", "references": "r.png"}, "references must be"),
    (GOOD | {"case_id": "b", "references": [[]]}, "a reference must be"),
    (GOOD | {"case_id": "b", "references": [1]}, "a reference must be"),
    (GOOD | {"case_id": "b", "references": [""]}, "a reference must be"),
    (GOOD | {"case_id": "b", "target": 3}, "target must be"),
    (GOOD | {"case_id": "b", "people": ["R"]}, "1 people for 2 references"),
    (GOOD | {"case_id": "b", "people": [1, 2]}, "people must be"),
    (GOOD | {"case_id": "b", "people": ["R", "R"]}, "a person twice"),
    (GOOD | {"case_id": "b", "places": [1]}, "1 places for 2 references"),
    (GOOD | {"case_id": "b", "places": "left"}, "places must be a list of numbers or nulls"),
    (GOOD | {"case_id": "b", "places": [True, 2]}, "places must be"),
    (GOOD | {"case_id": "b", "places": [float("nan"), 2]}, "places must be"),
    (GOOD | {"case_id": "b", "places": [10**400, 2]}, "places must be"),
    (GOOD | {"case_id": "b", "tags": "two"}, "tags must be a list of texts"),
    (GOOD | {"case_id": "b", "tags": []}, "tags must be"),
    (GOOD | {"case_id": "b", "groups": ["warm", "cold"]}, "groups need people"),
    (GOOD | {"case_id": "b", "people": ["R", "G"], "groups": ["warm"]}, "1 groups for 2 references"),
    (GOOD | {"case_id": "b", "people": ["R", "G"], "groups": [1, 2]}, "groups must be a list of texts"),
]
UNFIT = [
    ('"case_id": "caf\\ud83d"', "case_id: 'caf\\ud83d' is not Unicode"),
    ('"case_id": "a\\n"', "case_id: 'a\\n' holds the control character \\n"),
    ('"prompt": "two\\u0000"', "prompt: 'two\\x00' holds the control character \\x00"),
    ('"prompt": "two \\udce9"', "prompt: 'two \\udce9' is not Unicode"),
    ('"references": ["r.png", "g\\u0000.png"]', "references: 'g\\x00.png' holds the control character"),
    ('"references": [["r.png", "r2\\udce9.png"], "g.png"]', "references: 'r2\\udce9.png' is not Unicode"),
    ('"target": "t\\u001b[31m.png"', "target: 't\\x1b[31m.png' holds the control character"),
    (f'"target": "{"é" * 130}.png"', "target: a name of 264 bytes"),
    ('"people": ["R", "x\\udc80"]', "people: 'x\\udc80' is not Unicode"),
    ('"tags": ["a\\tb"]', "tags: 'a\\tb' holds the control character \\t"),
    ('"people": ["R", "G"], "groups": ["a", "b\\u202e"]', "groups: 'b\\u202e' holds the control character"),
    ('"prompt": "two", "prompt": "one"', "key 'prompt' is there twice: remove one"),
    ('"prompt": NaN', "prompt must be a text"),
    (f'"places": [1, {"9" * 5000}]', "a number of 5000 digits is too large"),
    (f'"places": {"[" * 100_000}', "not JSON of ours (nested without end)"),
]


@pytest.mark.parametrize(("part", "reason"), UNFIT)
def test_a_text_that_cannot_be_stored_is_refused(tmp_path: Path, part: str, reason: str) -> None:
    """The other keys are as in GOOD; what comes last counts in `|`, but a key twice in the text is refused."""
    given = {key for key in GOOD if f'"{key}":' in part}
    rest = json.dumps({key: value for key, value in (GOOD | {"case_id": "b"}).items() if key not in given})
    path = write(tmp_path / "CASES.jsonl", GOOD, f"{rest[:-1]}, {part}}}")
    for drawn in (True, False):
        with pytest.raises(BadInput) as caught:
            read_cases(path, drawn)
        assert str(caught.value).startswith(f"{path}:2: {reason}")
        assert str(caught.value).isprintable()


def test_an_image_that_cannot_be_opened_is_refused_where_it_is_scored() -> None:
    line = json.dumps(GOOD | {"images": ["rg.png", "g" * 256]})
    with pytest.raises(ValueError, match="images: a name of 256 bytes"):
        parse_case(line)


@pytest.mark.parametrize("text", ["\ud83d\ude00 \u200d é", "张 | [b] `x`"])
def test_any_other_text_is_kept(text: str) -> None:
    text = text.encode("utf-16", "surrogatepass").decode("utf-16")
    assert parse_case(json.dumps(GOOD | {"case_id": text, "prompt": text})).case_id == text


@pytest.mark.parametrize(("drawn", "nothing"), [(True, "nothing was scored"), (False, "nothing was drawn")])
@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_a_bad_line_is_refused(tmp_path: Path, line: object, reason: str, drawn: bool, nothing: str) -> None:
    path = write(tmp_path / "CASES.jsonl", GOOD, line)
    with pytest.raises(BadInput, match=f"CASES.jsonl:2: .*{reason}.*; correct the line, {nothing}$") as caught:
        read_cases(path, drawn)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"case_id": "b"}, r"missing \['images', 'prompt', 'references'\]"),
        (without(GOOD, "images"), r"missing \['images'\]"),
        (GOOD | {"images": []}, "images must be"),
        (GOOD | {"images": [None]}, "images must be"),
    ],
)
def test_a_drawn_case_names_its_images(line: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_case(json.dumps(line))


@pytest.mark.parametrize("case", [without(GOOD, "images"), GOOD | {"images": []}, GOOD | {"images": [None]}, GOOD])
def test_a_case_to_be_drawn_needs_no_images(case: dict[str, Any]) -> None:
    assert parse_case(json.dumps(case), drawn=False) == replace(parse_case(json.dumps(GOOD)), images=())
    with pytest.raises(ValueError, match=r"missing \['prompt', 'references'\]"):
        parse_case('{"case_id": "b"}', drawn=False)


@pytest.mark.parametrize("drawn", [True, False])
def test_a_file_without_cases_is_refused(tmp_path: Path, drawn: bool) -> None:
    with pytest.raises(BadInput, match="No such file"):
        read_cases(tmp_path / "absent.jsonl", drawn)
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(BadInput, match="holds no case"):
        read_cases(tmp_path / "empty.jsonl", drawn)
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="UTF-8"):
        read_cases(tmp_path / "bytes.jsonl", drawn)


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85"])
def test_a_line_ends_at_a_line_feed_only(tmp_path: Path, character: str) -> None:
    prompt = f"two{character}people"
    path = write(tmp_path / "CASES.jsonl", GOOD | {"prompt": prompt}, FULL)
    assert character in path.read_text(encoding="utf-8")
    for drawn in (True, False):
        assert [case.prompt for case in read_cases(path, drawn)] == [prompt, "two people"]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    cases = [parse_case(json.dumps(case)) for case in (GOOD | {"prompt": "Zo\xeb\u2028and \U0001f600"}, FULL)]
    path = tmp_path / "CASES.jsonl"
    write_cases(path, cases)
    assert read_cases(path) == cases
    assert [file.name for file in tmp_path.iterdir()] == ["CASES.jsonl"]


def test_a_person_has_one_group(tmp_path: Path) -> None:
    lines = [FULL | {"case_id": name, "people": ["R", name]} for name in "ab"]
    assert len(read_cases(write(tmp_path / "same.jsonl", *lines))) == 2
    other = write(tmp_path / "other.jsonl", lines[0], lines[1] | {"groups": ["cold", "cold"]})
    with pytest.raises(BadInput, match=r"other.jsonl:2: 'R' is of group 'cold' here and of 'warm' in an earlier line"):
        read_cases(other)


def test_places_are_those_of_the_case_or_else_of_its_prompt() -> None:
    said = "A photo of two people: the first person on the right and the second person on the left."
    assert parse_case(json.dumps(FULL | {"prompt": said})).asked_places == (1, None)
    first, second = parse_case(json.dumps(GOOD | {"prompt": said})).asked_places
    assert first > second
    assert parse_case(json.dumps(GOOD)).asked_places is None


def test_a_line_is_short() -> None:
    assert json.loads(parse_case(json.dumps(FULL)).line()) == FULL
    assert json.loads(Case("a", "two people", (("r.png",), ("g.png",)), ("rg.png",), None, None).line()) == GOOD


def test_reading_cases_needs_no_network() -> None:
    modules = "('torch', 'numpy', 'PIL', 'umo.faces')"
    heavy = f"import sys, umo.evaluation.cases; print([m for m in {modules} if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
