"""What measure writes of each picture, whatever is wrong with it."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipelines.core import products, store
from pipelines.core.shards import ONE_PROCESS, WORK, Machine
from pipelines.measure import stage as measure
from umo import faces, quality
from umo.images import encode_jpeg, encode_png, read_image

PARAMS = measure.Params(faces="opencv_zoo", min_score=0.6, min_side=24, max_side=1280)
BLANK = dict.fromkeys(("source", "path", "group", "clip", "time", "licence", "consent", "label", "error"), None)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def ingested(pictures: dict[str, bytes | None], **row: str) -> Path:
    """A shard of pictures by name; None for one that ingest could not use. Returns its folder."""
    rows = []
    for name, data in pictures.items():
        size = (None, None) if data is None else read_image(data).shape[:2]
        fault = {"status": "error", "error": "empty file"} if data is None else {"status": "ok"}
        key = None if data is None else f"{name}.bin"
        given = {"image_id": name, "shard": "0000", "key": key, "height": size[0], "width": size[1]}
        rows.append(BLANK | given | fault | row)
    folder = products.INGESTED / "0000"
    folder.mkdir(parents=True, exist_ok=True)
    store.write(folder, rows, {f"{name}.bin": data for name, data in pictures.items() if data is not None})
    return folder


def measured(params: measure.Params = PARAMS, machine: Machine = ONE_PROCESS) -> tuple[dict[str, dict], list[dict]]:
    """Measure the shard; rows of the pictures by name, and rows of the faces."""
    measure.run(params, machine, "ingested")
    images = products.measured_images(products.MEASURED_PHOTOS).to_dicts()
    return {row["image_id"]: row for row in images}, products.faces(products.MEASURED_PHOTOS).to_dicts()


def test_pictures_measured_together_are_as_each_alone(orl, group_photo):
    photos = {f"orl{person}": orl(person, 1) for person in range(1, 19)} | {"group": group_photo}
    ingested(
        {name: encode_png(photo) for name, photo in photos.items()}
        | {"nobody": encode_png(np.zeros((99, 99, 3), np.uint8))}
    )
    images, rows = measured()
    model = faces.load("opencv_zoo")
    for name, photo in photos.items():
        found = [face for face in model.detect([photo])[0] if face.side >= PARAMS.min_side]
        theirs = [row for row in rows if row["image_id"] == name]
        assert images[name]["n_faces"] == len(found) == len(theirs) == (6 if name == "group" else 1)
        assert images[name]["phash"] == quality.perceptual_hash(photo)
        vectors = model.embed([photo], [found])
        for face, row, vector in zip(found, theirs, vectors, strict=True):
            assert np.array_equal(face.box, np.float32(row["box"]))
            assert row["sharpness"] == pytest.approx(quality.sharpness(quality.crop(photo, face.box)))
            assert np.abs(np.array(row["embedding"], np.float32) - vector).max() < 1e-3
    assert images["nobody"]["n_faces"] == 0 and images["nobody"]["error"] is None
    assert list(images) == [*photos, "nobody"]


def test_on_a_device_the_same_is_found(orl, group_photo):
    """Any device but `cpu` itself stands for a GPU: arrays go to torch there."""
    ingested({"one": encode_png(orl(1, 1)), "six": encode_png(group_photo)})
    _, rows = measured()
    shutil.rmtree(WORK)
    _, others = measured(machine=Machine(device="cpu:0"))
    assert "session" not in vars(faces.load("opencv_zoo", device="cpu:0")._embedder)  # onnxruntime had nothing to do
    assert [row["face_id"] for row in rows] == [row["face_id"] for row in others]
    for row, other in zip(rows, others, strict=True):
        np.testing.assert_allclose(row["box"], other["box"], atol=1e-3)
        assert np.abs(np.float32(row["embedding"]) - np.float32(other["embedding"])).max() < 1e-3


def break_member(folder: Path, name: str, how: str) -> None:
    """Spoil one picture inside a shard's tar."""
    tar = folder / products.PICTURES
    (row,) = (row for row in products.images(folder.parent).to_dicts() if row["image_id"] == name)
    data = bytearray(tar.read_bytes())
    if how == "other bytes":
        data[row["offset"] + row["size"] // 2] ^= 1
    else:
        del data[row["offset"] + 100 :]  # the tar ends within it
    tar.write_bytes(data)


@pytest.mark.parametrize("how", ["other bytes", "cut short"])
def test_a_broken_picture_keeps_a_row_with_its_reason_and_the_rest_goes_on(orl, how, capsys):
    photos = {
        "a": encode_jpeg(orl(1, 1)),
        "bad in ingest": None,
        "b": encode_jpeg(orl(3, 1)),
        "z": encode_jpeg(orl(2, 1)),
    }
    folder = ingested(photos)
    broken = "z" if how == "cut short" else "b"
    break_member(folder, broken, how)
    images, rows = measured()
    assert list(images) == list(photos)
    assert {row["image_id"] for row in rows} == {"a", "b", "z"} - {broken}
    assert images["bad in ingest"] == {
        "image_id": "bad in ingest",
        "phash": None,
        "sharpness": None,
        "n_faces": 0,
        "error": "empty file",
    }
    assert images[broken]["n_faces"] == 0 and images[broken]["phash"] is None
    assert "as it was stored there: remove that and run dvc repro" in images[broken]["error"]
    assert "turned away: 1 unreadable" in capsys.readouterr().out
    ingested(photos)
    assert measured()[0][broken]["n_faces"] == 1, "mended, it is looked at again"


def test_of_a_file_that_is_no_tar_every_picture_says_so(orl):
    folder = ingested({"a": encode_jpeg(orl(1, 1))})
    (folder / products.PICTURES).write_bytes(b"no tar " * 500)
    images, rows = measured()
    assert "not in datasets/ingested/0000/images.tar as it was stored there: remove" in images["a"]["error"]
    assert not rows


def test_a_shard_that_changed_measures_only_what_is_new_in_it(orl, monkeypatch):
    """And comes out as one that was measured at once; another bound measures all again."""
    photos = {str(person): encode_jpeg(orl(person, 1)) for person in range(1, 6)}
    detected = []
    detect = faces.load("opencv_zoo").__class__.detect

    def counted(self, images):
        detected.append(len(images))
        return detect(self, images)

    def published() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (products.MEASURED_PHOTOS / "0000").iterdir()}

    monkeypatch.setattr(faces.load("opencv_zoo").__class__, "detect", counted)
    ingested({name: photos[name] for name in ("1", "3", "4")})
    measured()
    ingested(photos | {"4": encode_jpeg(orl(9, 9))})
    detected.clear()
    measured()
    assert sum(detected) == 3, "two new ones, and one that has other bytes now"
    grown = published()
    shutil.rmtree(WORK)
    measured()
    assert published() == grown
    ingested({name: photos[name] for name in ("1", "2")})
    detected.clear()
    measured(PARAMS.model_copy(update={"min_side": 25.0}))
    assert sum(detected) == 2


def test_duplicates_are_not_measured(orl):
    ingested({"a": encode_jpeg(orl(1, 1))}, status="duplicate")
    assert measured() == ({}, [])


def test_a_reduced_picture_gives_the_boxes_of_the_stored_one(orl):
    photo = encode_jpeg(cv2.resize(orl(1, 1), None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC))
    height = read_image(photo).shape[0]
    ingested({"a": photo})
    (whole,) = measured(PARAMS.model_copy(update={"max_side": 10_000}))[1]
    images, (reduced,) = measured(PARAMS.model_copy(update={"max_side": 400}))
    assert read_image(photo, max_side=400).shape[0] in range(400, height // 2 + 2), "it is decoded smaller"
    side = whole["side_px"]
    assert np.abs(np.subtract(whole["box"], reduced["box"])).max() < 0.12 * side
    assert np.abs(np.subtract(whole["landmarks"], reduced["landmarks"])).max() < 0.05 * side
    assert reduced["side_px"] == pytest.approx(side, rel=0.08)
    assert np.dot(np.float32(whole["embedding"]), np.float32(reduced["embedding"])) > 0.97
    assert images["a"]["n_faces"] == 1


def test_small_faces_of_a_reduced_picture_are_taken_from_the_whole_one(group_photo, monkeypatch):
    photo = encode_jpeg(group_photo)
    ingested({"a": photo})
    _, whole = measured(PARAMS.model_copy(update={"max_side": 10_000}))
    seen = []
    real = measure.read_image
    monkeypatch.setattr(measure, "read_image", lambda data: seen.append(data) or real(data))
    _, reduced = measured(PARAMS.model_copy(update={"max_side": group_photo.shape[0] // 2}))
    assert seen == [photo]
    assert len(whole) == len(reduced) == 6
    assert reduced == whole


def test_pictures_are_decoded_ahead_but_not_all_at_once(orl, monkeypatch):
    photos = {f"{k:02d}": encode_jpeg(orl(1, 1)) for k in range(12)}
    folder = ingested(photos)
    opened = []
    real = store.read_image
    monkeypatch.setattr(store, "read_image", lambda data, **given: opened.append(1) or real(data, **given))
    rows = store.iterate(folder, ahead=3)
    assert next(rows).row["image_id"] == "00"
    rows.close()
    assert 1 <= len(opened) <= 4
