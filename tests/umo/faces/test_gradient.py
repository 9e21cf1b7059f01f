"""The reward's path: a gradient from the embedding to the pixels of every face, and to nothing else."""

import numpy as np
import pytest
import torch

from umo import faces
from umo.faces.align import similarity, warp


@pytest.fixture(scope="module")
def zoo():
    return faces.load("opencv_zoo")


def test_the_gradient_reaches_every_face_of_every_picture(zoo, group, portrait, tensor_of):
    size = portrait(1, 1).shape
    pictures = tensor_of(group[: size[0], 40 : 40 + size[1]], portrait(1, 1), np.full(size, 90, np.uint8))
    pictures.requires_grad_()
    found = zoo.detect(pictures)
    assert [len(row) > 0 for row in found] == [True, True, False] and len(found[0]) > 1
    vectors = zoo.embed(pictures, found)
    vectors.sum().backward()
    power = pictures.grad.abs().sum(1)
    for picture, row in enumerate(found):
        for face in row:
            x, y = face.landmarks[2].round().astype(int)
            assert power[picture, y - 3 : y + 4, x - 3 : x + 4].min() > 0
    assert power[2].max() == 0
    assert power[1, :20].max() == 0, "the margin far above the face is not in its crop"


def test_each_embedding_depends_on_its_own_face_only(zoo, group, tensor_of):
    picture = tensor_of(group).requires_grad_()
    found = zoo.detect(picture)[0][:3]
    vectors = zoo.embed(picture, [found])
    for face, vector in zip(found, vectors, strict=True):
        (gradient,) = torch.autograd.grad(vector.sum(), picture, retain_graph=True)
        power = gradient[0].abs().sum(0)
        x0, y0, x1, y1 = np.concatenate([face.box[:2] - face.side, face.box[2:] + face.side]).round().astype(int)
        outside = power.clone()
        outside[max(y0, 0) : y1, max(x0, 0) : x1] = 0
        assert outside.max() == 0 and power.max() > 0


def test_nothing_of_the_networks_is_trained(zoo, portrait, tensor_of):
    picture = tensor_of(portrait(1, 1)).requires_grad_()
    zoo.embed(picture, zoo.detect(picture)).sum().backward()
    for network in (zoo._embedder.torch, zoo._detector.torch):
        assert not list(network.parameters())
        assert not any(buffer.requires_grad or buffer.grad is not None for buffer in network.buffers())


def test_the_gradient_is_the_finite_difference(zoo, portrait, tensor_of):
    """In float64, landmarks held: the slope along random directions, to 1e-4 of it."""
    picture = tensor_of(portrait(1, 1)[::3, ::3]).double()
    found = zoo.detect(picture)
    generator = torch.Generator().manual_seed(0)
    anchor = torch.nn.functional.normalize(torch.randn(128, generator=generator, dtype=torch.float64), dim=0)

    def cosine(pixels):
        return (zoo.embed(pixels, found) @ anchor).sum()

    pixels = picture.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cosine(pixels), pixels)
    assert gradient.dtype == torch.float64
    for _ in range(3):
        direction = torch.randn(picture.shape, generator=generator, dtype=torch.float64)
        step = 1e-9  # a larger one crosses kinks of the PReLUs, of which there are a million
        with torch.no_grad():
            slope = (cosine(picture + step * direction) - cosine(picture - step * direction)) / (2 * step)
        assert float(slope) == pytest.approx(float((gradient * direction).sum()), rel=1e-4)


def test_the_gradient_leads_to_the_anchor(zoo, portrait, tensor_of):
    """Small steps up the gradient raise the cosine to somebody else."""
    picture = tensor_of(portrait(1, 1))
    found, other = zoo.detect(picture), tensor_of(portrait(2, 1))
    anchor = zoo.embed(other, zoo.detect(other))
    cosines = []
    for _ in range(4):
        picture.requires_grad_()
        cosine = (zoo.embed(picture, found) * anchor).sum()
        (gradient,) = torch.autograd.grad(cosine, picture)
        picture = (picture + 0.004 * gradient.sign()).detach().clamp(-1, 1)
        cosines.append(float(cosine.detach()))
    assert cosines == sorted(cosines) and cosines[-1] > cosines[0] + 0.1


def test_float32_and_float64_agree_in_turn(zoo, portrait, tensor_of):
    picture = tensor_of(portrait(1, 1))
    found = zoo.detect(picture)
    before, double, after = (zoo.embed(value, found) for value in (picture, picture.double(), picture))
    assert (before.dtype, double.dtype) == (torch.float32, torch.float64)
    torch.testing.assert_close(before, after, rtol=0, atol=0)
    torch.testing.assert_close(before.double(), double, rtol=0, atol=1e-5)


def test_warp_reads_the_named_picture_and_is_black_outside():
    images = torch.stack([torch.full((3, 40, 50), value) for value in (10.0, 20.0, 30.0)])
    landmarks = np.array([[15, 15], [30, 15], [22, 22], [17, 30], [28, 30]], np.float64)
    matrices = similarity(np.stack([landmarks, landmarks, landmarks + 1000, landmarks]))
    crops = warp(images, np.array([2, 0, 1, 2]), matrices)
    assert crops.shape == (4, 3, 112, 112)
    assert [round(float(crop[:, 56, 56].mean()), 3) for crop in crops] == [30, 10, 0, 30]
    torch.testing.assert_close(crops[0], crops[3])


def test_similarity_recovers_a_known_transform():
    generator = np.random.default_rng(0)
    template = generator.uniform(0, 100, (5, 2))
    angle, scale, shift = 0.4, 2.5, np.array([7.0, -3.0])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved = template @ (scale * turn).T + shift
    (matrix,) = similarity(moved[None], template)
    np.testing.assert_allclose(moved @ matrix[:, :2].T + matrix[:, 2], template, atol=1e-9)
    (mirrored,) = similarity((template * [-1, 1])[None], template)
    assert np.linalg.det(mirrored[:, :2]) > 0, "never a reflection"
    (point,) = similarity(np.ones((1, 5, 2)), template)
    assert np.isfinite(point).all()
