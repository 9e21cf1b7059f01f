"""Whatever people write into their files, a command answers in one line: where, what, what to do; exit code 2."""

import shutil
from pathlib import Path

import pytest

from pipelines.__main__ import main
from pipelines.core.shards import ROOT
from pipelines.core.tombstones import Tombstones
from pipelines.synthesise import templates
from umo.errors import BadInput

ENTRY = "{path: photos, licence: CC0}"
NOT_YAML = [
    b"\xff\xfea\0:\0",
    "é: 1".encode("latin-1"),
    b"a: \0",
    b"a: [1",
    b"\ta: 1",
    b"a: *b",
    b"a: &a [*a]",
    b"[" * 100_000,
    b"1: 2",
    b"a: 1\na: 2",
    b'"\\ud83d": 1',
    b"a: !!python/object:os.system x",
    b"--- a\n--- b",
    b"just a text",
    b"- a list",
    b"17",
    b"",
]
SOURCES = [
    (f"2019: {ENTRY}", "1: the key 2019 means a number"),
    (f"no: {ENTRY}", "1: the key no means yes or no"),
    (f"2019-07-01: {ENTRY}", "1: the key 2019-07-01 means a date"),
    (f"a: {ENTRY}\nb: {ENTRY}\na: {ENTRY}", "3: the key 'a' stands in line 1 too"),
    (
        "a:\n  path: photos\n  licence: 1.0",
        "3: source 'a': 'licence': Input should be a valid string, found 1.0: put it",
    ),
    ("a: {path: photos, licence: 2019-07-01}", "1: source 'a': 'licence': Input should be a valid string, found"),
    ("a: {path: photos, licence: no}", "1: source 'a': 'licence': Input should be a valid string, found False: put it"),
    ("a: {path: photos, licence: [CC0]}", "1: source 'a': 'licence': Input should be a valid string, found ['CC0'] ("),
    ("a:\n  path: photos\n  consent: yes", "3: source 'a': 'consent': Input should be 'unknown'"),
    ("a: {path: 12}", "1: source 'a': 'path': Input is not a valid path for <class 'pathlib.Path'>, found 12: put it"),
    ("a: {path: }", "1: source 'a': 'path': Input is not a valid path"),
    ("a: {path: ''}", "1: source 'a': 'path': names nothing: give a path"),
    (f"a: {{path: {'x' * 256}}}", "1: source 'a': 'path': a name of 256 bytes"),
    ('a: {path: "a\\nb"}', r"1: source 'a': 'path': 'a\nb' holds the control character \n"),
    ('"a\\tb": {path: photos}', r"1: a source's name 'a\tb' holds the control character \t"),
    (f"'': {ENTRY}", "1: a source's name is empty"),
    ("a: {path: photos, include: /etc/*}", "1: source 'a': 'include': is no pattern below a folder"),
    ("a: {path: photos, include: ''}", "1: source 'a': 'include': is no pattern"),
    ("a: {path: photos, include: 'a**'}", "1: source 'a': 'include': is no pattern"),
    ("a: {path: photos, licens: CC0}", "1: source 'a': 'licens': Extra inputs"),
    ("a: {licence: CC0}", "1: source 'a': 'path': Field required ("),
    ("a:", "1: source 'a': Input should be"),
    ("a: photos", "1: source 'a': Input should be"),
    ("a: [photos]", "1: source 'a': Input should be"),
    ("a: {path: photos}\na/b: {path: photos}", "2: sources 'a' and 'a/b': a path such as a/b/1.jpg could be of either"),
    ("{}", " not a mapping of names to sources"),
]
PARAMS = [
    ("  pool: 4", "  pool: yes", "'curate.pool': input should be a number, found True"),
    ("  pool: 4", "  pool: 4\n  pool: 5", "the key 'pool' stands in line"),
    ("  pool: 4", "  pool: four", "'curate.pool': input should be a valid integer"),
    ("  pool: 4", "  pool: .inf", ".inf is no number to work with"),
    ("  pool: 4", "  4: 4", "the key 4 means a number"),
    ("  pool: 4", "\tpool: 4", "not YAML"),
]


@pytest.fixture
def said(tmp_path: Path, monkeypatch, capsys):
    """said("ingest") -> its exit code and its one line, in a folder with the shipped params.yaml."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    Path("datasets").mkdir()
    Path("photos").mkdir()

    def run(*arguments: str) -> tuple[int, str]:
        code = main(list(arguments))
        (line,) = capsys.readouterr().err.splitlines()
        assert line.isprintable()
        return code, line

    return run


@pytest.mark.parametrize("text", NOT_YAML)
def test_a_file_that_is_no_mapping(said, tmp_path: Path, text: bytes) -> None:
    Path("datasets/sources.yaml").write_bytes(text)
    for command in ("sources", "ingest"):
        code, line = said(command)
        assert (code, line.startswith(f"{command}: datasets/sources.yaml:")) == (2, True)
    (tmp_path / "prompts.yaml").write_bytes(text)
    with pytest.raises(BadInput, match=r"^prompts.yaml:[^\n]*$"):
        templates.read(Path("prompts.yaml"))
    Path("params.yaml").write_bytes(text)
    code, line = said("check")
    assert (code, line.startswith("check: params.yaml:")) == (2, True)


@pytest.mark.parametrize(("text", "line"), SOURCES)
def test_sources_that_are_none(said, text: str, line: str) -> None:
    Path("datasets/sources.yaml").write_text(text)
    for command in ("sources", "ingest"):
        code, found = said(command)
        assert (code, found[: len(command) + len(line) + 24]) == (2, f"{command}: datasets/sources.yaml:{line}")


@pytest.mark.parametrize(("old", "new", "reason"), PARAMS)
def test_params_that_are_none(said, old: str, new: str, reason: str) -> None:
    text = Path("params.yaml").read_text()
    assert text.count(f"\n{old}\n") == 1
    Path("params.yaml").write_text(text.replace(f"\n{old}\n", f"\n{new}\n"))
    code, line = said("check")
    assert code == 2
    assert reason in line


def test_a_mark_and_other_line_ends_change_nothing(said, monkeypatch) -> None:
    for name in ("params.yaml", "datasets/sources.yaml"):
        text = (ROOT / name).read_text()
        Path(name).write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert main(["check"]) == main(["sources"]) == 0


IMAGE = "a" * 64
TOMBSTONES = [
    b"\xff\xfei\0",
    b"image_id\n",
    f"{IMAGE},\n".encode(),
    f"{'A' * 64},,,\n".encode(),
    f"0x{'a' * 62},,,\n".encode(),
    f"{IMAGE},{'_' * 16},,\n".encode(),
    f"{IMAGE},,dlib,AA==\n".encode(),
    f"{IMAGE},,dlib,AH4=\n".encode(),
    f"{IMAGE},,,AAA=\n".encode(),
    f"{IMAGE},,\xe9,\n".encode("latin-1"),
    b'"' + b"x" * 200_000 + b'",,,\n',
]


@pytest.mark.parametrize("row", TOMBSTONES)
def test_tombstones_that_are_none(tmp_path: Path, row: bytes) -> None:
    (tmp_path / "t.csv").write_bytes(row if b"i" in row[:3] else b"image_id,phash,embedder,embedding\n" + row)
    with pytest.raises(BadInput, match=r"t.csv:[^\n]*$"):
        Tombstones.read(tmp_path / "t.csv")
