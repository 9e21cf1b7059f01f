"""The scan: something of the person is planted in every kind of file; what is not theirs is left alone."""

import base64
import hashlib
import io
import pickle
import sqlite3
import tarfile
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from safetensors.numpy import save_file

from pipelines.core.executors import Machine
from pipelines.core.tombstones import hashes
from pipelines.forget import scan, search
from pipelines.forget.scan import Reader, Wanted
from pipelines.forget.search import Search
from tests.pipelines.conftest import photograph_folder
from umo.images import encode_jpeg, encode_png, read_image
from umo.quality import perceptual_hash

PERSON, PICTURE = "p0123456789ab", "ab" * 32


def photograph(number: int, k: int) -> np.ndarray:
    return read_image(photograph_folder() / f"s{number}/{k}.pgm")


@pytest.fixture
def wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wanted:
    """Somebody with two centres; the folder of the test is the current one."""
    monkeypatch.chdir(tmp_path)
    others = Path("others.npy")
    np.save(others, np.eye(8, dtype=np.float32)[1:2])
    centres = np.eye(8, dtype=np.float32)[[0, 7]]
    looks = hashes([perceptual_hash(photograph(1, 1))])
    return Wanted(frozenset({PERSON}), frozenset({PICTURE}), looks, 0.25, centres, others, 0.4)


def kinds(wanted: Wanted, name: str) -> set[str]:
    return set(Search(wanted).files([Path(name)])[Path(name)].kinds)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.json", b'{"people": ["p0123456789ab"]}', {"ids"}),
        ("a.csv", b"sabababababababab,1", {"ids"}),
        ("abababababababab-0.jpg", b"nothing", {"ids"}),
        ("p0123456789ab/0.png", b"nothing", {"ids"}),
        ("a.json", b'{"people": ["p0123456789ac"], "x": "0p0123456789ab"}', set()),
        ("a.csv", b"abababababababac,babababababababa", set()),
        ("a.html", b"", set()),
        ("a.txt", b"BM is no picture: p0123456789ab", {"ids"}),
        ("a.html", b"data:image/png;base64,AAA p0123456789ab", {"ids"}),
        ("a.parquet", b"PAR1 cut off: p0123456789ab", {"ids", "unread"}),
        ("a.tar", b"x" * 257 + b"ustar and no more", {"unread"}),
        ("a.db", b"SQLite format 3\0 and no more", {"unread"}),
    ],
)
def test_text_and_names(wanted, name, content, expected):
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_bytes(content)
    assert kinds(wanted, name) == expected


def test_an_id_over_the_edge_of_a_window(wanted, monkeypatch):
    """A large file is searched piece by piece, and none of the pieces has it whole."""
    monkeypatch.setattr(scan, "AT_ONCE", 64)
    monkeypatch.setattr(scan, "OVERLAP", 32)
    for at in range(40, 70):
        Path("a").write_bytes(b"." * at + b"p0123456789ab" + b"." * 100)
        assert kinds(wanted, "a") == {"ids"}
    Path("a").write_bytes(b"." * 60 + b"p0123456789ac" + b"." * 100)
    assert kinds(wanted, "a") == set()


def test_a_database_and_a_file_of_weights(wanted):
    with sqlite3.connect("a.db") as database:
        database.execute('CREATE TABLE "a ""b" (n INTEGER, text TEXT)')
        database.execute('INSERT INTO "a ""b" VALUES (1, ?)', ("." * 9000 + PERSON + "." * 9000,))
    database.close()
    assert kinds(wanted, "a.db") == {"ids"}
    for name, people in (("theirs", PERSON), ("others", "p0123456789ac")):
        save_file({"a": np.zeros(9, np.float32)}, f"{name}.safetensors", {"people": people})
    assert kinds(wanted, "theirs.safetensors") == {"ids"}
    assert kinds(wanted, "others.safetensors") == set()


def test_pictures_wherever_they_are(wanted):
    theirs = photograph(1, 1)
    padded = np.pad(theirs, [(28, 28), (23, 23), (0, 0)], mode="edge")
    others = encode_jpeg(photograph(2, 1))
    for k, picture in enumerate((encode_jpeg(theirs, 80), encode_png(padded))):
        Path(f"{k}00").write_bytes(picture)  # as in DVC's cache: no suffix
        Path(f"{k}.html").write_bytes(b'<img src="data:image/jpeg;base64,' + base64.b64encode(picture) + b'">')
        pl.DataFrame({"pool": [[[{"bytes": picture}]]]}).write_parquet(f"{k}.parquet")
        with tarfile.open(f"{k}.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
            member = tarfile.TarInfo("x.png")
            member.size = len(picture)
            archive.addfile(member, io.BytesIO(picture))
    Path("others.jpg").write_bytes(others)
    pl.DataFrame({"pool": [[[{"bytes": others}]]]}).write_parquet("others.parquet")
    seen = Search(wanted).walk(Path(), [Path("others.npy"), search.KNOWN.parent.parent])
    assert {path.name for path in seen.found} == {
        f"{k}{kind}" for k in range(2) for kind in ("00", ".html", ".parquet", ".tar")
    }
    assert seen.files == 10 and seen.pictures == 10


def test_the_bytes_of_a_photograph(wanted):
    data = encode_jpeg(photograph(3, 1))
    Path("x").write_bytes(data)
    own = Wanted(frozenset(), frozenset({hashlib.sha256(data).hexdigest()}), hashes([]), 0.25)
    assert kinds(own, "x") == {"bytes"}
    assert kinds(wanted, "x") == set()


@pytest.mark.parametrize("dtype", [pl.Array(pl.Float32, 8), pl.List(pl.Float32), pl.Array(pl.Float64, 8)])
@pytest.mark.parametrize(
    ("vector", "found"),
    [
        ([1, 0, 1, 0], True),
        ([1, 2, 0, 0], False),
        ([0.3, 0, 1, 0], False),
        ([1, 0.9, 0, 0], True),
        ([0, 0.5, 0, 1], True),  # the other centre
    ],
)
def test_embeddings_near_a_centre_and_nearer_to_nobody_else(wanted, vector, found, dtype):
    rows = [[0.0] * 6 + [1.0, 0], [*map(float, vector[:3]), *[0.0] * 4, vector[3]], None]
    table = pl.DataFrame({"embedding": rows}, schema={"embedding": dtype})
    table.write_parquet("faces.parquet")
    table.write_ipc("faces.arrow")
    for name in ("faces.parquet", "faces.arrow"):
        assert kinds(wanted, name) == ({"embeddings"} if found else set())


def test_ids_in_every_kind_of_column(wanted):
    for k, kind in enumerate([pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]):
        for name, text in (("theirs", PERSON), ("others", "p0123456789ac")):
            table = pa.table({"n": [1, 2], "people": pa.array([None, text]).cast(kind)})
            with pa.ipc.new_file(f"{name}-{k}", table.schema) as file:
                file.write_table(table)
        assert kinds(wanted, f"theirs-{k}") == {"ids"} and kinds(wanted, f"others-{k}") == set()


def test_refusals_are_no_find_but_nothing_else_in_their_table_is_passed_over(wanted):
    rows = [{"image_id": PICTURE, "error": "forgotten: it shows somebody"}, {"image_id": "cd" * 32, "error": None}]
    pl.DataFrame(rows).write_parquet("images.parquet")
    pl.DataFrame({"image_id": [PICTURE], "licensed": [True]}).write_parquet("listing.parquet")
    pieces = [Path("images.parquet"), Path("listing.parquet")]
    assert Search(wanted).holding(pieces) == []
    rows.append({"image_id": PICTURE, "error": None})
    pl.DataFrame(rows).write_parquet("images.parquet")
    assert Search(wanted).holding(pieces) == pieces[:1]


class TestSearch:
    """Shards of a scan: each content once, and a killed one goes on."""

    @pytest.fixture
    def files(self, wanted, monkeypatch) -> list[Path]:
        monkeypatch.setattr(search, "SHARD_FILES", 4)
        files = [Path(f"{k:02}.txt") for k in range(24)]
        for k, file in enumerate(files):
            file.write_text(PERSON if k == 5 else f"somebody else {k // 2}")
        return files

    @pytest.fixture
    def read(self, monkeypatch) -> list[str]:
        """Checksums of the contents that were looked into."""
        read: list[str] = []
        content = Reader.content
        monkeypatch.setattr(Reader, "content", lambda self, path, sha: read.append(sha) or content(self, path, sha))
        return read

    def test_a_content_is_read_once_however_many_copies_it_has(self, wanted, files, read):
        assert Search(wanted).holding(files) == [files[5]]
        assert len(read) == len(set(read)) == 13
        Path("copy.txt").write_text(PERSON)
        files[5].write_text("nobody")
        assert Search(wanted).holding([*files, Path("copy.txt")]) == [Path("copy.txt")], "by another process, later"
        assert len(read) == 14

    def test_a_killed_one_goes_on_with_the_shards_that_are_left(self, wanted, files, read, monkeypatch):
        write = search.write_text
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            written: list[Path] = []

            def killed(path: Path, text: str) -> None:
                if len(written) == 2:
                    raise KeyboardInterrupt
                written.append(path)
                write(path, text)

            patch.setattr(search, "write_text", killed)
            Search(wanted).holding(files)
        before = len(read)
        assert Search(wanted).holding(files) == [files[5]]
        assert before == 12 and len(read) - before == 13 - 8

    def test_another_person_is_looked_for_anew(self, wanted, files, read):
        Search(wanted).holding(files)
        other = Wanted(frozenset({"p0123456789ac"}), frozenset(), hashes([]), 0.25)
        assert Search(other).holding(files) == []
        assert len(read) == 26

    def test_several_processes_share_the_shards_though_a_gpu_measures(self, wanted, files, monkeypatch):
        def pickled(title: str, do, jobs: dict, machine: Machine) -> None:
            assert len(jobs) == 4 and (machine.executor, machine.device) == ("process", "cpu")
            for job in jobs.values():
                pickle.loads(pickle.dumps(do))(pickle.loads(pickle.dumps(job)))

        monkeypatch.setattr(search, "do_all", pickled)
        processes = Machine(executor="process", workers=2, device="cuda")
        assert Search(wanted, processes).holding(files) == [files[5]]

    def test_what_goes_while_a_server_is_at_work_stops_nothing(self, wanted, files, monkeypatch):
        listed = [*files, Path("gone.txt")]
        assert Path("gone.txt") not in Search(wanted).files(listed)
