"""Archives, tables and UNO's JSON: what they hold is taken as from a folder, and bad ones cost what is bad in them."""

import gzip
import hashlib
import io
import json
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import textwrap
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
import yaml
from PIL import Image

from pipelines.core import products, store
from pipelines.core.shards import MARKER, ROOT
from pipelines.ingest import stage as ingest
from pipelines.ingest.readers.base import Found
from pipelines.ingest.stage import packed
from umo.errors import BadInput
from umo.images import read_image

TERMS = {"licence": "CC0", "consent": "given"}


@pytest.fixture(scope="session")
def photos(orl) -> list[bytes]:
    """Eight photographs as strangers keep them: JPEG and PNG."""
    found = []
    for k in range(8):
        buffer = io.BytesIO()
        Image.fromarray(orl(1 + k // 4, 1 + k % 4)).save(buffer, "PNG" if k == 7 else "JPEG", quality=90)
        found.append(buffer.getvalue())
    return found


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def by_path(rows: list[dict]) -> dict[str, dict]:
    assert len({row["path"] for row in rows}) == len(rows)
    return {row["path"]: row for row in rows}


def write_tar(path: Path, members: dict[str, bytes], **options: object) -> Path:
    with tarfile.open(path, "w", **options) as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_a_webdataset_archive(ingested, photos):
    """Terms, album and label from each sample's .json; what the .json leaves out, from the source."""
    notes = [
        {"rights": "CC BY 4.0", "event": "wedding", "who": 1, "asked": "Given"},
        {"event": "", "asked": "surely"},
        {"rights": "CC0", "asked": "drawn"},
        None,
    ]
    with webdataset.TarWriter(str(ingested.folder / "a.tar")) as writer:
        for k, note in enumerate(notes):
            sample = {"__key__": f"party/{k:04d}", "left.jpg": photos[2 * k], "txt": "a caption"}
            sample["right.png" if k == 3 else "right.jpg"] = photos[2 * k + 1]
            writer.write(sample | ({"json": note} if note else {}))
    columns = {"licence_column": "rights", "group_column": "event", "label_column": "who", "consent_column": "asked"}
    rows = by_path(ingested({"shoot": {"path": "a.tar", **columns, "consent": "research", "licence": "mine"}}))
    assert [row["status"] for row in rows.values()] == ["ok"] * 8
    for k in range(4):
        for side, data in (("left.jpg", photos[2 * k]), ("right.png" if k == 3 else "right.jpg", photos[2 * k + 1])):
            row = rows[f"a.tar/party/{k:04d}.{side}"]
            assert row["image_id"] == sha256(data)
            assert row["licence"] == ("CC BY 4.0", "mine", "CC0", "mine")[k]
            assert row["group"] == ("shoot/wedding" if k == 0 else "shoot/a.tar/party")
            assert row["label"] == ("shoot/1" if k == 0 else None)
            assert row["consent"] == ("given", "unknown", "unknown", "research")[k]
            original, stored = read_image(data), ingested.picture(row)
            assert (row["height"], row["width"]) == original.shape[:2]
            assert row["key"].endswith("png" if k == 3 and side == "right.png" else "jpg")
            assert np.abs(stored.astype(float) - original).mean() < (1e-9 if row["key"].endswith("png") else 2)


def test_rows_without_a_licence_are_refused_one_by_one(ingested, photos):
    members = {"a.jpg": photos[0], "a.json": b'{"rights": "CC0"}', "b.jpg": photos[1], "b.json": b'{"rights": null}'}
    members |= {"c.jpg": photos[2], "c.json": b'{"rights": ', "d.jpg": photos[3]}
    write_tar(ingested.folder / "a.tar", members)
    sources = {"shoot": {"path": "a.tar", "licence_column": "rights"}}
    rows = by_path(ingested(sources))
    assert {path: row["status"] for path, row in rows.items()} == {
        "a.tar/a.jpg": "ok",
        "a.tar/b.jpg": "error",
        "a.tar/c.jpg": "error",
        "a.tar/d.jpg": "error",
    }
    assert rows["a.tar/b.jpg"]["error"].startswith("no licence: state it for 'shoot'")
    assert "a.tar/c.json is no JSON object" in rows["a.tar/c.jpg"]["error"]
    rows = by_path(ingested(sources, allow_missing_licence=True))
    assert [path for path, row in rows.items() if row["status"] == "error"] == ["a.tar/c.jpg"]


def table_of(kind: str, photos: list[bytes], folder: Path) -> tuple[str, dict]:
    """The photographs in a table of some make; where it is and what its source says."""
    import datasets

    rights = ["CC0", "CC BY 4.0", None, "CC0"] * 2
    if kind == "binary":
        pq.write_table(pa.table({"photo": photos, "rights": rights, "n": range(8)}), folder / "t.parquet")
        return "t.parquet", {"image_column": "photo"}
    if kind == "struct":
        pictures = [{"bytes": data, "path": f"{k}.jpg"} for k, data in enumerate(photos)]
        pq.write_table(pa.table({"image": pictures, "rights": rights}), folder / "t.parquet", row_group_size=3)
        return "t.parquet", {}
    pictures = [{"bytes": data, "path": None} for data in photos]
    found = datasets.Dataset.from_dict({"image": pictures, "rights": rights}).cast_column("image", datasets.Image())
    if kind == "hugging face parquet":
        found.to_parquet(folder / "t.parquet")
        return "t.parquet", {}
    if kind == "hugging face splits":
        datasets.DatasetDict({"all": found}).save_to_disk(folder / "hf")
    else:
        found.save_to_disk(folder / "hf", num_shards=2)
        (folder / "hf/cache-1.arrow").write_bytes(b"left by map")
    return "hf", {}


@pytest.mark.parametrize("kind", ["binary", "struct", "hugging face parquet", "hugging face", "hugging face splits"])
def test_a_table(kind, ingested, photos):
    path, more = table_of(kind, photos, ingested.folder)
    rows = ingested({"web": {"path": path, "licence_column": "rights", "consent": "public", **more}})
    assert len(rows) == 8
    assert {row["image_id"] for row in rows} == {sha256(data) for data in photos}
    for row in rows:
        k = [sha256(data) for data in photos].index(row["image_id"])
        file, _, rank = row["path"].partition("#")
        assert int(rank) == (k % 4 if kind == "hugging face" else k)
        assert row["group"] == f"web/{file}"
        if k % 4 == 2:
            assert row["error"].startswith("no licence")
        else:
            assert (row["status"], row["licence"]) == ("ok", "CC BY 4.0" if k % 4 == 1 else "CC0")
            assert np.abs(ingested.picture(row).astype(float) - read_image(photos[k])).mean() < 2


def test_unos_json(ingested, photos):
    pictures = ingested.folder / "uno/images"
    pictures.mkdir(parents=True)
    for k, data in enumerate(photos[:4]):
        (pictures / f"{k}.jpg").write_bytes(data)
    (ingested.folder / "private.jpg").write_bytes(photos[5])
    (pictures / "link.jpg").symlink_to(ingested.folder / "private.jpg")
    entries = [
        {"prompt": "two people", "image_paths": ["images/0.jpg", "images/1.jpg"], "image_tgt_path": "images/2.jpg"},
        {"prompt": "again", "image_paths": ["images/0.jpg"], "image_tgt_path": "images/3.jpg"},
        {"prompt": "gone", "image_paths": ["images/gone.jpg"], "image_tgt_path": "../private.jpg"},
        {"prompt": "out", "image_paths": [str(ingested.folder / "private.jpg")], "image_tgt_path": "images/link.jpg"},
        {"prompt": "no target", "image_paths": ["images/1.jpg"]},
        ["no entry"],
    ]
    (ingested.folder / "uno/train.json").write_text(json.dumps(entries))
    rows = by_path(ingested({"uno": {"path": "uno/train.json", **TERMS}}))
    good = {path: row for path, row in rows.items() if row["status"] == "ok"}
    assert {path: row["image_id"] for path, row in good.items()} == {
        f"images/{k}.jpg": sha256(photos[k]) for k in range(4)
    }
    assert {row["group"] for row in good.values()} == {"uno/images"}
    bad = {path: row["error"] for path, row in rows.items() if row["status"] == "error"}
    assert bad.pop("images/gone.jpg").startswith("cannot be read (No such file or directory)")
    for path in ("../private.jpg", str(ingested.folder / "private.jpg"), "images/link.jpg"):
        assert bad.pop(path).startswith("leads out of the JSON's folder")
    assert set(bad) == {"train.json#4", "train.json#5"}
    assert all(error.startswith("no list image_paths and no image_tgt_path") for error in bad.values())


def hostile(folder: Path, photos: list[bytes]) -> Path:
    """A tar whose good members lie between bad ones."""
    path = folder / "a.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:

        def add(name: str, data: bytes = b"", **fields: object) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for key, value in fields.items():
                setattr(member, key, value)
            archive.addfile(member, io.BytesIO(data))

        add("first.jpg", photos[0])
        add("../up.jpg", photos[1])
        add("in/../../up.jpg", photos[1])
        add("/tmp/absolute.jpg", photos[2])
        add("symbolic.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add("hard.jpg", type=tarfile.LNKTYPE, linkname="first.jpg")
        add("device.jpg", type=tarfile.CHRTYPE, devmajor=1, devminor=5)
        add("pipe.jpg", type=tarfile.FIFOTYPE)
        add("folder.jpg", type=tarfile.DIRTYPE)
        add("large.jpg", photos[3] + bytes(300_000))
        add("line\nbreak\udcff.jpg", photos[4])
        add("notes.txt", b"passed over")
        add("last.jpg", photos[5])
    return path


def test_what_a_hostile_archive_holds_is_named_and_nothing_is_unpacked(ingested, photos, capsys):
    hostile(ingested.folder, photos)
    rows = by_path(ingested({"web": {"path": "a.tar", **TERMS}}, max_bytes=200_000))
    reasons = {path.removeprefix("a.tar/"): row["error"] for path, row in rows.items()}
    good = {"first.jpg", "line\\nbreak\\udcff.jpg", "last.jpg"}
    assert {path for path, reason in reasons.items() if reason is None} == good
    for path in ("../up.jpg", "in/../../up.jpg", "/tmp/absolute.jpg"):
        assert reasons.pop(path).startswith("a name that leads out of the archive")
    assert reasons.pop("symbolic.jpg").startswith("a link to /etc/passwd, which is no picture in the archive")
    assert reasons.pop("hard.jpg").startswith("the same bytes as web/a.tar/first.jpg")
    for path in ("device.jpg", "pipe.jpg"):
        assert reasons.pop(path).startswith("a device, a pipe")
    assert "bytes is over the limit of 200000" in reasons.pop("large.jpg")
    assert set(reasons) == good
    written = {path.name for path in ingested.folder.iterdir()}
    assert written == {"a.tar", "datasets", ".work"}
    assert not Path("/tmp/absolute.jpg").exists()
    assert all(line.startswith("ingest: ") for line in capsys.readouterr().out.splitlines())


def cut_in_a_member(data: bytes, ends: list[int]) -> bytes:
    return data[: ends[2] - 700]


def cut_in_a_header(data: bytes, ends: list[int]) -> bytes:
    return data[: ends[1] + 100]


def cut_between_members(data: bytes, ends: list[int]) -> bytes:
    return data[: ends[1]]


def spoilt_header(data: bytes, ends: list[int]) -> bytes:
    return data[: ends[1] + 20] + b"\xff" * 100 + data[ends[1] + 120 :]


def header(name: bytes, size: bytes, kind: bytes) -> bytes:
    """A tar's header block, with a valid checksum."""
    block = bytearray(tarfile.BLOCKSIZE)
    block[: len(name)] = name
    block[100:108] = block[108:116] = block[116:124] = b"0000644\0"
    block[124:136] = size
    block[136:148] = b"00000000000\0"
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def exabytes(data: bytes, ends: list[int]) -> bytes:
    """A member that promises more than there is on earth: skipping it must end."""
    return data[: ends[1]] + header(b"big.bin", b"\x80" + struct.pack(">3xQ", 1 << 62), b"0") + bytes(2048)


def less_than_nothing(data: bytes, ends: list[int]) -> bytes:
    return data[: ends[1]] + header(b"back.bin", b"\xff" * 4 + struct.pack(">q", -1024), b"0") + bytes(2048)


def long_header(data: bytes, ends: list[int]) -> bytes:
    """An extended header, which tarfile reads whole into memory."""
    record = b"2097152 comment="
    record += b"x" * (2097151 - len(record)) + b"\n"
    return data[: ends[1]] + header(b"x", b"%011o\0" % len(record), b"x") + record + data[ends[1] :]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut_in_a_member, "unexpected end of data"),
        (cut_in_a_header, "unexpected end of data"),
        (cut_between_members, "unexpected end of data"),
        (spoilt_header, "damaged header: bad checksum"),
        (exabytes, "unexpected end of data"),
        (less_than_nothing, "damaged header: its size"),
        (long_header, "damaged header: its size"),
    ],
)
def test_a_damaged_archive_keeps_what_comes_before(damage, reason, ingested, photos):
    path = write_tar(ingested.folder / "a.tar", {f"{k}.jpg": photos[k] for k in range(4)})
    with tarfile.open(path) as archive:
        ends = [info.offset_data + -(-info.size // 512) * 512 for info in archive]
    path.write_bytes(damage(path.read_bytes(), ends))
    write_tar(ingested.folder / "b.tar", {"other.jpg": photos[5]})
    sources = {"a": {"path": "a.tar", **TERMS}, "b": {"path": "b.tar", **TERMS}}
    rows = by_path(ingested(sources))
    good = {"a.tar/0.jpg", "a.tar/1.jpg", "b.tar/other.jpg"}
    assert {path for path, row in rows.items() if row["status"] == "ok"} == good
    assert set(rows) - good == {"a.tar"}
    assert rows["a.tar"]["error"].startswith("cut short or damaged after")
    assert reason in rows["a.tar"]["error"]


def test_a_packed_archive_and_a_bomb(ingested, photos):
    with gzip.open(ingested.folder / "good.tar.gz", "wb") as file:
        file.write(write_tar(ingested.folder / "plain.tar", {"a.jpg": photos[0]}).read_bytes())
    with (
        gzip.open(ingested.folder / "bomb.tar.gz", "wb", compresslevel=1) as file,
        tarfile.open(fileobj=file, mode="w") as archive,
    ):
        for name, data in (("b.jpg", photos[1]), ("zeros.bin", bytes(80 << 20)), ("c.jpg", photos[2])):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    rows = by_path(ingested({"web": {"path": ".", "kind": "archive", "include": "*.gz", **TERMS}}))
    assert {path: row["status"] for path, row in rows.items()} == {
        "good.tar.gz/a.jpg": "ok",
        "bomb.tar.gz/b.jpg": "ok",
        "bomb.tar.gz": "error",
    }
    assert "unpacks to more than 100 times its size" in rows["bomb.tar.gz"]["error"]


def test_a_container_with_too_many_members_or_with_none(ingested, photos):
    write_tar(ingested.folder / "many.tar", {f"{k}.jpg": photos[k] for k in range(4)})
    write_tar(ingested.folder / "none.tar", {"notes.txt": b"nothing"})
    (ingested.folder / "junk.tar").write_bytes(b"no archive " * 1000)
    (ingested.folder / "empty.tar").write_bytes(b"")
    rows = by_path(ingested({"web": {"path": ".", "kind": "archive", **TERMS}}, max_members=3))
    assert sum(row["status"] == "ok" for row in rows.values()) == 3
    assert rows["many.tar"]["error"].startswith("holds more than 3 pictures")
    assert rows["none.tar"]["error"].startswith("holds no picture")
    for path in ("junk.tar", "empty.tar"):
        assert rows[path]["error"].startswith("cut short or damaged after 0 members")


def test_bad_rows_of_a_table(ingested, photos):
    pictures = [
        {"bytes": photos[0], "path": None},
        {"bytes": None, "path": "https://example.org/a.jpg"},
        None,
        {"bytes": b"", "path": None},
        {"bytes": photos[1][: len(photos[1]) // 3], "path": None},
        {"bytes": photos[2] + bytes(300_000), "path": None},
        {"bytes": photos[3], "path": "../../x.jpg"},
    ]
    pq.write_table(pa.table({"image": pictures}), ingested.folder / "t.parquet")
    rows = by_path(ingested({"web": {"path": "t.parquet", **TERMS}}, max_bytes=200_000))
    reasons = [rows[f"t.parquet#{k}"]["error"] for k in range(7)]
    assert reasons[0] is None
    assert reasons[6] is None
    expected = ["a path and no bytes", "no picture in the row", "empty file", "truncated or corrupt", "over the limit"]
    for reason, part in zip(reasons[1:6], expected, strict=True):
        assert part in reason


def test_a_damaged_table_keeps_the_other_rows(ingested, photos):
    path = ingested.folder / "t.parquet"
    pq.write_table(pa.table({"image": photos[:6]}), path, row_group_size=2, compression="zstd", use_dictionary=False)
    data = bytearray(path.read_bytes())
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    for k in range(column.data_page_offset, column.data_page_offset + 200):
        data[k] ^= 0xFF
    path.write_bytes(data)
    (ingested.folder / "cut.parquet").write_bytes(data[: len(data) // 2])
    rows = by_path(ingested({"web": {"path": ".", "kind": "table", **TERMS}}))
    assert {path: row["status"] for path, row in rows.items()} == {
        "t.parquet#0": "ok",
        "t.parquet#1": "ok",
        "t.parquet": "error",
        "t.parquet#4": "ok",
        "t.parquet#5": "ok",
        "cut.parquet": "error",
    }
    assert "cut short or damaged from row 2 on" in rows["t.parquet"]["error"]
    assert "cut short or damaged from row 0 on" in rows["cut.parquet"]["error"]


def test_text_that_is_none_costs_its_row(ingested, photos):
    """A lone surrogate in a .json, bytes that are not UTF-8 in a column."""
    note = b'{"event": "wed\\ud800\\nding"}'
    write_tar(ingested.folder / "a.tar", {"1.jpg": photos[0], "1.json": note, "2.jpg": photos[1]})
    texts = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff\xfe", b"CC0"], pa.binary()).buffers())
    pq.write_table(pa.table({"image": photos[2:4], "rights": texts}), ingested.folder / "t.parquet")
    sources = {
        "shoot": {"path": "a.tar", "group_column": "event", **TERMS},
        "web": {"path": "t.parquet", "licence_column": "rights"},
    }
    rows = by_path(ingested(sources))
    assert rows["a.tar/1.jpg"]["group"] == "shoot/wed\\ud800\\nding"
    assert {path: row["status"] for path, row in rows.items()} == {
        "a.tar/1.jpg": "ok",
        "a.tar/2.jpg": "ok",
        "t.parquet#0": "error",
        "t.parquet#1": "ok",
    }
    assert "its text is not UTF-8" in rows["t.parquet#0"]["error"]


def test_an_arrow_file_whose_offsets_lead_out_of_it_is_not_followed(ingested, photos):
    path = ingested.folder / "t.arrow"
    table = pa.record_batch({"image": pa.array(photos[:2], pa.binary())})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_batch(table)
    ends = np.cumsum([0, *map(len, photos[:2])]).astype(np.int32)
    data = path.read_bytes()
    assert data.count(ends.tobytes()) == 1
    beyond = ends + np.array([0, 0, 50], np.int32)
    path.write_bytes(data.replace(ends.tobytes(), beyond.tobytes()))
    (row,) = ingested({"web": {"path": "t.arrow", **TERMS}})
    assert row["status"] == "error" and "cut short or damaged from row 0 on" in row["error"]


@pytest.mark.parametrize(
    ("source", "line"),
    [
        (
            {"path": "t.parquet"},
            "t.parquet has no column 'image' (it has: photo, n); name the right one as image_column",
        ),
        ({"path": "t.parquet", "image_column": "n"}, "column 'n' is int64, not encoded pictures"),
        (
            {"path": "t.parquet", "image_column": "photo", "licence_column": "terms"},
            "no column 'terms' (it has: photo, n); name the right one as licence_column",
        ),
        ({"path": "gone.tar"}, "there is no gone.tar of kind 'archive'; correct its path"),
        ({"path": "photos", "kind": "video"}, "no video in photos fits '**/*' (.3gp, .avi, "),
        ({"path": "photos", "licence_column": "rights"}, "licence_column mean nothing for kind 'folder'; remove them"),
        ({"path": "photos", "kind": "film"}, "'kind': Input should be 'folder', 'archive', 'table', 'uno' or 'video'"),
        ({"path": "broken.json"}, "broken.json is not readable JSON"),
        ({"path": "object.json"}, "object.json is not a list of entries with image_paths, image_tgt_path"),
    ],
)
def test_a_source_that_does_not_fit_is_one_line(source, line, ingested, photos):
    pq.write_table(pa.table({"photo": photos, "n": range(8)}), ingested.folder / "t.parquet")
    (ingested.folder / "photos").mkdir()
    (ingested.folder / "broken.json").write_text('[{"image_paths": [')
    (ingested.folder / "object.json").write_text('{"image_paths": []}')
    with pytest.raises(BadInput) as caught:
        ingested({"web": source | TERMS})
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (ingested.folder / "datasets/ingested").exists()


def test_without_the_photographs_it_says_how_to_go_on_from_what_was_pulled(ingested, photos):
    mine = ingested.folder / "datasets/photos/mine"
    mine.mkdir(parents=True)
    (mine / "1.jpg").write_bytes(photos[0])
    assert len(ingested({"mine": {"path": "datasets/photos/mine"} | TERMS})) == 1
    before = ingested.files()
    (mine / "1.jpg").rename(ingested.folder / "1.jpg")
    mine.rmdir()
    with pytest.raises(BadInput, match=r"^[^\n]*dvc repro --allow-missing --downstream train@mimr[^\n]*$"):
        ingested({"mine": {"path": "datasets/photos/mine"} | TERMS})
    assert ingested.files() == before


@pytest.fixture
def overlapping(ingested, photos) -> dict[str, dict]:
    """Sources that share pictures: 0 is in all of them, 1 in two, 2 twice in one."""
    folder = ingested.folder / "photos"
    folder.mkdir()
    for name, k in {"x.jpg": 0, "y.jpg": 3}.items():
        (folder / name).write_bytes(photos[k])
    write_tar(ingested.folder / "a.tar", {"p.jpg": photos[0], "q.jpg": photos[1], "r.jpg": photos[4]})
    pq.write_table(pa.table({"image": [photos[2], photos[0], photos[1], photos[2]]}), ingested.folder / "t.parquet")
    return {
        "tars": {"path": "a.tar", **TERMS},
        "album": {"path": "photos", "group": "source", **TERMS},
        "tables": {"path": "t.parquet", **TERMS},
    }


def test_of_pictures_in_several_sources_one_copy_is_kept(ingested, photos, overlapping):
    rows = by_path(ingested(overlapping))
    kept = {row["image_id"]: path for path, row in rows.items() if row["status"] == "ok"}
    expected = ["x.jpg", "t.parquet#2", "t.parquet#0", "y.jpg", "a.tar/r.jpg"]
    assert kept == {sha256(photos[k]): path for k, path in enumerate(expected)}
    copies = {path: row["error"] for path, row in rows.items() if row["status"] == "duplicate"}
    assert {path: error.split(";")[0] for path, error in copies.items()} == {
        "a.tar/p.jpg": "the same bytes as album/x.jpg",
        "t.parquet#1": "the same bytes as album/x.jpg",
        "a.tar/q.jpg": "the same bytes as tables/t.parquet#2",
        "t.parquet#3": "the same bytes as tables/t.parquet#0",
    }
    before = ingested.files()
    ingested(dict(reversed(overlapping.items())))
    assert ingested.files() == before, "the order of sources.yaml must not matter"


def test_a_copy_that_may_not_be_used_is_not_the_one_that_is_kept(ingested, overlapping):
    ingested(overlapping)
    del overlapping["album"]["licence"]
    rows = by_path(ingested(overlapping))
    assert rows["x.jpg"]["error"].startswith("no licence")
    assert rows["t.parquet#1"]["status"] == "ok"
    assert rows["a.tar/p.jpg"]["error"].startswith("the same bytes as tables/t.parquet#1")


def test_a_new_archive_is_the_only_work(ingested, photos, overlapping):
    ingested(overlapping)
    before = ingested.work()
    write_tar(ingested.folder / "b.tar", {"s.jpg": photos[5]})
    ingested(overlapping | {"more": {"path": "b.tar", **TERMS}})
    assert len(ingested.work() - before) == 2, "its list and its pictures"
    before = ingested.work()
    (ingested.folder / "photos/new.jpg").write_bytes(photos[6])
    ingested(overlapping | {"more": {"path": "b.tar", **TERMS}})
    assert len(ingested.work() - before) == 1


def test_files_stay_in_their_shards_and_new_ones_fill_the_last_and_then_new_ones():
    def files(*names: str) -> list[Found]:
        return [Found(name, "album", f"{name}{copy}.jpg", Path("x")) for name in names for copy in (1, 2)]

    def ids(shards: dict[str, list[Found]]) -> dict[str, str]:
        assert all(len(of) == 2 * len({one.image_id for one in of}) for of in shards.values()), "copies lie together"
        return {shard: "".join(sorted({one.image_id for one in of})) for shard, of in shards.items()}

    first = ids(packed(files(*"caebdfg"), 4, {}))
    assert first == {"0000": "abcd", "0001": "efg"}
    known = {image_id: shard for shard, of in first.items() for image_id in of}
    assert ids(packed(files(*"abcdefgA"), 4, known)) == first | {"0002": "A"}, "0001 is more than half full"
    fewer = known | {"A": "0002"}
    assert ids(packed(files(*"abcdgABCDEF"), 4, fewer)) == {"0000": "abcd", "0001": "g", "0002": "ABCD", "0003": "EF"}
    many = {f"{k:05d}": f"{k // 2:04d}" for k in range(20_004)}
    assert max(packed(files(*many, "x", "y"), 2, many), key=int) == "10002", "numbers outgrow their digits"


def test_new_files_are_all_that_is_decoded(ingested, photos, monkeypatch):
    """In the shard that they fill up, too; and a table that cannot be read costs its pictures their place, not more."""
    album = {"album": {"path": "photos", **TERMS}}
    folder = ingested.folder / "photos"
    folder.mkdir()
    decoded: list[int] = []
    read = ingest.read_image
    monkeypatch.setattr(ingest, "read_image", lambda *arguments: decoded.append(1) or read(*arguments))
    for k in range(5):
        (folder / f"{k}.jpg").write_bytes(photos[k])
    ingested(album, shard_size=4)
    assert len(decoded) == 5
    decoded.clear()
    for k in range(5, 8):
        (folder / f"{k}.jpg").write_bytes(photos[k])
    (folder / "0.jpg").unlink()
    rows = ingested(album, shard_size=4)
    assert len(decoded) == 3
    assert {row["path"] for row in rows if row["status"] == "ok"} == {f"{k}.jpg" for k in range(1, 8)}
    assert {row["path"]: sha256(row_bytes(row)) for row in rows} == {row["path"]: row["sha256"] for row in rows}
    grown = ingested.files()
    subprocess.run(["rm", "-rf", ".work"], check=True)
    ingested(album, shard_size=4)
    assert ingested.files() == grown, "the manifest is the product itself"
    table = sorted(products.INGESTED.glob("*/images.parquet"))[-1]
    table.unlink()
    table.write_bytes(b"cut short")
    again = ingested(album, shard_size=4)
    assert [row["sha256"] for row in again] == [row["sha256"] for row in rows]


def test_where_forget_took_the_product_the_shards_of_others_stay_as_they_are(ingested, photos):
    """Which had grown: packed anew, all would lie in other shards, and all be decoded and measured again."""
    album = {"album": {"path": "photos", **TERMS}}
    (ingested.folder / "photos").mkdir()
    for some in ((7, 3), (1, 5), (0, 6)):
        for k in some:
            (ingested.folder / f"photos/{k}.jpg").write_bytes(photos[k])
        rows = ingested(album, shard_size=2)
    before, work = ingested.files(), ingested.work()
    gone = by_path(rows)["1.jpg"]["shard"]
    for marker in Path(".work/ingest").glob(f"*/{MARKER}"):
        if json.loads(marker.read_text())["shard"] == gone:
            shutil.rmtree(marker.parent)
    shutil.rmtree(products.INGESTED)
    ingested(album, shard_size=2)
    others = {name: data for name, data in before.items() if not name.startswith(f"{gone}/")}
    assert len(others) > 3 and others.items() <= ingested.files().items()
    assert len(ingested.work() - work) == 1


def row_bytes(row: dict) -> bytes:
    return store.Pictures(products.INGESTED).bytes(row)


def test_forgotten_pictures_do_not_come_back(ingested, photos, overlapping):
    """By content and, re-encoded, by look; only the shards that an exact tombstone hits are done again."""
    from umo.quality import perceptual_hash

    overlapping["tars"]["label"] = "folder"
    assert {row["label"] for row in ingested(overlapping)} == {"tars/a.tar", None}
    before = ingested.work()
    tombstones = ingested.folder / "datasets/tombstones.csv"
    tombstones.write_text(
        f"image_id,phash,embedder,embedding\n{sha256(photos[4])},{perceptual_hash(read_image(photos[4]))},,\n"
    )
    rows = by_path(ingested(overlapping))
    assert rows["a.tar/r.jpg"]["error"].startswith("forgotten: ")
    assert (rows["a.tar/r.jpg"]["status"], rows["a.tar/r.jpg"]["key"]) == ("error", None)
    assert rows["a.tar/r.jpg"]["label"] is None
    assert rows["x.jpg"]["status"] == rows["t.parquet#0"]["status"] == "ok"
    assert len(ingested.work() - before) == 1
    buffer = io.BytesIO()
    Image.open(io.BytesIO(photos[4])).resize((400, 500)).save(buffer, "JPEG", quality=80)
    (ingested.folder / "photos/near.jpg").write_bytes(buffer.getvalue())
    rows = by_path(ingested(overlapping))
    assert rows["near.jpg"]["error"].startswith("forgotten: ")
    assert rows["y.jpg"]["status"] == "ok"


@pytest.mark.parametrize("call", [2, 5])
def test_killed_and_started_again_it_ends_in_the_same_bytes(call, ingested, overlapping):
    """SIGKILL as the picture of that rank is written; after the last, two processes finish the work."""
    ingested(overlapping, shard_size=2)
    expected = ingested.files()
    subprocess.run(["rm", "-rf", ".work", "datasets/ingested"], check=True)
    script = textwrap.dedent(
        f"""
        import os, signal, sys
        import yaml
        from pipelines.core import store
        from pipelines.ingest import stage as ingest
        from pipelines.core.shards import Machine
        real, count = store.Writer.add, [0]

        def add(self, name, data):
            count[0] += 1
            if count[0] == int(sys.argv[1]): os.kill(os.getpid(), signal.SIGKILL)
            real(self, name, data)

        if __name__ == "__main__":
            store.Writer.add = add
            params = yaml.safe_load(open({str(ROOT / "params.yaml")!r}))["ingest"] | {{"shard_size": 2}}
            ingest.run(ingest.Params(**params), Machine(executor=sys.argv[2], workers=2))
        """
    )
    (ingested.folder / "go.py").write_text(script)
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}

    def go(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "go.py", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    killed = go(str(call), "serial")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (ingested.folder / "datasets/ingested").exists()
    again = go("0", "process" if call == 5 else "serial")
    assert again.returncode == 0, again.stderr
    assert ingested.files() == expected


def test_the_shipped_sources_are_valid():
    from pipelines.core.sources import Source

    entries = yaml.safe_load((ROOT / "datasets/sources.yaml").read_text())
    assert all(Source(**entry).locate(name)[0] == "folder" for name, entry in entries.items())
