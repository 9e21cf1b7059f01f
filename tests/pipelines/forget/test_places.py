"""The one list of places that keep somebody: all outputs of the graph are in it, and each is scanned and cleared."""

import shutil
from pathlib import Path

import pytest
import yaml

from pipelines.core.ledger import LEDGER
from pipelines.core.shards import ROOT
from pipelines.core.tombstones import hashes
from pipelines.forget import elsewhere, purge
from pipelines.forget.note import Note
from pipelines.forget.places import CACHE, CORRECTIONS, ROOTS, Clear, _places, found
from pipelines.forget.scan import Wanted
from pipelines.forget.search import Search

PERSON = "p0123456789ab"
OUTS = (Clear.OUT, Clear.REPORT, Clear.MODEL)
GONE = (Clear.PIECE, Clear.WHOLE, Clear.OUT, Clear.REPORT, Clear.OBJECTS, Clear.COPIES)


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[Path, Clear]:
    """A file that names the person in every place of the list; file -> how the place is cleared."""
    monkeypatch.chdir(tmp_path)
    files = {}
    for place in (place for place in _places() if place.clear not in (Clear.PARTS, Clear.RECORDS)):
        path = Path(place.pattern.replace("**", "deep").replace("*", "x"))
        file = path if path.suffix and not path.name.startswith(".") else path / "x.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f'{{"people": ["{PERSON}"]}}')
        files[file] = place.clear
    LEDGER.write_text(f"person_id,split,faces\n{PERSON},train,{'a' * 16}\n")
    return files


def search() -> Search:
    return Search(Wanted(frozenset({PERSON}), frozenset(), hashes([]), 0.25))


def left() -> set[Path]:
    leave = found(Clear.KEPT)
    return {path for root in ROOTS for path in search().walk(root, leave).found}


def test_somebody_is_found_in_every_place_but_those_that_are_kept(planted):
    assert left() == {file for file, clear in planted.items() if clear != Clear.KEPT}
    assert {Clear.KEPT, *GONE} < set(planted.values())


@pytest.mark.parametrize("drop_models", [False, True])
def test_every_place_is_cleared_as_it_says(planted, monkeypatch, drop_models):
    monkeypatch.setattr(purge, "ask", lambda *words: "Repo.site_cache_dir: records\n")
    Path("records").mkdir()
    note = Note(person_ids=[PERSON], image_ids=[], phashes={}, drop_models=drop_models)
    said = purge.purge(search(), note)
    assert said.startswith(f"1 rows of {LEDGER}, 1 of {CORRECTIONS}, ")
    stay = set() if drop_models else {Clear.MODEL}
    assert left() == {file for file, clear in planted.items() if clear in stay}
    assert all(file.exists() for file, clear in planted.items() if clear == Clear.KEPT)
    assert CACHE.exists() and not Path("records").exists()


def test_corrections_of_others_stay_as_they_were_written(planted, monkeypatch):
    monkeypatch.setattr(purge, "ask", lambda *words: "")
    others = b'\xef\xbb\xbfaction,a,b,note\r\nmerge,p0123456789ac,p0123456789ad,"caf\xe9, \r\n'
    theirs = f"merge,p0123456789ac,{PERSON},\nsame,{'a' * 16}-0,{'b' * 16}-1,\n".encode()
    CORRECTIONS.write_bytes(others + theirs + b"drop,p0123456789ae,,")
    note = Note(person_ids=[PERSON], image_ids=["a" * 64], phashes={"a" * 64: ""})
    looking = Search(Wanted(frozenset({PERSON}), frozenset(note.image_ids), hashes([]), 0.25))
    assert f"2 of {CORRECTIONS}" in purge.purge(looking, note)
    assert CORRECTIONS.read_bytes() == others + b"drop,p0123456789ae,,"
    assert f"0 of {CORRECTIONS}" in purge.purge(looking, note)


@pytest.mark.parametrize(
    "file",
    [".prefect/storage/result", "models/mine/people.json", "models/other/notes.txt", "remote/ab/cd", "out/x.txt"],
)
def test_somebody_is_found_in_what_forget_leaves_where_it_is(tmp_path, monkeypatch, file):
    """Prefect's records, models, remotes in a folder, releases in a folder; its own log for the user is no copy."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(elsewhere, "ask", lambda *words: f"remote.there.url={tmp_path / 'remote'}\n")
    asked = {"for-each-ref": "refs/tags/v1"}
    monkeypatch.setattr(elsewhere, "git", lambda *words, missing: asked.get(words[0], ""))
    monkeypatch.setattr(elsewhere, "_copy_of", lambda tag: str(tmp_path / "out"))
    for name in (".prefect/forget.log", file):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"[{PERSON!r}]")
    copies = elsewhere.copies(search(), {}, [])
    found_in = {path for part in copies.seen.values() for path in part.found}
    assert {path if path.is_absolute() else tmp_path / path for path in found_in} == {tmp_path / file}
    assert copies.remain().startswith("copies remain in ") and copies.remain().endswith(" (1 files)")
    (tmp_path / file).write_text("nobody")
    assert not elsewhere.copies(search(), {}, []).remain()
    (tmp_path / file).write_text("PAR1 of nobody, cut off")
    assert elsewhere.copies(search(), {}, []).remain().startswith("not looked into: ")


def test_what_shows_somebody_else_stays(planted):
    other = Path(".work/measure/other/x.json")
    other.parent.mkdir(parents=True)
    other.write_text('{"people": ["p0123456789ac"]}')
    work, outs, _ = purge.what_holds(search(), False, {})
    assert not {other.parent, *other.parent.parents} & set(work) and Path(".work/measure/x") in work
    shutil.rmtree("datasets")
    shutil.rmtree("runs")
    Path("runs/report").mkdir(parents=True)
    assert purge.what_holds(search(), False, {}).outs == [], "the report goes where another output goes"
    assert outs[0] == Path("runs/report")


def test_every_output_of_the_graph_is_a_place(tmp_path, monkeypatch):
    """A new stage that nobody registered would be passed over."""
    monkeypatch.chdir(tmp_path)
    outs = set()
    for stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values():
        does = stage.get("do", stage)
        for out in [*does["outs"], *does.get("metrics", ())]:
            name = out if isinstance(out, str) else next(iter(out))
            outs |= {Path(name.replace("${item}", part).replace("${key}", part)) for part in stage.get("foreach", [""])}
    for out in outs:
        (out.parent if out.suffix else out).mkdir(parents=True, exist_ok=True)
        if out.suffix:
            out.write_text("")
    assert outs == set(found(*OUTS, Clear.ROWS))
