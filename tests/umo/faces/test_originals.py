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
from umo.faces.dlib import Dlib
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


def test_dlib_is_dlibs(portrait, group):
    model = Dlib(max_scale=1.0, calibrated=False)
    detector, predictor = dlib.get_frontal_face_detector(), dlib.shape_predictor(str(model.files[0]))
    embedder = dlib.face_recognition_model_v1(str(model.files[1]))
    for picture in (portrait(1, 1), portrait(7, 5), np.ascontiguousarray(np.repeat(np.repeat(group, 2, 0), 2, 1))):
        (found,) = model.detect([picture])
        boxes = list(detector(picture, 0))
        assert len(found) == len(boxes) > 0
        shapes = [predictor(picture, box) for box in boxes]
        for face, box, shape in zip(found, boxes, shapes, strict=True):
            edges = [box.left(), box.top(), box.right(), box.bottom()]
            np.testing.assert_allclose(face.box, edges, atol=MAX_PIXELS)
            corners = np.array([[point.x, point.y] for point in shape.parts()])
            np.testing.assert_allclose(face.landmarks[0], corners[2:4].mean(0), atol=MAX_PIXELS)
            np.testing.assert_allclose(face.landmarks[1], corners[:2].mean(0), atol=MAX_PIXELS)
        expected = [embedder.compute_face_descriptor(picture, shape) for shape in shapes]
        assert cosine_distance(model.embed([picture], [found]), expected).max() < MAX_COSINE_DISTANCE


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
