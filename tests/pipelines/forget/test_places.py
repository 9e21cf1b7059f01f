"""The one list of places that keep somebody: all outputs of the graph are in it, and each is scanned and cleared."""

import shutil
from pathlib import Path

import pytest
import yaml

from pipelines.core.ledger import LEDGER
from pipelines.core.shards import ROOT
from pipelines.core.tombstones import hashes
from pipelines.forget import purge
from pipelines.forget.note import Note
from pipelines.forget.places import CACHE, ROOTS, Clear, _places, found
from pipelines.forget.scan import Scan, Wanted

PERSON = "p0123456789ab"
OUTS = (Clear.OUT, Clear.REPORT, Clear.MODEL)
GONE = (Clear.WORK, Clear.WHOLE, Clear.OUT, Clear.REPORT, Clear.COPIES)


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[Path, Clear]:
    """A file that names the person in every place of the list; file -> how the place is cleared."""
    monkeypatch.chdir(tmp_path)
    files = {}
    for place in (place for place in _places() if place.clear != Clear.PARTS):
        path = Path(place.pattern.replace("**", "deep").replace("*", "x"))
        file = path if path.suffix and not path.name.startswith(".") else path / "x.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f'{{"people": ["{PERSON}"]}}')
        files[file] = place.clear
    LEDGER.write_text(f"person_id,split,faces\n{PERSON},train,{'a' * 16}\n")
    return files


def scan() -> Scan:
    return Scan(Wanted(PERSON, frozenset(), hashes([]), 0.25))


def left() -> set[Path]:
    leave = found(Clear.KEPT)
    return {path for root in ROOTS for path in scan().walk(root, leave).found}


def test_somebody_is_found_in_every_place_but_those_that_are_kept(planted):
    assert left() == {file for file, clear in planted.items() if clear != Clear.KEPT}
    assert {Clear.KEPT, *GONE} < set(planted.values())


@pytest.mark.parametrize("drop_models", [False, True])
def test_every_place_is_cleared_as_it_says(planted, monkeypatch, drop_models):
    asked = []
    monkeypatch.setattr(purge, "ask", lambda *words: asked.append(words) or "Repo.site_cache_dir: records\n")
    Path("records").mkdir()
    note = Note(person_id=PERSON, image_ids=[], phashes={}, drop_models=drop_models)
    said = purge.purge(scan(), note)
    assert said.startswith(f"1 rows of {LEDGER}, ")
    stay = {Clear.UNUSED} | ({Clear.MODEL} if not drop_models else set())
    assert left() == {file for file, clear in planted.items() if clear in stay}
    assert all(file.exists() for file, clear in planted.items() if clear == Clear.KEPT)
    assert asked[0] == ("gc", "--workspace", "--force") and not Path("records").exists()
    assert CACHE.exists()


def test_what_shows_somebody_else_stays(planted):
    other = Path(".work/measure/other/x.json")
    other.parent.mkdir(parents=True)
    other.write_text('{"people": ["p0123456789ac"]}')
    work, outs = purge.what_holds(scan(), False)
    assert not {other.parent, *other.parent.parents} & set(work) and Path(".work/measure/x") in work
    shutil.rmtree("datasets")
    shutil.rmtree("runs")
    Path("runs/report").mkdir(parents=True)
    assert purge.what_holds(scan(), False)[1] == [], "the report goes where another output goes"
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
