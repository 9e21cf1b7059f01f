"""Calibration: the arithmetic on a made-up model, the files that are shipped, and the command's bad input."""

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from umo import faces
from umo.errors import BadInput
from umo.faces import calibration
from umo.faces.base import Face
from umo.faces.calibration import SHIPPED, Pairs, Photo, load_calibration, quantile
from umo.faces.weights import sha256

MODELS = ["opencv_zoo", "dlib"]


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
        Photo(np.clip(generator.normal(colour, 12, (120, 120, 3)), 1, 255).astype(np.uint8) // 16 * 16 + k * 3, f"p{i}")
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
    found = [[face_of(photo.image)] for photo in photos]
    vectors = model.embed([photo.image for photo in photos], found).reshape(5, 3, 4)
    np.testing.assert_allclose(result["mean"], vectors.mean(1).mean(0), atol=1e-5)
    assert calibration.calibrate(Coloured(False), photos)["mean"] is None


def test_it_is_the_same_to_the_byte_and_counts_faceless_photos(tmp_path):
    photos = [*coloured_photos(), Photo(np.zeros((40, 40, 3), np.uint8), "p0")]
    texts = []
    for name in ("a.json", "b.json"):
        calibration.write_calibration(calibration.calibrate(Coloured(True), photos), tmp_path / name)
        texts.append((tmp_path / name).read_bytes())
    assert texts[0] == texts[1]
    assert json.loads(texts[0])["without_face"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json"]


def test_men_and_women_weigh_alike_and_among_them_grey_and_coloured_photographs():
    """Of 12 grey and 10 coloured men and 3 women, of whom one is grey, which is too few for a group."""
    kinds = ["men, grey"] * 12 + ["men, colour"] * 10 + ["women, colour"] * 2 + ["women, grey"]
    generator, photos = np.random.default_rng(1), []
    for number, kind in enumerate(kinds):
        colour = generator.integers(60, 250, 3) if "colour" in kind else np.full(3, 100 + number)
        picture = np.tile(np.array(colour, np.uint8), (80, 80, 1))
        photos += [Photo(picture, f"p{number:02d}", kind.split(",")[0])] * 2
    result = calibration.calibrate(Coloured(True), photos)
    images = [photo.image for photo in photos[::2]]
    vectors = Coloured(True).embed(images, [[face_of(image)] for image in images])
    expected = (vectors[:12].mean(0) / 2 + vectors[12:22].mean(0) / 2) / 2 + vectors[22:].mean(0) / 2
    np.testing.assert_allclose(result["mean"], expected, atol=1e-5)
    assert {name: found["people"] for name, found in result["holds_for"].items()} == {
        name: kinds.count(name) for name in set(kinds)
    }


def made_pairs(seed=3):
    """Seven people, four of a group and three of another, with one to three photographs each; any cosines."""
    generator = np.random.default_rng(seed)
    groups, photos = np.array(list("aaaabbb")), [1, 3, 2, 2, 3, 1, 2]
    first, second = [], []
    for a in range(7):
        for b in range(7):
            count = photos[a] * photos[b] - (photos[a] if a == b else 0)
            first += [a] * count
            second += [b] * count
    people = SimpleNamespace(names=np.arange(7), groups=groups, strata=groups)
    return Pairs(people, np.array(first), np.array(second), generator.normal(0, 0.3, len(first)), 1.0), groups


def test_pairs_weigh_alike_by_groups_then_people_then_photographs():
    pairs, groups = made_pairs()
    by_cell, by_people = defaultdict(float), defaultdict(lambda: defaultdict(float))
    for a, b, weight in zip(pairs.first, pairs.second, pairs.weights, strict=True):
        if a != b:
            by_cell[groups[a], groups[b]] += weight
            by_people[groups[a], groups[b]][a, b] += weight
    np.testing.assert_allclose(list(by_cell.values()), 1 / 4)
    for cell, weights in by_people.items():
        np.testing.assert_allclose(list(weights.values()), by_cell[cell] / len(weights))


def test_the_threshold_is_as_defined():
    """Against sorting copies of each pair, in numbers that stand for the weights."""
    pairs, _ = made_pairs()
    times = np.round(pairs.weights * 8640).astype(int)
    np.testing.assert_allclose(times / 8640, pairs.weights, atol=1e-9)
    strangers, same = (np.repeat(pairs.cosines[kind], times[kind]) for kind in (~pairs.same, pairs.same))
    middle = (np.quantile(strangers, 0.99, method="inverted_cdf") + np.quantile(same, 0.01, method="inverted_cdf")) / 2
    threshold = pairs.threshold()
    assert threshold >= middle
    assert np.mean(strangers >= threshold) <= 0.001
    assert threshold == pytest.approx(max(middle, strangers.max()), abs=2e-6)
    summary = pairs.summary()
    assert summary["true_accept"] == pytest.approx(np.mean(same >= threshold), abs=1e-6)
    higher = np.mean(same[:, None] > strangers) + np.mean(same[:, None] == strangers) / 2
    assert summary["auc"] == pytest.approx(higher, abs=1e-6)
    assert summary["interval"][0] <= threshold <= summary["interval"][1]


def test_quantile_is_numpys_where_all_weigh_alike():
    values = np.random.default_rng(0).normal(size=101)
    for share in (0.01, 0.5, 0.99, 1.0):
        expected = np.quantile(values, share, method="inverted_cdf")
        assert quantile(values, np.full(101, 0.3), share) == pytest.approx(expected)


def test_a_photo_is_never_paired_with_itself():
    photos = coloured_photos()
    people = calibration.People(Coloured(False), [(photo, face_of(photo.image)) for photo in photos], False)
    pairs = people.at(112)
    assert pairs.same.sum() == 15 * 2 and (~pairs.same).sum() == 15 * 12


def test_the_held_out_are_other_people_and_are_counted_by_kind():
    photos = coloured_photos()
    fitted, others = photos[:9], photos[9:]
    result = calibration.calibrate(Coloured(False), fitted, others)
    found = result["held_out"]["colour"]
    assert (found["people"], found["same"]["photo_pairs"], found["strangers"]["photo_pairs"]) == (2, 12, 18)
    vectors = Coloured(False).embed([p.image for p in others], [[face_of(p.image)] for p in others])
    threshold = result["sides"]["64"]["same_person_cosine"]
    shares = ((vectors[:3] @ vectors[3:].T) >= threshold).mean()
    assert found["strangers"]["accepted"] == pytest.approx(shares, abs=1e-6)
    with pytest.raises(BadInput, match="p0 is among the photographs to fit and among those held out"):
        calibration.calibrate(Coloured(False), photos, photos[:3])


@pytest.mark.parametrize("name", MODELS)
def test_the_shipped_calibration_is_of_the_installed_files(name):
    model = faces.load(name)
    weights = faces.load(name, calibrated=False).files
    shipped = load_calibration(SHIPPED / f"{name}.calibration.json", weights)
    assert shipped.files == {path.name: sha256(path) for path in weights}
    assert shipped.people >= 60 and shipped.photos >= 300
    assert sorted(shipped.sides) == [32, 48, 64, 112]
    for side in shipped.sides.values():
        assert side["auc"] > 0.995 and side["found"] > 0.95
        assert abs(side["strangers"]["mean"]) < 0.15
        assert side["false_accept"] <= 0.001
    assert model.same_person_cosine == shipped.same_person_cosine_at(64)
    assert (shipped.mean is not None) == (name == "dlib")


@pytest.mark.parametrize("name", MODELS)
def test_thresholds_between_the_sides(name):
    shipped = load_calibration(SHIPPED / f"{name}.calibration.json")
    at = shipped.same_person_cosine_at
    low, high = sorted([at(48), at(64)])
    assert low <= at(56) <= high
    assert at(56) == pytest.approx((at(48) + at(64)) / 2)
    assert at(5) == at(32) and at(500) == at(112)


@pytest.mark.parametrize("name", MODELS)
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
    for index, photo in enumerate(coloured_photos()):
        Image.fromarray(photo.image).save(tmp_path / f"{index}.png")
        lines.append(f"{index}.png,{photo.person}")
    (tmp_path / "photos.csv").write_text("\n".join(lines))
    options = []
    monkeypatch.setattr(faces, "load_named", lambda name, **given: options.append(given) or Coloured(True))
    calibration.calibrate_command(tmp_path / "photos.csv", "coloured", tmp_path / "out.json")
    monkeypatch.undo()
    loaded = calibration.load_calibration(tmp_path / "out.json")
    assert (loaded.people, loaded.photos, loaded.mean.shape) == (5, 15, (4,))
    assert options == [{"calibrated": False}], "the model it measures must be raw"
    assert "15 photos of 5 people" in capsys.readouterr().out
    with pytest.raises(BadInput, match=r"out\.json: a calibration of other weights than .*umo calibrate with these"):
        faces.load_named("dlib", calibration=tmp_path / "out.json")


class OneChannel(Coloured):
    """A model that tells people apart by one channel alone."""

    def __init__(self, channel):
        super().__init__(False)
        self.channel = channel

    def embed(self, images, found):
        values = [image[0, 0, self.channel] / 255 for image, row in zip(images, found, strict=True) for _ in row]
        return np.stack([np.cos(values), np.sin(values)], axis=1).astype(np.float32)


@pytest.mark.parametrize(("channel", "warned"), [(0, False), (2, True)])
def test_a_network_that_reads_the_other_colour_order_is_told(channel, warned, tmp_path, monkeypatch, capsys):
    """People here differ in red; blue is noise. Separation is recomputed over all pairs."""
    generator = np.random.default_rng(0)
    photos = [
        Photo(
            np.tile(np.array([60 * person + take, 90, generator.integers(256)], np.uint8), (112, 112, 1)), str(person)
        )
        for person in range(4)
        for take in range(3)
    ]
    found = calibration.channel_test(OneChannel(channel), photos)
    for how, read in (("as_read", channel), ("swapped", 2 - channel)):
        angles = [(photo.person, photo.image[0, 0, read] / 255) for photo in photos]
        same, strangers = [], []
        for i, (person, a) in enumerate(angles):
            for other, b in angles[i + 1 :]:
                (same if person == other else strangers).append(np.cos(a - b))
        spread = np.sqrt((np.var(same) + np.var(strangers)) / 2)
        assert found[how] == pytest.approx((np.mean(same) - np.mean(strangers)) / spread, rel=1e-3)
    assert found["people"] == 4 and (found["swapped"] > found["as_read"]) == warned
    lines = ["path,person"]
    for k, photo in enumerate(photos):
        Image.fromarray(photo.image).save(tmp_path / f"{k}.png")
        lines.append(f"{k}.png,{photo.person}")
    (tmp_path / "photos.csv").write_text("\n".join(lines))
    monkeypatch.setattr(faces, "load_named", lambda name, **given: OneChannel(channel))
    calibration.calibrate_command(tmp_path / "photos.csv", "one", tmp_path / "out.json")
    assert ("better with red and blue swapped" in capsys.readouterr().out) == warned
    assert json.loads((tmp_path / "out.json").read_text())["channels"] == found
    grey = [Photo(np.repeat(photo.image[..., :1], 3, axis=2), photo.person) for photo in photos]
    assert calibration.channel_test(OneChannel(channel), grey) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,who\na.png,x", r"photos\.csv: line 2: path and person are needed"),
        ("path,person\nnone.png,x", r"photos\.csv: line 2: none\.png: cannot be read"),
        ("\ufeffpath,person\r\nnone.png,x", r"photos\.csv: line 2: none\.png: cannot be read"),
        ("path,person\na\0.png,x", r"photos\.csv: line 2: 'a\\x00\.png' holds the control character"),
        (f"path,person\n{'a' * 200_000},x", r"photos\.csv: cannot be read \(field larger than"),
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
    shipped = json.loads((Path(calibration.__file__).parent / "dlib.calibration.json").read_text())
    for text, reason in [
        ('{"people": 3}', "not a calibration"),
        (json.dumps(shipped | {"sides": {}}), "not a calibration"),
        (json.dumps(shipped | {"sides": {"64": [0.5]}}), "not a calibration"),
        (json.dumps(shipped | {"mean": [10**400]}), "not a calibration"),
        (json.dumps(shipped | {"mean": [float("nan")]}), "nan is no number"),
        ('{"people": 1, "people": 2}', "key 'people' is there twice"),
        ("[" * 100_000, "not JSON of ours"),
    ]:
        (tmp_path / "broken.json").write_text(text)
        with pytest.raises(BadInput, match=rf"broken\.json: {reason}") as error:
            calibration.load_calibration(tmp_path / "broken.json")
        assert "\n" not in str(error.value)
