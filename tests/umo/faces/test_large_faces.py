"""A face larger than its crop: every pixel has a gradient, and what is seen is the picture made smaller."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from umo import faces
from umo.faces.align import CROP, TEMPLATE, crops_of, similarity, warp
from umo.faces.base import Face


@pytest.fixture(scope="module")
def zoo():
    return faces.load("opencv_zoo")


def enlarged(picture: torch.Tensor, face: Face, by: float) -> tuple[torch.Tensor, Face]:
    """A picture (1, 3, H, W) and a face in it, both `by` times as large."""
    size = [round(side * by) for side in picture.shape[2:]]
    larger = F.interpolate(picture, size, mode="bicubic").clamp(-1, 1)
    return larger, Face(face.box * by, ((face.landmarks + 0.5) * by - 0.5).astype(np.float32), face.score)


def test_the_gradient_reaches_every_pixel_of_a_large_face(zoo, portrait, tensor_of) -> None:
    picture = tensor_of(portrait(1, 1))
    ((face,),) = zoo.detect(picture)
    large, face = enlarged(picture, face, 448 / face.side)
    large.requires_grad_()
    (gradient,) = torch.autograd.grad(zoo.embed(large, [[face]]).sum(), large)
    x0, y0, x1, y1 = face.box.round().astype(int)
    of_face = (0, slice(None), slice(y0, y1), slice(x0, x1))
    assert (gradient[of_face].abs().sum(0) > 0).float().mean() > 0.94, "the rest of the box is outside the crop"
    aliased = warp(large, np.zeros(1, int), similarity(face.landmarks[None]))
    (gradient,) = torch.autograd.grad(aliased.sum(), large)
    assert (gradient[of_face].abs().sum(0) > 0).float().mean() < 0.2


@pytest.mark.parametrize("by", [2, 3, 5])
def test_a_large_face_is_embedded_as_the_picture_made_smaller(zoo, portrait, tensor_of, by: int) -> None:
    """With grain too fine for the crop, which sampling a few pixels would take for features."""
    picture = tensor_of(portrait(1, 1)[::2, ::2])
    ((face,),) = zoo.detect(picture)
    linear = similarity(face.landmarks[None])[0, :, :2]
    picture, face = enlarged(picture, face, abs(np.linalg.det(linear)) ** 0.5)  # as large as its crop
    large, there = enlarged(picture, face, by)
    large = large + 0.2 * torch.randn(large.shape, generator=torch.Generator().manual_seed(0))
    smaller = F.avg_pool2d(large, by)
    expected, found = zoo.embed(smaller, [[face]]), zoo.embed(large, [[there]])
    aliased = zoo._embedder.embed(warp((large + 1) * 127.5, np.zeros(1, int), similarity(there.landmarks[None])))
    assert float((expected * found).sum()) > 0.98
    assert float((expected * found).sum()) > float((expected * aliased).sum()) + 0.05


def test_faces_of_all_sizes_in_one_batch_are_cut_out_where_they_are() -> None:
    """Of pictures whose values are their coordinates it is known what is cut out; small faces are `warp`'s own."""
    height, width = 600, 500
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pictures = torch.stack([torch.stack([x, y, x + y]), torch.stack([y, x, x - y])]).double()
    sides = [[60.0, 448.0], [112.0, 230.0, 160.0]]
    found = [
        [Face(np.zeros(4, np.float32), (TEMPLATE * side / CROP + [20.3, 40.6]).astype(np.float32), 1.0) for side in row]
        for row in sides
    ]
    crops = crops_of(pictures, found)
    points = np.mgrid[:CROP, :CROP][::-1]
    for crop, side, mirrored in zip(crops, [*sides[0], *sides[1]], [False, False, True, True, True], strict=True):
        across, down = points * side / CROP + np.array([20.3, 40.6])[:, None, None]
        expected = (down, across) if mirrored else (across, down)
        np.testing.assert_allclose(crop[:2].numpy(), expected, atol=1e-3 * side / 60)
    index, every = np.array([0, 0, 1, 1, 1]), np.array([face.landmarks for row in found for face in row])
    sampled = warp(pictures, index, similarity(every))
    assert torch.equal(crops[[0, 2, 4]], sampled[[0, 2, 4]]), "steps of 0.5, 1 and 1.4 pixels are not averaged"
    assert not torch.equal(crops[[1, 3]], sampled[[1, 3]])
