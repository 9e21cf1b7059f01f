"""Calibration: the arithmetic on a made-up model, the files that are shipped, and the command's bad input."""

import json

import numpy as np
import pytest
from PIL import Image

from umo import faces
from umo.errors import BadInput
from umo.faces import calibration
from umo.faces.base import Face
from umo.faces.weights import sha256

SHIPPED = ["opencv_zoo", "dlib"]


class Coloured:
    """A model whose person is the colour of a picture; every vector leans towards one common direction."""

    name, licence, dimension, differentiable, files, same_person_cosine = "coloured", "none", 4, False, (), float("nan")

    def __init__(self, centred):
        self.centred = centred

    def detect(self, images):
        return [[face_of(image)] if image.max() else [] for image in images]

    def embed(self, images, found):
        rows = [image.reshape(-1, 3).mean(0) / 255 for image, row in zip(images, found, strict=True) for _ in row]
        vectors = np.array([[*row, 3.0] for row in rows], np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def face_of(image):
    height, width = image.shape[:2]
    return Face(np.array([0, 0, width, height], np.float32), np.zeros((5, 2), np.float32), 1.0)


def coloured_photos():
    generator = np.random.default_rng(0)
    colours = [(250, 20, 20), (20, 250, 20), (20, 20, 250), (250, 250, 20), (20, 250, 250)]
    return [
        (np.clip(generator.normal(colour, 12, (120, 120, 3)), 1, 255).astype(np.uint8) // 16 * 16 + k * 3, f"p{i}")
        for i, colour in enumerate(colours)
        for k in range(3)
    ]


def test_centring_brings_strangers_down():
    photos = coloured_photos()
    raw, centred = (calibration.calibrate(Coloured(flag), photos)["sides"]["64"] for flag in (False, True))
    assert raw["strangers"]["mean"] > 0.8
    assert abs(centred["strangers"]["mean"]) < 0.4
    assert centred["auc"] == 1 and centred["true_accept"] == 1
    assert raw["strangers"]["n"] == 15 * 12 and raw["same"]["n"] == 15 * 2


def test_the_mean_is_of_people_and_is_stored_for_centred_models_only():
    photos = coloured_photos()
    model = Coloured(True)
    result = calibration.calibrate(model, photos + photos[:3] * 5)
    found = [[face_of(image)] for image, _ in photos]
    vectors = model.embed([image for image, _ in photos], found).reshape(5, 3, 4)
    np.testing.assert_allclose(result["mean"], vectors.mean(1).mean(0), atol=1e-5)
    assert calibration.calibrate(Coloured(False), photos)["mean"] is None


def test_it_is_the_same_to_the_byte_and_counts_faceless_photos(tmp_path):
    photos = [*coloured_photos(), (np.zeros((40, 40, 3), np.uint8), "p0")]
    texts = []
    for name in ("a.json", "b.json"):
        calibration.write_calibration(calibration.calibrate(Coloured(True), photos), tmp_path / name)
        texts.append((tmp_path / name).read_bytes())
    assert texts[0] == texts[1]
    assert json.loads(texts[0])["without_face"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json"]


def test_measure_knows_its_statistics():
    strangers, same = np.linspace(-0.5, 0.5, 1001), np.array([0.2, 0.6, 0.7, 0.8])
    result = calibration.measure(strangers, same, found=1.0)
    assert result["same_person_cosine"] == pytest.approx(0.49)
    assert result["true_accept"] == 0.75
    assert result["auc"] == pytest.approx(np.mean(same[:, None] > strangers) + np.mean(same[:, None] == strangers) / 2)
    assert calibration.measure(np.ones(3), np.ones(5), 1.0)["auc"] == 0.5


def test_a_photo_is_never_paired_with_itself():
    people = np.array(["a", "a", "b", "b", "c", "c"])
    reference = np.eye(6)
    strangers, same = calibration.cosines(people, reference, np.arange(6), reference, centred=False)
    assert len(strangers) == 24 and len(same) == 6
    assert same.max() == 0


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_calibration_is_of_the_installed_files(name):
    shipped, model = calibration.find_calibration(name), faces.load(name)
    weights = faces.load(name, calibrated=False).files
    assert shipped.files == {path.name: sha256(path) for path in weights}
    assert shipped.people >= 20 and shipped.photos >= 200
    assert sorted(shipped.sides) == [32, 48, 64, 112]
    for side in shipped.sides.values():
        assert side["auc"] > 0.995 and side["found"] > 0.95
        assert abs(side["strangers"]["mean"]) < 0.15
        assert side["strangers"]["p99"] == pytest.approx(side["same_person_cosine"])
    assert model.same_person_cosine == shipped.same_person_cosine_at(64)
    assert (shipped.mean is not None) == (name == "dlib")


@pytest.mark.parametrize("name", SHIPPED)
def test_thresholds_between_the_sides(name):
    shipped = calibration.find_calibration(name)
    at = shipped.same_person_cosine_at
    low, high = sorted([at(48), at(64)])
    assert low <= at(56) <= high
    assert at(56) == pytest.approx((at(48) + at(64)) / 2)
    assert at(5) == at(32) and at(500) == at(112)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_threshold_holds_for_other_people(name, portrait):
    """Six ORL people of the test split, whom no calibration has seen (the first photo against the sixth)."""
    model, people = faces.load(name), (8, 13, 23, 27, 28, 30)
    pictures = [portrait(person, number) for number in (1, 6) for person in people]
    found = [row[:1] for row in model.detect(pictures)]
    vectors = model.embed(pictures, found)
    cosines = vectors[:6] @ vectors[6:].T
    accepted = cosines >= model.same_person_cosine
    assert accepted.diagonal().all()
    assert accepted.sum() - 6 <= 2


def test_the_command_reads_a_csv_and_writes_the_file(tmp_path, monkeypatch, capsys):
    lines = ["path,person"]
    for index, (image, person) in enumerate(coloured_photos()):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
        lines.append(f"{index}.png,{person}")
    (tmp_path / "photos.csv").write_text("\n".join(lines))
    options = []
    monkeypatch.setattr(faces, "load", lambda name, **given: options.append(given) or Coloured(True))
    calibration.calibrate_command(tmp_path / "photos.csv", "coloured", tmp_path / "out.json")
    loaded = calibration.load_calibration(tmp_path / "out.json")
    assert (loaded.people, loaded.photos, loaded.mean.shape) == (5, 15, (4,))
    assert options == [{"calibrated": False}], "the model it measures must be raw"
    assert "15 photos of 5 people" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,who\na.png,x", r"photos\.csv: line 2: path and person are needed"),
        ("path,person\nnone.png,x", r"photos\.csv: line 2: none\.png: cannot be read"),
        ("path,person\n", r"0 photos of 0 people have a face"),
    ],
)
def test_bad_photos_are_one_line(text, message, tmp_path):
    (tmp_path / "photos.csv").write_text(text)
    with pytest.raises(BadInput, match=message) as error:
        calibration.calibrate_command(tmp_path / "photos.csv", "opencv_zoo", tmp_path / "out.json")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out.json").exists()


def test_a_missing_or_broken_calibration_is_one_line(tmp_path):
    with pytest.raises(BadInput, match=r"none\.json: no calibration .* run umo calibrate"):
        calibration.load_calibration(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text('{"people": 3}')
    with pytest.raises(BadInput, match=r"broken\.json: not a calibration"):
        calibration.load_calibration(tmp_path / "broken.json")
