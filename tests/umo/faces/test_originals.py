"""The adapters against the runtimes that their networks come from."""

import cv2
import dlib
import numpy as np
import pytest
import torch
from insightface.utils import face_align

from umo import faces
from umo.errors import BadInput
from umo.faces.align import similarity, warp, warp_array
from umo.faces.dlib import Dlib, Views, chip_map
from umo.faces.insightface import InsightFace
from umo.faces.opencv_zoo import OpenCVZoo

MAX_COSINE_DISTANCE = 1e-5
MAX_PIXELS = 0.1


def cosine_distance(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return 1 - (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


@pytest.fixture(scope="module")
def zoo():
    return faces.load("opencv_zoo")


@pytest.mark.parametrize(
    ("runtime", "of"), [("onnxruntime", "array"), ("torch", "array"), ("torch", "tensor")], ids=" of ".join
)
def test_yunet_is_opencvs(runtime, of, group, portrait, tensor_of):
    model = OpenCVZoo(runtime=runtime, calibrated=False)
    for picture in (group, portrait(1, 1), portrait(9, 4), group[60:380, 100:420]):
        (found,) = model.detect([picture] if of == "array" else tensor_of(picture))
        size = picture.shape[1::-1]
        original = cv2.FaceDetectorYN.create(str(model.files[0]), "", size, model.min_score, model.max_overlap, 5000)
        rows = original.detect(np.ascontiguousarray(picture[..., ::-1]))[1]
        assert len(found) == len(rows) > 0
        rows = rows[np.argsort(-rows[:, 14], kind="stable")]
        boxes, landmarks = [face.box for face in found], [face.landmarks for face in found]
        np.testing.assert_allclose(landmarks, rows[:, 4:14].reshape(-1, 5, 2), atol=MAX_PIXELS)
        np.testing.assert_allclose(boxes, np.hstack([rows[:, :2], rows[:, :2] + rows[:, 2:4]]), atol=MAX_PIXELS)
        np.testing.assert_allclose([face.score for face in found], rows[:, 14], atol=1e-3)


def test_both_detector_runtimes_agree_on_a_batch_that_is_scaled(portrait, tensor_of):
    tensor = tensor_of(*[portrait(person, 1)[::2, ::2] for person in (1, 2, 3)])
    one, other = (OpenCVZoo(runtime=name, calibrated=False).detect(tensor) for name in ("torch", "onnxruntime"))
    assert [len(row) for row in one] == [len(row) for row in other] == [1, 1, 1]
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a[0].landmarks, b[0].landmarks, atol=MAX_PIXELS)


def test_sface_is_opencvs(zoo, group):
    found = zoo.detect([group])[0]
    crops = warp_array(group, similarity(np.array([face.landmarks for face in found])))
    original = cv2.dnn.readNet(str(zoo.files[1]))
    original.setInput(crops, "data")
    expected = original.forward()
    assert cosine_distance(zoo.embed([group], [found]), expected).max() < MAX_COSINE_DISTANCE
    (vectors,) = zoo._embedder.torch(torch.from_numpy(crops)).values()
    assert cosine_distance(vectors, expected).max() < MAX_COSINE_DISTANCE
    by_torch = OpenCVZoo(runtime="torch", calibrated=False).embed([group], [found])
    assert cosine_distance(by_torch, expected).max() < MAX_COSINE_DISTANCE


def test_sface_crops_as_opencv_does(zoo, group):
    """`FaceRecognizerSF.alignCrop` rounds its crop to bytes, and no more than that is between the two."""
    found = zoo.detect([group])[0]
    original = cv2.FaceRecognizerSF.create(str(zoo.files[1]), "")
    for face in found:
        row = np.concatenate([face.box[:2], face.box[2:] - face.box[:2], face.landmarks.ravel(), [face.score]])
        expected = original.alignCrop(group[..., ::-1].copy(), row.astype(np.float32)[None])[..., ::-1]
        (crop,) = warp_array(group, similarity(face.landmarks[None]))
        assert np.abs(crop.transpose(1, 2, 0) - expected).max() < 1.5


def test_both_warps_agree(zoo, group):
    found = zoo.detect([group])[0]
    matrices = similarity(np.array([face.landmarks for face in found]))
    image = torch.from_numpy(group.copy()).permute(2, 0, 1)[None].float()
    crops = warp(image, np.zeros(len(found), int), matrices)
    assert np.abs(crops.numpy() - warp_array(group, matrices)).max() < 0.1


def test_similarity_is_insightfaces(zoo, group):
    for face in zoo.detect([group])[0]:
        with pytest.warns(FutureWarning):
            expected = face_align.estimate_norm(face.landmarks)
        np.testing.assert_allclose(similarity(face.landmarks[None])[0], expected, atol=1e-4)


@pytest.fixture(scope="module")
def raw():
    return Dlib(calibrated=False)


def chips_of(model, *pictures):
    found = model.detect(pictures)
    return [model._chip(Views(picture), face) for picture, row in zip(pictures, found, strict=True) for face in row]


def test_the_describer_is_dlibs(raw, portrait, group):
    chips = chips_of(raw, portrait(1, 1), portrait(7, 5), group)
    original = dlib.face_recognition_model_v1(str(raw.files[1]))
    expected = np.array([original.compute_face_descriptor(chip) for chip in chips])
    tensor = torch.from_numpy(np.stack(chips)).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        np.testing.assert_allclose(raw._describer(tensor).numpy(), expected, atol=1e-5)


def test_a_descriptor_does_not_depend_on_its_neighbours(raw, portrait, group):
    chips = chips_of(raw, portrait(1, 1), group)
    together = raw._describe(chips)
    np.testing.assert_array_equal(np.concatenate([raw._describe([chip]) for chip in chips]), together)


def test_the_finder_is_dlibs(raw, portrait):
    """dlib looks at a picture in a black frame of 11 px; where it is surest at its own size, we are as sure."""
    original, compared = dlib.cnn_face_detection_model_v1(str(raw.files[2])), 0
    for person in (1, 3, 5):
        wide = np.pad(portrait(person, 1), ((100, 100), (100, 100), (0, 0)), mode="edge")
        picture = cv2.resize(wide, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        framed = np.pad(picture, ((11, 60), (11, 60), (0, 0)))
        with torch.no_grad():
            (scores,) = raw._finder(torch.from_numpy(framed).permute(2, 0, 1)[None].float()).numpy()
        for found in original(picture, 0):
            if found.rect.width() <= 81:
                compared += 1
                row, column = (round((at + 11 - 14) / 8) for at in (found.rect.center().y, found.rect.center().x))
                assert scores[row, column] == pytest.approx(found.confidence, abs=1e-5)
    assert compared


def test_the_chip_is_dlibs(raw, portrait):
    picture = portrait(3, 1)  # its face is about as large as a chip, so that neither of the two scales it much
    box = dlib.get_frontal_face_detector()(picture, 0)[0]
    shape = raw._predictor(picture, box)
    expected = dlib.get_face_chip(picture, shape, size=150, padding=0.25).astype(float)
    chip = Views(picture).crop(chip_map(shape), 150).astype(float)
    assert np.abs(chip - expected).mean() < 1.5
    level = np.abs(expected - np.roll(expected, 1, 1)).mean()
    assert level > 2, "a shift by one pixel would be seen"


def test_an_upright_face_is_described_as_dlib_describes_it(raw, portrait):
    """Through dlib's HOG detector and its own chip, the usual way, which reads no mirror image."""
    original = dlib.face_recognition_model_v1(str(raw.files[1]))
    for picture in (portrait(1, 1), portrait(7, 5)):
        box = dlib.get_frontal_face_detector()(picture, 0)[0]
        expected = original.compute_face_descriptor(picture, raw._predictor(picture, box))
        assert cosine_distance(raw.embed([picture], raw.detect([picture])), expected).max() < 0.03


@pytest.mark.parametrize("angle", [-35, 20, 60, 180])
def test_leaning_heads_are_found_and_known(angle, portrait):
    model = faces.load("dlib")
    upright = [portrait(person, 1) for person in (1, 5, 9, 10)]
    leaning = [turned(picture, angle) for picture in upright]
    found = model.detect([*upright, *leaning])
    assert [len(row) for row in found] == [1] * 8
    vectors = model.embed([*upright, *leaning], found)
    assert (vectors[:4] * vectors[4:]).sum(1).min() > 0.8


def turned(picture, angle):
    """By so many degrees, in a square that holds it whole."""
    height, width = picture.shape[:2]
    side = int(np.hypot(height, width))
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1)
    matrix[:, 2] += [(side - width) / 2, (side - height) / 2]
    return cv2.warpAffine(picture, matrix, (side, side), borderValue=(128, 128, 128))


def test_what_yunet_alone_believes_in_is_no_face(raw, portrait):
    """A picture without a face, changed until YuNet sees one: the reward's finder is fooled, the judge is not."""
    yunet = OpenCVZoo(runtime="torch", calibrated=False)
    pixels = torch.from_numpy(portrait(1, 1)[-96:, :96].copy()).permute(2, 0, 1)[None].float().requires_grad_()
    network = yunet._detector.torch
    for _ in range(20):
        outputs = network(pixels.flip(1))
        certain = torch.cat(
            [
                outputs[f"cls_{s}"].clamp(1e-4, 1).sqrt() * outputs[f"obj_{s}"].clamp(1e-4, 1).sqrt()
                for s in (8, 16, 32)
            ],
            1,
        )
        (gradient,) = torch.autograd.grad(certain.flatten().topk(3).values.sum(), pixels)
        with torch.no_grad():
            pixels += 6 * gradient.sign()
            pixels.clamp_(0, 255)
    picture = pixels.detach()[0].permute(1, 2, 0).round().byte().numpy()
    assert yunet.detect([picture])[0]
    assert raw.detect([picture]) == [[]]


def test_an_attack_on_the_reward_gains_nothing_under_the_judge(zoo, portrait, tensor_of):
    """Twenty steps towards another person by the gradient of the rewarding network, each pixel by 2 at most.

    Over these pairs the judge gains .08 of what the network does, between 0 and .15 by the pair: three are too few.
    """
    judge, gains = faces.load("dlib"), {"zoo": 0.0, "judge": 0.0}
    pairs = ((1, 9), (3, 5), (10, 8), (2, 7), (4, 6), (11, 12), (13, 14), (15, 16))
    for person, stranger in pairs:
        picture, other = portrait(person, 1), portrait(stranger, 1)
        found = [zoo.detect([picture])[0][:1]]
        wanted = torch.from_numpy(zoo.embed([other], [zoo.detect([other])[0][:1]]))
        start = tensor_of(picture)
        attacked = start.clone().requires_grad_()
        for _ in range(20):
            (gradient,) = torch.autograd.grad((zoo.embed(attacked, found) * wanted).sum(), attacked)
            with torch.no_grad():
                moved = attacked + gradient.sign() * 0.25 / 127.5
                attacked.copy_(moved.clamp(start - 2 / 127.5, start + 2 / 127.5).clamp(-1, 1))
        after = ((attacked.detach()[0].permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()
        for name, model in (("zoo", zoo), ("judge", judge)):
            before, now, target = (
                model.embed([one], [model.detect([one])[0][:1]])[0] for one in (picture, after, other)
            )
            gains[name] += float((now - before) @ target)
    assert gains["zoo"] > len(pairs) * 0.3
    assert gains["judge"] < 0.1 * gains["zoo"]


def test_dlib_is_centred(portrait):
    """The shipped mean is subtracted from dlib's unit vector, nothing else."""
    raw, centred = Dlib(calibrated=False), faces.load("dlib")
    picture = portrait(4, 2)
    found = centred.detect([picture])
    expected = raw.embed([picture], found) - centred.mean
    assert cosine_distance(centred.embed([picture], found), expected).max() < 1e-6
    assert cosine_distance(raw.embed([picture], found), centred.embed([picture], found)).max() > 0.1


def test_insightface_is_insightfaces_and_sface(models, group):
    """Through insightface: within the rounding of its byte crops to SFace, and exactly what insightface returns."""
    from insightface.app.common import Face as InsightFaceFace

    model, zoo = models["insightface"], models["opencv_zoo"]
    found = model.detect([group])
    vectors = model.embed([group], found)
    assert cosine_distance(vectors, zoo.embed([group], found)).max() < 1e-3
    for face, vector in zip(found[0], vectors, strict=True):
        with pytest.warns(FutureWarning):
            expected = model._recogniser.get(group[..., ::-1].copy(), InsightFaceFace(kps=face.landmarks))
        assert cosine_distance(vector, expected) < MAX_COSINE_DISTANCE


def test_insightface_says_what_is_missing(tmp_path, pack, monkeypatch):
    monkeypatch.delenv("UMO_INSIGHTFACE_PACK", raising=False)
    with pytest.raises(BadInput, match=r"models/antelopev2: no insightface pack .* non-commercial use only"):
        InsightFace(root=tmp_path)
    with pytest.raises(BadInput, match=r"no detector: add one, or choose detector='opencv_zoo'"):
        InsightFace(pack=pack, calibrated=False)
    with pytest.raises(BadInput, match=r"insightface\.calibration\.json: no calibration .* run umo calibrate"):
        InsightFace(pack=pack, detector="opencv_zoo")
    (tmp_path / "broken.onnx").write_bytes(b"not a network")
    for detector in ("pack", "opencv_zoo"):
        with pytest.raises(BadInput, match=r"insightface cannot load this") as error:
            InsightFace(pack=tmp_path, detector=detector, calibrated=False)
        assert "\n" not in str(error.value)
