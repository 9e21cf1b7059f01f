"""What lies in a source and where: each thing is read, has a row with the reason, or is counted."""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import socket
import struct
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.core.sources import Source
from pipelines.ingest import readers
from pipelines.ingest.readers import forms
from pipelines.ingest.readers.base import Container, Limits, image_id
from umo.errors import BadInput

LIMITS = Limits(max_bytes=1 << 20, max_members=100, max_pixels=10**6, max_side=1024)
APPLE_DOUBLE = bytes.fromhex("00051607 00020000") + b"Mac OS X        " + bytes(140)


def picture(k: int, form: str = "JPEG") -> bytes:
    """A small picture, another one for each k."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(k).integers(0, 255, (20, 24, 3), np.uint8)
    Image.fromarray(noise).save(buffer, form)
    return buffer.getvalue()


def look(root: Path, limits: Limits = LIMITS, **terms: object) -> tuple[dict[str, str], Counter[str]]:
    """By path, the digest of each picture or why there is none; and what is counted as not read."""
    source = Source(path=root, **{"licence": "CC0", **terms})
    kind, _ = source.locate("s")
    held = readers.find("s", source, kind, root)
    found = [(one.path, one.error or one.image_id) for one in held.files]
    others = Counter(held.others)
    for container in held.containers:
        for rank, member in enumerate(readers.members(container, source, limits, others=others)):
            licence = source.licence_of(member.fields)
            assert licence or member.error, "no licence"
            found.append((member.path, member.error or image_id(container, rank, member)))
    assert len(dict(found)) == len(found)
    return dict(found), others


def sha(k: int, form: str = "JPEG") -> str:
    return hashlib.sha256(picture(k, form)).hexdigest()


def tar(members: dict[str, bytes], **options: object) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def packed(codec: str, data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


PACKINGS = {
    "tar": bytes,
    "tar.gz": gzip.compress,
    "tar.bz2": bz2.compress,
    "tar.xz": lzma.compress,
    "tar.zst": lambda data: packed("zstd", data),
    "tar.lz4": lambda data: packed("lz4", data),
}


def test_linked_folders_and_files_are_read_and_loops_end(tmp_path, monkeypatch):
    root, nas = tmp_path / "album", tmp_path / "nas"
    for folder in (root / "own", nas / "deep"):
        folder.mkdir(parents=True)
    for k, path in enumerate([root / "own/a.jpg", nas / "b.jpg", nas / "deep/c.jpg", tmp_path / "d.jpg"]):
        path.write_bytes(picture(k))
    links = {"linked": nas, "twice": nas / "deep", "d.jpg": tmp_path / "d.jpg", "own/up": root, "gone.jpg": nas / "no"}
    for link, target in {**links, "a_own": root / "own", "self.jpg": "self.jpg"}.items():
        (root / link).symlink_to(target)
    (nas / "back").symlink_to(root)
    os.mkfifo(root / "pipe.jpg")
    (root / "zero.jpg").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(root)  # a socket's address is short
        listener.bind("socket.png")
    found, others = look(root)
    assert not others
    pictures = {"own/a.jpg": sha(0), "linked/b.jpg": sha(1), "linked/deep/c.jpg": sha(2), "d.jpg": sha(3)}
    reasons = {
        "twice": "the same folder as linked/deep, ",
        "own/up": "the same folder as ., ",
        "linked/back": "the same folder as ., ",
        "a_own": "the same folder as own, ",
        "gone.jpg": f"a link to {nas}/no, which is not there",
        "self.jpg": "cannot be read (Too many levels of symbolic links)",
        "pipe.jpg": "a pipe, a socket or a device",
        "zero.jpg": "a pipe, a socket or a device",
        "socket.png": "a pipe, a socket or a device",
    }
    assert {path: said for path, said in found.items() if path in pictures} == pictures
    assert found.keys() == pictures.keys() | reasons.keys()
    for path, reason in reasons.items():
        assert found[path].startswith(reason), found[path]


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "shut").mkdir()
    (tmp_path / "a.jpg").write_bytes(picture(0))
    scandir = os.scandir

    def refuse(path: Path):
        if path.name == shut:
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    shut = "shut"
    found, _ = look(tmp_path)
    assert found == {"a.jpg": sha(0), "shut": "cannot be read (Permission denied): check its permissions"}
    shut = tmp_path.name
    with pytest.raises(BadInput, match=r"source 's': .* cannot be read \(Permission denied\)"):
        look(tmp_path)


@pytest.mark.parametrize(
    ("include", "expected"),
    [
        ("**/*", {"x.jpg", "a/y.jpg", "a/b/z.jpg"}),
        ("*", {"x.jpg"}),
        ("a/*.jpg", {"a/y.jpg"}),
        ("**/b/*", {"a/b/z.jpg"}),
        ("[ab]/**/*.jpg", {"a/y.jpg", "a/b/z.jpg"}),
    ],
)
def test_include_is_a_glob(include, expected, tmp_path):
    """As pathlib's, whose own does not follow links."""
    (tmp_path / "a/b").mkdir(parents=True)
    for k, path in enumerate(["x.jpg", "a/y.jpg", "a/b/z.jpg", "a/b/notes.txt"]):
        (tmp_path / path).write_bytes(b"text" if path.endswith(".txt") else picture(k))
    found, _ = look(tmp_path, include=include)
    assert found.keys() == expected
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.glob(include) if path.suffix == ".jpg"} == expected


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_tar_is_unpacked_as_its_bytes_say(packing, tmp_path):
    """Whatever its suffix; several streams in one file are one, as cat makes them."""
    data = tar({"1.jpg": picture(1)})
    for k, suffix in enumerate(PACKINGS):
        (tmp_path / f"{k}.{suffix}").write_bytes(PACKINGS[packing](data))
    (tmp_path / "two.tar").write_bytes(PACKINGS[packing](data) + PACKINGS[packing](tar({"2.jpg": picture(2)})))
    found, others = look(tmp_path, kind="archive")
    expected = {f"{k}.{suffix}/1.jpg": sha(1) for k, suffix in enumerate(PACKINGS)}
    assert found == expected | {"two.tar/1.jpg": sha(1), "two.tar/2.jpg": sha(2)}
    assert not others


@pytest.mark.parametrize("packing", PACKINGS)
def test_what_lies_behind_the_end_of_a_tar_is_said(packing, tmp_path):
    data = tar({"1.jpg": picture(1)})
    (tmp_path / "padded.tar").write_bytes(PACKINGS[packing](data + bytes(3000)))
    (tmp_path / "inside.tar").write_bytes(PACKINGS[packing](data + b"something else" * 50))
    (tmp_path / "behind.tar").write_bytes(PACKINGS[packing](data) + b"something else" * 50)
    (tmp_path / "cut.tar").write_bytes(PACKINGS[packing](data)[: 1000 if packing == "tar" else -20])
    found, _ = look(tmp_path, kind="archive")
    assert found.pop("padded.tar/1.jpg") == found.pop("inside.tar/1.jpg") == found.pop("behind.tar/1.jpg") == sha(1)
    for name in ("inside.tar", "behind.tar"):
        assert "behind" in found.pop(name)
    found.pop("cut.tar/1.jpg", None)
    assert found.keys() == {"cut.tar"}
    assert "damaged" in found["cut.tar"]


def test_gzip_padded_with_zeros_is_whole(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(tar({"1.jpg": picture(1)})) + bytes(700))
    assert look(tmp_path / "a.tar.gz")[0] == {"a.tar.gz/1.jpg": sha(1)}


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"PK\x03\x04" + bytes(600), "this is a zip archive and no tar"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(600), "this is a 7z archive and no tar"),
        (b"Rar!\x1a\x07\x01\x00" + bytes(600), "this is a RAR archive and no tar"),
        (picture(1), "this is a JPEG picture and no tar"),
        (b"<!DOCTYPE html><title>404</title>" + bytes(600), "this is a web page and no tar"),
        (gzip.compress(b'{"caption": "no tar"}' * 100, mtime=0), "what it unpacks to is no tar"),
    ],
)
def test_what_is_no_tar_is_not_called_damaged(data, what, tmp_path):
    (tmp_path / "a.tar").write_bytes(data)
    found, _ = look(tmp_path / "a.tar")
    assert found["a.tar"].startswith(what)
    assert "copy it again" not in found["a.tar"]


def test_content_decides_between_archive_and_table(tmp_path):
    (tmp_path / "tar.parquet").write_bytes(tar({"1.jpg": picture(1)}))
    pq.write_table(pa.table({"image": [picture(2)]}), tmp_path / "parquet.arrow")
    feather.write_feather(pa.table({"image": [picture(3)]}), tmp_path / "arrow.parquet", compression="zstd")
    (tmp_path / "picture.parquet").write_bytes(picture(4))
    (tmp_path / "old.feather").write_bytes(b"FEA1" + bytes(600) + b"FEA1")
    (tmp_path / "shut.parquet").write_bytes(b"PARE" + bytes(600) + b"PARE")
    (tmp_path / "junk.parquet").write_bytes(b"junk" * 200)
    found, others = look(tmp_path, kind="table")
    good = {"tar.parquet/1.jpg": sha(1), "parquet.arrow#0": sha(2), "arrow.parquet#0": sha(3)}
    assert {path: found.pop(path) for path in good} == good
    assert not others
    assert found.pop("junk.parquet").startswith("cut short or damaged from row 0 on")
    for path, form in {
        "picture.parquet": "a JPEG picture",
        "old.feather": "Feather, version 1",
        "shut.parquet": "encrypted Parquet",
    }.items():
        assert found.pop(path) == f"this is {form}, which is not read as a table: write it again as Parquet"
    assert not found


def test_a_mac_or_a_stranger_between_a_samples_members_costs_no_licence(tmp_path):
    terms = json.dumps({"license": "CC BY 4.0", "who": "me"}).encode()
    plain = {"./1.jpg": picture(1), "./1.json": terms, "./2.json": terms, "./2.left.jpg": picture(2)}
    plain |= {"./2.right.jpg": picture(3), "./sub/3.jpg": picture(4), "./sub/3.json": terms}
    members: dict[str, bytes] = {}
    for name, data in plain.items():
        folder, _, base = name.rpartition("/")
        members |= {f"{folder}/._{base}": APPLE_DOUBLE, f"{folder}/{base}.nothing": b"", name: data}
        members[f"__MACOSX/{folder}/._{base}"] = APPLE_DOUBLE
        members |= {f"{folder}/{base}/.DS_Store": b"\0\0\0\1Bud1", f"meta{len(members)}.json": b"{}"}
    (tmp_path / "a.tar").write_bytes(tar(members, format=tarfile.USTAR_FORMAT))
    found, others = look(tmp_path / "a.tar", licence=None, licence_column="license")
    names = ["1.jpg", "2.left.jpg", "2.right.jpg", "sub/3.jpg"]
    assert found == {f"a.tar/./{name}": sha(1 + k) for k, name in enumerate(names)}
    assert others == {"._* of macOS": 14, ".nothing": 7, ".DS_Store": 7, ".json without a picture": 7}


def test_terms_are_found_wherever_they_lie_in_the_tar(tmp_path):
    """As `tar` packs a folder: in no order. Dots in names; of several .json of a picture each may say something."""

    def terms(licence: str | None) -> bytes:
        return json.dumps({"license": licence}).encode()

    members = {f"{k:02}.jpg": picture(k) for k in range(20)} | {f"./{k:02}.JSON": terms(f"L{k}") for k in range(20)}
    members |= {"v1.2/a.b.jpg": picture(20), "v1.2/a.c.jpg": picture(21), "v1.2/a.b.json": terms("AB")}
    members |= {"v1.2/a.c.json": terms("AC"), "two.json": terms("CC0"), "two.jpg": picture(22)}
    members |= {"two.caption.json": terms(None), "odd.jpg": picture(23), "odd.json": terms("CC0")}
    members |= {"odd.more.json": terms("GPL"), "none.jpg": picture(24), "nobody.json": terms("CC0")}
    (tmp_path / "a.tar").write_bytes(tar(members))
    source = Source(path=tmp_path / "a.tar", licence_column="license")
    (container,) = readers.find("s", source, "archive", source.path).containers
    others = Counter[str]()
    found = {one.path.removeprefix("a.tar/"): one for one in readers.members(container, source, LIMITS, others=others)}
    odd = found.pop("odd.jpg").error
    assert odd == "a.tar/odd.more.json: another .json of the sample says another 'license': remove one"
    assert {path: one.fields.get("license") for path, one in found.items()} == {
        **{f"{k:02}.jpg": f"L{k}" for k in range(20)},
        "v1.2/a.b.jpg": "AB",
        "v1.2/a.c.jpg": "AC",
        "two.jpg": "CC0",
        "none.jpg": None,
    }
    assert not any(one.error for one in found.values())
    assert others == {".json without a picture": 1}


def test_what_json_say_is_bounded(tmp_path):
    members = {f"{k}.json": json.dumps({"license": "x" * 1000}).encode() for k in range(2)}
    (tmp_path / "a.tar").write_bytes(tar(members | {f"{k}.jpg": picture(k) for k in range(2)}))
    limits = LIMITS._replace(max_bytes=1900)
    found, _ = look(tmp_path / "a.tar", limits, licence=None, licence_column="license")
    assert found == {
        "a.tar/0.jpg": sha(0),
        "a.tar/1.jpg": "the .json of its archive say more than 1900 bytes: raise ingest.max_bytes",
    }


@pytest.mark.parametrize("name", ["a.tar", "a.parquet", "a.arrow", "a.mp4"])
def test_a_pointer_of_git_lfs_says_what_to_do(name, tmp_path):
    (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    found, _ = look(tmp_path / name)
    assert found == {name: "a pointer of git-lfs instead of the file: run git lfs pull"}


def test_a_link_has_the_terms_of_its_own_sample(tmp_path):
    members = [("1.jpg", "", picture(1)), ("1.json", "", b'{"license": "CC0"}')]
    members += [("2.jpg", "1.jpg", b""), ("2.json", "", b'{"license": "CC BY 4.0"}')]
    members += [("3.jpg", "", picture(3)), ("3.json", "1.json", b"")]
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, target, data in members:
            member = tarfile.TarInfo(name)
            member.size, member.linkname = len(data), target
            member.type = tarfile.LNKTYPE if target else tarfile.REGTYPE
            archive.addfile(member, io.BytesIO(data))
    source = Source(path=tmp_path / "a.tar", licence_column="license")
    (container,) = readers.find("s", source, "archive", source.path).containers
    found = {member.path: member for member in readers.members(container, source, LIMITS)}
    assert found["a.tar/2.jpg"].data == picture(1)
    assert {path: member.fields.get("license") for path, member in found.items() if not member.error} == {
        "a.tar/1.jpg": "CC0",
        "a.tar/2.jpg": "CC BY 4.0",
    }
    assert found["a.tar/3.jpg"].error == "a.tar/3.json: a link: put the file itself into the archive"


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("packing", ["tar", "tar.gz"])
def test_links_long_names_and_sparse_files_in_a_tar(form, packing, tmp_path):
    long, latin = "d" * 150 + "/" + "n" * 120 + ".jpg", "caf\udce9.jpg"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, errors="surrogateescape") as archive:

        def add(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, linkname: str = "") -> None:
            member = tarfile.TarInfo(name)
            member.size, member.type, member.linkname = len(data), kind, linkname
            archive.addfile(member, io.BytesIO(data))

        add("./early.jpg", kind=tarfile.SYMTYPE, linkname="sub/1.jpg")
        add("sub", kind=tarfile.DIRTYPE)
        add("./sub/1.jpg", picture(1))
        add("sub/hard.jpg", kind=tarfile.LNKTYPE, linkname="./sub/1.jpg")
        add("sub/soft.jpg", kind=tarfile.SYMTYPE, linkname="../sub/hard.jpg")
        add("loop.jpg", kind=tarfile.SYMTYPE, linkname="loop.jpg")
        add("out.jpg", kind=tarfile.SYMTYPE, linkname="../../out.jpg")
        add("folder", kind=tarfile.SYMTYPE, linkname="sub")
        add(long, picture(2))
        add(latin, picture(3))
    (tmp_path / f"a.{packing}").write_bytes(PACKINGS[packing](buffer.getvalue()))
    found, others = look(tmp_path / f"a.{packing}")
    found = {path.removeprefix(f"a.{packing}/"): said for path, said in found.items()}
    pictures = {"./sub/1.jpg": sha(1), long: sha(2), "caf\\udce9.jpg": sha(3)}
    pictures |= dict.fromkeys(["./early.jpg", "sub/hard.jpg", "sub/soft.jpg"], sha(1))
    assert {path: found.pop(path) for path in pictures} == pictures
    assert found.keys() == {"loop.jpg", "out.jpg", "folder"}
    assert all(said.startswith("a link to ") for said in found.values())
    assert not others


def test_a_sparse_member_is_read_with_its_holes(tmp_path):
    """As GNU tar --sparse writes it: a map of the parts that are there."""
    header = tarfile.TarInfo("a.pgm")
    header.type = tarfile.GNUTYPE_SPARSE
    start, end, size = b"P5 64 64 255\n".ljust(512, b"\x11"), bytes([7]) * 512, 4096 + 13
    parts = [(0, 512), (3584, 512), (size, 0)]
    header.size = 1024
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    for k, (offset, length) in enumerate(parts):
        block[386 + 24 * k : 410 + 24 * k] = b"%011o\0%011o\0" % (offset, length)
    block[483:495] = b"%011o\0" % size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    (tmp_path / "a.tar").write_bytes(bytes(block) + start + end + bytes(1024))
    whole = start + bytes(3584 - 512) + end + bytes(size - 4096)
    assert look(tmp_path / "a.tar")[0] == {"a.tar/a.pgm": hashlib.sha256(whole).hexdigest()}


ARROW_TYPES = [
    pa.binary(),
    pa.large_binary(),
    pa.binary_view(),
    pa.dictionary(pa.int32(), pa.binary()),
    pa.struct({"bytes": pa.binary(), "path": pa.string()}),
    pa.struct({"path": pa.large_string(), "bytes": pa.large_binary()}),
]


@pytest.mark.parametrize("kind", ARROW_TYPES, ids=str)
@pytest.mark.parametrize("form", ["file", "lz4 file", "zstd stream"])
def test_arrow_in_every_form(kind, form, tmp_path):
    pictures = [picture(k) for k in range(3)]
    column = pa.array([{"bytes": data, "path": "x"} for data in pictures], kind) if pa.types.is_struct(kind) else None
    column = pa.array(pictures, pa.binary()).cast(kind) if column is None else column
    table = pa.table({"image": column, "other": pa.array(["é", None, "x"])})
    make = pa.ipc.new_stream if "stream" in form else pa.ipc.new_file
    options = pa.ipc.IpcWriteOptions(compression=None if form == "file" else form.split()[0])
    with make(str(tmp_path / "a.arrow"), table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=2)
    assert look(tmp_path / "a.arrow")[0] == {f"a.arrow#{k}": sha(k) for k in range(3)}


def test_polars_and_hugging_face_write_arrow_that_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    frame = pl.DataFrame({"image": [picture(0), picture(1)], "rights": ["CC0", "CC BY 4.0"]})
    frame.write_ipc(tmp_path / "polars.arrow", compression="zstd")
    frame.write_ipc_stream(tmp_path / "stream.bin")
    found = datasets.Dataset.from_dict({"image": [{"bytes": picture(2), "path": None}], "rights": ["CC0"]})
    found.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "hf")
    (tmp_path / "hf/cache-1.arrow").write_bytes(b"left by map")
    found, others = look(tmp_path, kind="table", licence=None, licence_column="rights")
    (name,) = (path for path in found if path.startswith("hf/"))
    assert found == {f"{file}#{k}": sha(k) for file in ("polars.arrow", "stream.bin") for k in range(2)} | {
        name: sha(2)
    }
    assert others == {".json": 2, "cache-* of Hugging Face's map and filter": 1}


def test_an_arrow_file_cut_short_gives_its_whole_batches(tmp_path):
    table = pa.table({"image": [picture(k) for k in range(6)]})
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    data = (tmp_path / "a.arrow").read_bytes()
    (tmp_path / "a.arrow").write_bytes(data[: data.index(picture(5))])
    found, _ = look(tmp_path / "a.arrow")
    assert found.pop("a.arrow").startswith("cut short or damaged from row 4 on")
    assert found == {f"a.arrow#{k}": sha(k) for k in range(4)}


def test_arrow_streams_behind_one_another_are_all_read(tmp_path):
    def stream(column: str, *pictures: bytes) -> bytes:
        sink = pa.BufferOutputStream()
        table = pa.table({column: list(pictures)})
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=1)
        return sink.getvalue().to_pybytes()

    first, second = stream("image", picture(0), picture(1)), stream("image", picture(2))
    for name, behind in {"a": b"", "b": b"something else" * 9, "c": stream("other", picture(3))}.items():
        (tmp_path / f"{name}.arrow").write_bytes(first + second + behind)
    found, _ = look(tmp_path, kind="table")
    for name in "bc":
        assert found.pop(f"{name}.arrow").startswith("cut short or damaged from row 3 on")
    assert found == {f"{name}.arrow#{k}": sha(k) for name in "abc" for k in range(3)}


def test_bad_text_in_arrow_costs_its_row_and_only_where_it_is_wanted(tmp_path):
    bad = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff\xfe", b"CC0"], pa.binary()).buffers())
    table = pa.table({"image": [picture(0), picture(1)], "rights": bad})
    feather.write_feather(table, tmp_path / "a.arrow", compression="uncompressed")
    assert look(tmp_path / "a.arrow")[0] == {"a.arrow#0": sha(0), "a.arrow#1": sha(1)}
    found, _ = look(tmp_path / "a.arrow", licence_column="rights")
    assert found["a.arrow#1"] == sha(1)
    assert found["a.arrow#0"].startswith("its text is not UTF-8")


def test_a_column_of_paths_is_said_to_be_one(tmp_path):
    pq.write_table(pa.table({"image": [{"path": "a.jpg"}]}), tmp_path / "a.parquet")
    with pytest.raises(BadInput, match="column 'image' has paths and no bytes: embed the pictures"):
        look(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("table", "line"),
    [
        (pa.table([[b"x"], [b"y"]], names=["image", "image"]), "has several columns 'image'"),
        (pa.table({"image": [b"x"], "terms": [["CC0"]]}), "'terms' is list<element: string>, neither text nor numbers"),
        (pa.table({"image": [[b"x"]], "terms": ["CC0"]}), "'image' is list<element: binary>, not encoded pictures"),
    ],
)
def test_a_column_that_cannot_be_used_is_one_line(table, line, tmp_path):
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(BadInput, match=line):
        look(tmp_path / "a.parquet", licence_column="terms" if "terms" in table.column_names else None)


def test_terms_that_are_no_text_do_not_become_the_sources(tmp_path):
    members = {"1.jpg": picture(1), "1.json": b'{"license": ["all rights reserved"]}'}
    (tmp_path / "a.tar").write_bytes(tar(members))
    found, _ = look(tmp_path / "a.tar", licence_column="license")
    assert found == {"a.tar/1.jpg": "a.tar/1.json: 'license' is neither text nor a number: write it as text"}


def test_encrypted_columns_are_said_to_be_so(tmp_path):
    encryption = pytest.importorskip("pyarrow.parquet.encryption")

    class Keys(encryption.KmsClient):
        def __init__(self, config: object) -> None:
            super().__init__()

        def wrap_key(self, key: bytes, name: str) -> bytes:
            return b"wrapped" + key

    factory = encryption.CryptoFactory(Keys)
    for footer in (True, False):
        config = encryption.EncryptionConfiguration(
            footer_key="f", column_keys={"c": ["image"]}, plaintext_footer=footer, double_wrapping=False
        )
        properties = factory.file_encryption_properties(encryption.KmsConnectionConfig(), config)
        table = pa.table({"image": [picture(0)]})
        with pq.ParquetWriter(tmp_path / f"{footer}.parquet", table.schema, encryption_properties=properties) as writer:
            writer.write_table(table)
    found, _ = look(tmp_path, kind="table")
    assert "encrypted Parquet" in found["False.parquet"]
    assert "in a form that is not read" in found["True.parquet"]


@pytest.mark.parametrize("kind", ["archive", "table"])
def test_a_container_that_is_gone_is_not_called_damaged(kind, tmp_path):
    gone = Container(kind, "s", "a.arrow", tmp_path / "a.arrow", "")
    (member,) = readers.members(gone, Source(path=tmp_path), LIMITS)
    assert member.error == "cannot be read (No such file or directory): check the path and its permissions"


def test_beyond_the_limit_of_members_it_says_how_many_are_left(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar({f"{k}.jpg": picture(k) for k in range(5)}))
    found, _ = look(tmp_path / "a.tar", LIMITS._replace(max_members=2))
    assert found.pop("a.tar").startswith("holds more than 2 pictures: 3 are not read; ")
    assert found == {"a.tar/0.jpg": sha(0), "a.tar/1.jpg": sha(1)}


THINGS = {
    "a.jpg": picture(1),
    "b.JPG": picture(2),
    "c.jfif": picture(3),
    "d.jpg_large": picture(4),
    "e": picture(5, "PNG"),
    "f.pnm": picture(6, "PPM"),
    "g.xyz": picture(7, "TIFF"),
    "h.bak": picture(8, "BMP"),
    "i.x": picture(9, "WEBP"),
    "._a.jpg": APPLE_DOUBLE,
    "._j.jpg": picture(10),
    "raw.dng": picture(11, "TIFF"),
    "k.jp2": picture(12, "JPEG2000"),
    "text.jpg": b"this is not a picture",
    "empty.jpg": b"",
    "empty": b"",
    "notes.txt": b"BMW is a car, P5 a letter",
    "notes.json": b"{}",
    "README.md": b"# read me",
    ".DS_Store": b"\0\0\0\1Bud1",
    "Thumbs.db": b"\xd0\xcf\x11\xe0",
    "desktop.ini": b"[.ShellClassInfo]",
    "x.heic": b"\0\0\0\x18ftypheic" + bytes(100),
    "x.zip": b"PK\x03\x04" + bytes(100),
    "x.tar": tar({"1.jpg": picture(13)}),
    "x.parquet": b"PAR1" + bytes(100) + b"PAR1",
    "x.mp4": b"\0\0\0\x18ftypisom" + bytes(100),
    "of a strange.name here": b"x",
}
PICTURES = {name for name in THINGS if name[0] in "abcdefghi" and name[1:2] in (".", "")} | {"._j.jpg"}
ROWS = PICTURES | {"text.jpg", "empty.jpg"}


def lay(folder: Path) -> int:
    """One of everything; how many things."""
    folder.mkdir(exist_ok=True)
    for name, data in THINGS.items():
        (folder / name).write_bytes(data)
    os.mkfifo(folder / "pipe")
    (folder / "broken").symlink_to("nowhere")
    (folder / "loop").symlink_to(".")
    return len(THINGS) + 3


def test_of_everything_in_a_folder_each_is_read_or_told(tmp_path):
    n = lay(tmp_path)
    found, others = look(tmp_path)
    assert found.keys() == ROWS | {"pipe", "broken", "loop"}
    assert {found[name] for name in ROWS} == {hashlib.sha256(THINGS[name]).hexdigest() for name in ROWS}
    assert len(found) + others.total() == n
    assert others["._* of macOS"] == others[".dng"] == others[".DS_Store"] == others[".md"] == others[".tar"] == 1
    assert others["without a suffix"] == 2


def test_of_everything_in_a_tar_each_is_read_or_told(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar(THINGS))
    found, others = look(tmp_path / "a.tar")
    assert found == {f"a.tar/{name}": hashlib.sha256(THINGS[name]).hexdigest() for name in ROWS}
    assert len(found) + others.total() == len(THINGS)
    with_terms, more = look(tmp_path / "a.tar", licence_column="license")
    assert with_terms == found
    assert more == others - Counter({".json": 1}) + Counter({".json without a picture": 1})


@pytest.mark.parametrize(("kind", "own"), [("archive", {"x.tar"}), ("table", {"x.parquet"}), ("video", {"x.mp4"})])
def test_of_everything_beside_a_container_each_is_read_or_told(kind, own, tmp_path):
    n = lay(tmp_path)
    source = Source(path=tmp_path, kind=kind)
    held = readers.find("s", source, kind, tmp_path)
    assert {container.path for container in held.containers} == own
    assert {one.path for one in held.files} == {"pipe", "broken", "loop"}
    assert len(held.containers) + len(held.files) + held.others.total() == n


def test_unos_json_names_no_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "a.jpg").write_bytes(picture(1))
    entry = {"image_paths": ["pipe.jpg"], "image_tgt_path": "a.jpg"}
    (tmp_path / "uno.json").write_text(json.dumps([entry]))
    found, _ = look(tmp_path / "uno.json")
    assert found == {"pipe.jpg": "no file: put the picture itself there", "a.jpg": sha(1)}


def test_what_is_not_read_is_one_line_a_source_in_every_run(ingested, capsys):
    (ingested.folder / "tars").mkdir()
    for k in range(2):
        members = {f"{k}.jpg": picture(k), f"{k}.txt": b"a caption", f"{k}.heic": b""}
        (ingested.folder / f"tars/{k}.tar").write_bytes(tar(members))
    (ingested.folder / "tars/notes.txt").write_bytes(b"of the folder")
    for _ in range(2):
        rows = ingested({"web": {"path": "tars", "kind": "archive", "licence": "CC0"}})
        assert [row["status"] for row in rows] == ["ok", "ok"]
        lines = [line for line in capsys.readouterr().out.splitlines() if "not read" in line]
        assert len(lines) == 1
        assert lines[0].startswith("ingest: web: not read: 2 .heic, 3 .txt: ")


def test_many_kinds_stay_one_short_line():
    told = forms.told(Counter({f".{k:03d}": 1000 - k for k in range(40)}))
    assert told.startswith("1000 .000, 999 .001, ")
    assert told.endswith(f", {sum(range(961, 981))} others")


def test_a_video_under_another_name_is_known(tmp_path):
    transport = b"".join(b"\x47" + bytes(187) for _ in range(4))
    blu_ray = b"".join(struct.pack(">I", k) + b"\x47" + bytes(187) for k in range(4))
    for head in (transport, blu_ray, b"\0\0\1\xba" + bytes(600), b"\x1a\x45\xdf\xa3" + bytes(600)):
        assert forms.form(head[: forms.HEAD_BYTES]) == forms.Form("a video", "video")
