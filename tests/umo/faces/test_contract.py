"""One contract for all face models: what `umo.faces.base.FaceModel` promises."""

import numpy as np
import pytest
import torch

from umo import faces
from umo.errors import BadInput
from umo.faces.base import Face


def test_says_what_it_is(model):
    assert model.name in faces.MODELS
    assert model.licence
    assert model.dimension == 128
    assert model.files and all(path.is_file() for path in model.files)
    assert isinstance(model.differentiable, bool)


def test_loads_once_and_refuses_unknown_names():
    assert faces.load("opencv_zoo") is faces.load("opencv_zoo")
    with pytest.raises(BadInput, match=r"no face model 'arcface': choose one of opencv_zoo, dlib, insightface"):
        faces.load("arcface")


def test_detects_with_landmarks_in_order(model, group):
    (found,) = model.detect([group])
    assert len(found) == 6
    assert [face.score for face in found] == sorted((face.score for face in found), reverse=True)
    for face in found:
        assert face.box.shape == (4,) and face.box.dtype == np.float32
        assert face.landmarks.shape == (5, 2) and face.landmarks.dtype == np.float32
        assert 30 < face.side < 100
        left_eye, right_eye, nose, left_mouth, right_mouth = face.landmarks
        assert left_eye[0] < right_eye[0] and left_mouth[0] < right_mouth[0]
        assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])
        margin = 0.1 * face.side
        assert (face.landmarks > face.box[:2] - margin).all() and (face.landmarks < face.box[2:] + margin).all()


def test_embeds_unit_vectors_picture_by_picture(model, group, portrait):
    pictures = [portrait(1, 1), group, portrait(2, 1)]
    found = model.detect(pictures)
    vectors = model.embed(pictures, found)
    assert vectors.shape == (8, model.dimension) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    alone = [model.embed([picture], [[face]]) for picture, row in zip(pictures, found, strict=True) for face in row]
    np.testing.assert_allclose(vectors, np.concatenate(alone), atol=1e-4)
    backwards = model.embed([group], [found[1][::-1]])
    np.testing.assert_allclose(backwards[::-1], vectors[1:7], atol=1e-4)


def test_nothing_in_nothing_out(model):
    plain = np.full((96, 128, 3), 127, np.uint8)
    assert model.detect([]) == []
    assert model.detect([plain, plain]) == [[], []]
    assert model.embed([], []).shape == (0, model.dimension)
    empty = model.embed([plain], [[]])
    assert empty.shape == (0, model.dimension) and empty.dtype == np.float32
    assert model.embed(torch.zeros(2, 3, 64, 64), [[], []]).shape == (0, model.dimension)


def test_boxes_follow_the_picture(model, portrait):
    picture, shift = portrait(1, 1), 24
    moved = np.pad(picture, ((shift, 0), (shift, 0), (0, 0)), mode="edge")
    (before,), (after,) = model.detect([picture, moved])
    tolerance = 0.06 * before.side  # dlib's box sizes come in steps of 6/5, so the centre is compared
    centres = [(face.box[:2] + face.box[2:]) / 2 for face in (before, after)]
    np.testing.assert_allclose(centres[1], centres[0] + shift, atol=tolerance)
    np.testing.assert_allclose(after.landmarks, before.landmarks + shift, atol=tolerance)


def test_finds_small_faces_in_the_pictures_own_pixels(model, portrait):
    """A scene of 64 px height: two heads of about 35 px."""
    heads = [portrait(person, 1)[40:300:5, 30:246:5] for person in (1, 3)]
    scene = np.full((64, 160, 3), 120, np.uint8)
    for head, left in zip(heads, (10, 100), strict=True):
        scene[6 : 6 + head.shape[0], left : left + head.shape[1]] = head
    (found,) = model.detect([scene])
    centres = sorted(float(face.box[[0, 2]].mean()) for face in found)
    np.testing.assert_allclose(centres, [32, 122], atol=6)
    assert all(20 < face.side < 48 for face in found)


def test_same_person_is_nearer_than_strangers(model, portrait):
    people = [5, 6, 7, 8]
    pictures = [portrait(person, number) for person in people for number in (1, 6)]
    found = [[max(row, key=lambda face: face.side)] for row in model.detect(pictures)]
    vectors = model.embed(pictures, found)
    cosines = vectors @ vectors.T
    same = [cosines[2 * i, 2 * i + 1] for i in range(len(people))]
    strangers = [cosines[i, j] for i in range(8) for j in range(8) if i // 2 != j // 2]
    assert min(same) > max(strangers)
    assert abs(np.mean(strangers)) < 0.2
    if not np.isnan(model.same_person_cosine):
        assert np.mean(np.array(strangers) >= model.same_person_cosine) < 0.1
        assert model.same_person_cosine < min(same)


def test_a_tensor_is_the_same_picture(model, portrait, tensor_of):
    """To the bytes that insightface rounds an array's crops to."""
    pictures = [np.ascontiguousarray(portrait(*which)[::2, ::2]) for which in ((1, 1), (2, 3))]
    tensor = tensor_of(*pictures)
    found = model.detect(pictures)
    for (one,), (other,) in zip(found, model.detect(tensor), strict=True):
        np.testing.assert_allclose(one.landmarks, other.landmarks, atol=0.1)
    vectors = model.embed(tensor, found)
    assert isinstance(vectors, torch.Tensor) and vectors.dtype == torch.float32
    assert np.abs(vectors.numpy() - model.embed(pictures, found)).max() < (5e-3 if "insight" in model.name else 1e-4)
    assert (vectors.requires_grad, tensor.requires_grad) == (False, False)


def test_faces_of_another_detector_will_do(models, model, portrait):
    picture = portrait(1, 1)
    own = model.embed([picture], model.detect([picture]))
    for other in models.values():
        vectors = model.embed([picture], other.detect([picture]))
        assert float((own * vectors).sum()) > 0.8


def test_does_not_change_the_picture(model, portrait):
    picture = portrait(1, 1)
    before = picture.copy()
    model.embed([picture], model.detect([picture]))
    np.testing.assert_array_equal(picture, before)


def test_a_face_half_outside_is_embedded(model, portrait):
    picture = portrait(1, 1)
    face = Face(np.array([-40, -40, 80, 80], np.float32), np.array([[0, 0], [40, 0], [20, 20], [5, 40], [35, 40]]), 1.0)
    vectors = model.embed([picture], [[face]])
    assert np.isfinite(vectors).all() and abs(np.linalg.norm(vectors) - 1) < 1e-5
