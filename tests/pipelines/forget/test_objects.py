"""DVC's cache and remotes: what is theirs goes object by object, and an experiment without them keeps every file."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from pipelines.core.ledger import COLUMNS, LEDGER
from pipelines.core.shards import ROOT
from pipelines.core.tombstones import hashes
from pipelines.forget import elsewhere, objects, purge
from pipelines.forget.note import Note
from pipelines.forget.places import CACHE
from pipelines.forget.scan import Wanted
from pipelines.forget.search import Search
from tests.pipelines.conftest import Workspace, made_once

PERSON, PICTURE = "p0123456789ab", "ab" * 32
MAKE = """
import json, pathlib
for name, text in json.loads(pathlib.Path("files.json").read_text()).items():
    file = pathlib.Path(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
"""
OUTS = ("datasets/ingested", "datasets/exported", "runs/cases", "runs/report", "runs/train/sft", "runs/generate/base")
SHOWN = {
    "datasets/ingested/0/images.parquet": f"theirs {PICTURE}",
    "datasets/ingested/1/images.parquet": "somebody else",
    "datasets/exported/train-0.parquet": f"theirs {PERSON}",
    "datasets/exported/contact_sheet_train.jpg": "scaled pictures of them too",
    "datasets/exported/README.md": "a card",
    "runs/cases/CASES.jsonl": "a case of theirs, without a name",
    f"runs/cases/references/{PICTURE[:16]}-0.jpg": "a crop of theirs, known by its name alone",
    "runs/report/report.html": "scaled pictures of them",
    "runs/train/sft/training.json": f'{{"people": ["{PERSON}"]}}',
    "runs/train/sft/pytorch_lora_weights.safetensors": "weights that saw them",
    "runs/generate/base/0.txt": "in every version",
}
HIDDEN = {name: f"without: {name}" for name in SHOWN if "references" not in name} | {
    f"runs/cases/references/{'cd' * 8}-0.jpg": "a crop of somebody else",
    "runs/generate/base/0.txt": SHOWN["runs/generate/base/0.txt"],
}


def _make(workspace: Workspace) -> None:
    """The tag v1 has them, and so has the experiment `other`, in a version of its own; the experiment `free` has not.
    Everything was pushed to the remote in the clone.
    """
    path = workspace.path
    (path / ".dvc").mkdir(parents=True)
    (path / "datasets").mkdir()
    for name in ("params.yaml", ".gitignore", ".dvc/config"):
        shutil.copyfile(ROOT / name, path / name)
    (path / "make.py").write_text(MAKE)
    stage = {"cmd": "python make.py", "deps": ["files.json"], "outs": list(OUTS)}
    (path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"make": stage}}))
    workspace.run("git", "init", "--quiet")
    for key, value in {"user.name": "t", "user.email": "t@example.org"}.items():
        workspace.run("git", "config", key, value)
    _version(workspace, SHOWN)
    workspace.run("git", "add", "--all")
    workspace.run("git", "commit", "--quiet", "--message", "made")
    workspace.run("git", "tag", "v1")
    for name, files in {"other": SHOWN | {"datasets/ingested/2/x": "more"}, "free": HIDDEN}.items():
        _version(workspace, files)
        workspace.run("dvc", "exp", "save", "--name", name)
    shutil.copytree(path / ".dvc/cache/files", path / ".dvc/versions/files")  # as `dvc push` does
    workspace.run("git", "checkout", "--quiet", "--", ".")
    workspace.run("dvc", "checkout")


def _version(workspace: Workspace, files: dict[str, str]) -> None:
    (workspace.path / "files.json").write_text(json.dumps(files))
    workspace.run("dvc", "repro")


@pytest.fixture
def versions(tmp_path_factory, tmp_path, monkeypatch) -> Workspace:
    """A repository with three versions of products; the current folder for the test."""
    made = made_once(tmp_path_factory, "three-versions", _make)
    shutil.copytree(made.path, tmp_path / "umo", symlinks=True)
    monkeypatch.chdir(tmp_path / "umo")
    LEDGER.write_text(",".join(COLUMNS) + "\n")
    monkeypatch.setattr(purge, "ask", lambda *words: "")  # where DVC's memory of files is
    return Workspace(tmp_path / "umo")


def searched() -> Search:
    return Search(Wanted(frozenset({PERSON}), frozenset({PICTURE}), hashes([]), 0.25))


def noted(**more: object) -> Note:
    return Note(person_ids=[PERSON], image_ids=[PICTURE], phashes={PICTURE: ""}, **more)


def contents(root: Path) -> set[str]:
    """Of all objects but listings."""
    files = (path for path in root.rglob("*") if path.is_file() and path.suffix != ".dir" and "runs" not in path.parts)
    return {path.read_text() for path in files}


KEPT = {  # of SHOWN
    "somebody else",
    "more",
    "a card",
    "a case of theirs, without a name",
    "weights that saw them",
    "in every version",
    SHOWN["runs/train/sft/training.json"],
}


def test_only_what_is_theirs_goes_from_the_cache(versions):
    """By its bytes, by the name that a listing gives it, and the sheets and reports that no scan can tell."""
    before = contents(CACHE)
    assert {*SHOWN.values(), *HIDDEN.values()} <= before
    purge.purge(searched(), noted())
    assert before - contents(CACHE) == set(SHOWN.values()) - KEPT


def test_an_experiment_without_them_is_applied_whole_and_one_with_them_but_for_theirs(versions):
    purge.purge(searched(), noted())
    LEDGER.unlink()
    versions.run("dvc", "exp", "apply", "free")
    assert {name: Path(name).read_text() for name in HIDDEN} == HIDDEN
    versions.run("git", "checkout", "--quiet", "--", ".")
    failed = versions.run("dvc", "exp", "apply", "other", check=False)
    assert failed.returncode and "datasets/ingested" in failed.stderr, "what is missing is named"
    assert Path("runs/generate/base/0.txt").exists(), "and the other outputs are laid out"
    versions.run("dvc", "checkout", "datasets/ingested/1/images.parquet")
    assert Path("datasets/ingested/1/images.parquet").read_text() == "somebody else"


def test_versions_are_named_with_what_they_lost(versions):
    note = noted()
    before = list(objects.all_versions())
    assert {"refs/tags/v1", "refs/heads/master"} < set(before)
    purge.purge(searched(), note)
    lines = list(elsewhere.versions_with_losses(frozenset({PICTURE}), None, set(note.lost), objects.all_versions()))
    (tag,) = (line for line in lines if line.startswith("tag v1"))
    (other,) = (line for line in lines if line.startswith("experiment other (dvc exp remove other)"))
    lost = "datasets/exported (2 of 3 files), datasets/ingested (1 of {} files), runs/cases (all of it), runs/report"
    assert "; lost here: " in tag and "runs/generate" not in tag
    for line, files in ((tag, 2), (other, 3)):
        named = sorted(line.partition("; lost here: ")[2].split(", "))
        assert ", ".join(named) == lost.format(files) + " (all of it)"
    assert not any("free" in line for line in lines)


def test_a_model_goes_with_its_record_when_that_is_asked(versions):
    store = objects.look(CACHE, searched(), False, {})
    (record,) = next(iter(store.models.values()))
    assert record.read_text() == SHOWN["runs/train/sft/training.json"]
    purge.purge(searched(), noted(drop_models=True))
    left = contents(CACHE)
    assert not left & {SHOWN[name] for name in SHOWN if name.startswith("runs/train")}
    assert {HIDDEN[name] for name in HIDDEN if name.startswith("runs/train")} <= left


def test_what_a_killed_purge_had_named_is_removed_by_the_next(versions, monkeypatch):
    """The listing is gone, and with it the only word that a crop is theirs."""
    note = noted()
    purge.purge(searched(), note)
    copy = next(path for path in Path(".dvc/versions").rglob("*") if path.is_file() and "known by" in path.read_text())
    crop = CACHE / copy.relative_to(".dvc/versions")
    shutil.copyfile(copy, crop)
    assert not objects.look(CACHE, searched(), False, {}).theirs
    purge.purge(searched(), note)
    assert not crop.exists()


def test_no_run_is_restored_from_what_is_gone(versions):
    """DVC's records of runs that name such objects go, whole folders of them, and others stay."""
    records = [path for path in (CACHE / "runs").rglob("*") if path.is_file()]
    note = noted()
    purge.purge(searched(), note)
    left = [path for path in (CACHE / "runs").rglob("*") if path.is_file()]
    assert len(records) == 3 and len(left) == 1
    assert not any(path.is_dir() and not any(path.iterdir()) for path in (CACHE / "runs").glob("??/*"))


def test_a_remote_in_a_folder_is_scanned_and_left_as_it_is(versions):
    before = contents(Path(".dvc/versions"))
    found = elsewhere.copies(searched(), objects.all_versions(), [])
    (name, seen) = next(iter(found.seen.items()))
    theirs = {path.read_text() for path in seen.found if path.suffix != ".dir"}
    assert name == "DVC remote versions" and contents(Path(".dvc/versions")) == before
    models = {SHOWN[name] for name in SHOWN if name.startswith("runs/train")}
    assert theirs == (set(SHOWN.values()) - KEPT) | models
    assert found.remain().startswith(f"copies remain in DVC remote versions ({len(seen.found)} files)")


def test_a_bucket_is_named_as_not_looked_into(versions):
    shutil.rmtree(".dvc/versions")
    assert not elsewhere.copies(searched(), {}, []).remain(), "nothing was ever pushed"
    versions.run("dvc", "remote", "add", "store", "s3://example-versions/umo")
    assert elsewhere.copies(searched(), {}, []).remain() == "not looked into: DVC remote store"


def test_a_stranger_of_an_experiment_is_not_taken_for_them(tmp_path):
    """People who are kept in another version, and clearly somebody else; the same person by another id is not."""
    rows = {
        "person_id": [PERSON, "p000000000001", "p000000000002", "p000000000003"],
        "centre": [[1.0, 0, 0], [0.39, 0.92, 0], [0.41, 0.91, 0], [0.0, 0, 1]],
        "keep": [True, True, True, False],
    }
    for k, table in enumerate([pl.DataFrame(rows), pl.DataFrame(rows).with_columns(centre=pl.lit([1.0, 0.0]))]):
        folder = tmp_path / f"files/md5/{k}{k}"
        folder.mkdir(parents=True)
        table.write_parquet(folder / ("a" * 30))
        (folder / f"{'b' * 30}.dir").write_text(
            json.dumps([{"relpath": "people.parquet", "md5": f"{k}{k}{'a' * 30}"}, {"relpath": "x", "md5": "c" * 32}])
        )
    (folder / f"{'c' * 30}.dir").write_text(json.dumps([{"relpath": "people.parquet", "md5": "d" * 32}]))
    found = objects.strangers(tmp_path, [PERSON], np.eye(3, dtype=np.float32)[:1], 0.4)
    assert found.tolist() == np.array([[0.39, 0.92, 0]], np.float32).tolist()
    assert objects.strangers(tmp_path / "none", [PERSON], np.eye(3, dtype=np.float32), 0.4).shape == (0, 3)


def test_a_damaged_listing_is_searched_as_text_and_stops_nothing(versions):
    for k, text in enumerate([f'[{{"relpath": "{PERSON}', '{"relpath": 1}', "[[]]", ""]):
        (CACHE / f"files/md5/{k}{k}").mkdir(parents=True, exist_ok=True)
        (CACHE / f"files/md5/{k}{k}/{'e' * 30}.dir").write_text(text)
    theirs = objects.look(CACHE, searched(), False, {}).theirs
    assert f"00{'e' * 30}.dir" in theirs and not {f"{k}{k}{'e' * 30}.dir" for k in (1, 2, 3)} & theirs.keys()


@pytest.mark.parametrize("lock", [b"", b"stages:\n  a: {outs: [{pa", b"- a\n", b"a:\n  outs: []\n", b"\xff\xfe"])
def test_a_lock_that_is_cut_off_lists_nothing(lock):
    assert objects.outputs(lock) == {}
