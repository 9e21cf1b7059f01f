"""Text that people wrote: what is refused, in one line that names file, line and remedy; and what is not."""

import datetime
import json
from pathlib import Path

import pytest

from umo.errors import BadInput
from umo.texts import fault, line_of, parse_json, parse_yaml, path_fault, printable, read_json, read_text, read_yaml

BILLION = "\n".join(["l0: &l0 x", *(f"l{k}: &l{k} [{', '.join([f'*l{k - 1}'] * 9)}]" for k in range(1, 30))])
BAD_YAML = [
    ("2019: 1", 1, "the key 2019 means a number to YAML"),
    ("a: 1\nno: 2", 2, 'the key no means yes or no to YAML, and no text: put it in quotes, "no"'),
    ("2019-07-01: 1", 1, "means a date"),
    ("~: 1", 1, "means nothing"),
    ("1.5: 1", 1, "means a number"),
    ("a: {on: 1}", 1, "the key on means yes or no"),
    ("? [1, 2]\n: 3", 1, "a key is no text"),
    ("a: 1\nb: 2\na: 3", 3, "the key 'a' stands in line 1 too"),
    ("a:\n  b: 1\n  b: 2", 3, "the key 'b' stands in line 2 too"),
    ("a: 1\n\tb: 2", 2, "not YAML"),
    ("a: {b: 1]", 1, "not YAML"),
    ("a: *b", 1, "not YAML (found undefined alias"),
    ("a: 1\n---\nb: 1", 2, "not YAML (but found another document)"),
    ("a: &a\n  b: *a", 1, "an alias to what it stands in"),
    ("a: !!python/name:os.system x", 1, "means nothing here"),
    ("a: 2024-13-45", 1, "2024-13-45 cannot be read as a date: put it in quotes"),
    ("a: " + "1" * 5000, 1, "cannot be read as a number"),
    ("a: .nan", 1, "is no number to work with"),
    ("a: -.inf", 1, "is no number to work with"),
    ('a: "\\ud83d"', 1, "Unicode"),
    ('a: "x\\0"', 1, r"holds the control character \x00"),
    ("a: 1\nb: \x1b[31m", 2, r"holds the control character \x1b"),
    ("[" * 100_000, None, "nest"),
]


@pytest.mark.parametrize(("text", "line", "reason"), BAD_YAML)
def test_yaml_that_nobody_means_is_refused_with_its_line(
    tmp_path: Path, text: str, line: int | None, reason: str
) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(text, encoding="utf-8", newline="")
    with pytest.raises(BadInput) as caught:
        read_yaml(path)
    said = str(caught.value)
    assert said.startswith(f"{path}:{line}: " if line else f"{path}:")
    assert reason in said
    assert said.isprintable()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("# only a comment\n", None),
        ("a: 1\r\nb: yes\r\n", {"a": 1, "b": True}),
        ("base: &b {x: 1}\nown: {<<: *b, y: 2}", {"base": {"x": 1}, "own": {"x": 1, "y": 2}}),
        ("own: {<<: [{x: 1}, {x: 2, z: 3}], x: 0}", {"own": {"x": 0, "z": 3}}),
        ("'2019': {'no': 1}", {"2019": {"no": 1}}),
        ("d: 2019-07-01\nn: 1.5e-3\nü: é", {"d": datetime.date(2019, 7, 1), "n": 0.0015, "ü": "é"}),
    ],
)
def test_yaml_that_is_meant_is_read(text: str, value: object) -> None:
    assert parse_yaml(text, "f.yaml") == value
    assert parse_yaml(BILLION, "f.yaml")["l29"]  # by reference: neither time nor memory


CODINGS = [
    ("a: é\n".encode("latin-1"), "f:1: is not text in UTF-8 (byte 0xe9): save it as UTF-8"),
    (b"a: 1\nb: \x80\n", "f:2: is not text in UTF-8 (byte 0x80)"),
    ("a: é".encode("utf-16"), "f: is UTF-16, not UTF-8"),
    ("a: é".encode("utf-16-be"), "f:"),
]


@pytest.mark.parametrize(("data", "reason"), CODINGS)
def test_another_coding_is_named_with_the_line(tmp_path: Path, monkeypatch, data: bytes, reason: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("f").write_bytes(data)
    for read in (read_text, read_yaml, read_json):
        if data.startswith(b"\0") and read is read_text:
            continue  # NULs are text
        with pytest.raises(BadInput) as caught:
            read(Path("f"))
        assert str(caught.value).startswith(reason)


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "f").write_text('\ufeff{"a": 1}\r\n', encoding="utf-8", newline="")
    assert read_text(tmp_path / "f") == '{"a": 1}\r\n'
    assert read_json(tmp_path / "f") == read_yaml(tmp_path / "f") == {"a": 1}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1,}', "not JSON ("),
        ('{"a": 1, "b": 2, "a": 3}', "key 'a' is there twice"),
        ('[{"a": {"b": 1, "b": 1}}]', "key 'b' is there twice"),
        ("[" * 100_000, "not JSON of ours (nested without end)"),
        ("1" * 5000, "a number of 5000 digits is too large"),
        ('{"a": [NaN]}', "nan is no number to work with"),
        ("-Infinity", "-inf is no number"),
        ("1e999", "inf is no number"),
        ("", "not JSON"),
    ],
)
def test_json_that_nobody_means_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "f.json"
    path.write_text(text)
    with pytest.raises(BadInput, match=r"^[^\n]*$") as caught:
        read_json(path)
    assert str(caught.value).startswith(f"{path}: {reason}")


def test_json_that_is_meant_is_read() -> None:
    value = {"a": [1, 2.5, None, True, "é\u2028"], "b": {"a": {}}}
    assert parse_json(json.dumps(value)) == value


def test_what_a_text_may_hold() -> None:
    assert fault("two\tpeople\nin a row\u2028\x85é \U0001f600") is None
    assert fault("Zoë 張 \u200d x [b] | <i>", name=True) is None
    for char in "\n\t\x85\u2028\u202e\x9b":
        assert printable(char) in (fault(f"a{char}", name=True) or "")
    for char in "\0\x1b\x07\x7f\ud800\udcff":
        assert printable(char) in (fault(f"a{char}") or "")
        assert printable(char) in (fault(f"a{char}", name=True) or "")
    assert len(fault("x" * 10_000 + "\0") or "") < 200


def test_what_can_be_opened() -> None:
    assert path_fault(f"{'é' * 127}/{'x' * 255}/../a b.png") is None
    assert "256 bytes" in (path_fault(f"a/{'é' * 128}") or "")
    assert "rename the file" in (path_fault("a\udce9.png") or "")


def test_the_line_of_a_value(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text("# c\na:\n  b: 1\n  c:\n    - 1\n    - 2\n")
    asked = [
        ((), 1),
        (("a",), 2),
        (("a", "c"), 4),
        (("a", "c", 1), 6),
        (("a", "c", 9), 4),
        (("x",), 1),
        (("a", "x"), 2),
    ]
    assert [line_of(tmp_path / "f.yaml", keys) for keys, _ in asked] == [line for _, line in asked]
