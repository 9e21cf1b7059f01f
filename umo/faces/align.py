"""From landmarks to the upright crop that an embedder reads: the similarity transform, and two warps that agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from umo.faces.base import Face

if TYPE_CHECKING:
    from torch import Tensor

AS_NEXT = 0.25  # of a pixel: so little below a whole number counts as that
CROP = 112

# The five points of ArcFace and SFace in a 112x112 crop, in the order of `Face.landmarks`
# (OpenCV's FaceRecognizerSF::alignCrop, insightface.utils.face_align.arcface_dst).
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]], np.float64
)


def landmarks_of(faces: Sequence[Face]) -> np.ndarray:
    """(n, 5, 2) float64, also for no face."""
    return np.array([face.landmarks for face in faces], np.float64).reshape(-1, 5, 2)


def similarity(landmarks: np.ndarray, template: np.ndarray = TEMPLATE) -> np.ndarray:
    """The rotation, scale and shift (no reflection) that bring landmarks closest to a template.

    The least squares of Umeyama (1991, equations 40-42). In the plane a rotation with a scale is one complex
    factor, so the optimum is a quotient of two sums and needs no SVD.

    Args:
        landmarks: (n, k, 2) in pixels of the picture.
        template: (k, 2) in pixels of the crop.

    Returns:
        (n, 2, 3) float64, picture -> crop. Landmarks that all fall on one point give the scale 0 (an even crop).
    """
    source = np.asarray(landmarks, np.float64) @ np.array([1, 1j])
    target = np.asarray(template, np.float64) @ np.array([1, 1j])
    source_mean, target_mean = source.mean(1, keepdims=True), target.mean()
    centred = source - source_mean
    power = (np.abs(centred) ** 2).sum(1)
    factor = (centred.conj() * (target - target_mean)).sum(1) / np.maximum(power, 1e-12)
    shift = target_mean - factor * source_mean[:, 0]
    a, b = factor.real, factor.imag
    return np.stack([np.stack([a, -b, shift.real], -1), np.stack([b, a, shift.imag], -1)], -2)


def invert(matrices: np.ndarray) -> np.ndarray:
    """(n, 2, 3) affine maps -> the maps back; a map that cannot be inverted gives one far outside any picture."""
    linear, shift = matrices[:, :, :2], matrices[:, :, 2:]
    singular = np.abs(np.linalg.det(linear)) < 1e-9
    inverse = np.linalg.inv(np.where(singular[:, None, None], np.eye(2), linear))
    return np.concatenate([inverse, np.where(singular[:, None, None], -1e6, -inverse @ shift)], -1)


def warp(images: Tensor, index: np.ndarray, matrices: np.ndarray, size: int = CROP) -> Tensor:
    """Cut aligned crops out of pictures, differentiably in the pixels (bilinear; black outside).

    The faces of one picture are sampled side by side from that picture, so no picture is copied.

    Args:
        images: (B, C, H, W), any float type and device, black is 0.
        index: (n,) the picture of each face, ascending or not.
        matrices: (n, 2, 3) picture -> crop, from `similarity`.
        size: the side of the crops in pixels.

    Returns:
        (n, C, size, size), in the order of `index`.
    """
    import torch
    import torch.nn.functional as F

    pictures, height, width = len(images), *images.shape[-2:]
    index = np.asarray(index, np.int64)
    if not len(index):
        return images.new_zeros((0, images.shape[1], size, size))
    places = np.array([np.count_nonzero(index[:i] == picture) for i, picture in enumerate(index)])
    rows = int(places.max()) + 1
    y, x = np.mgrid[:size, :size].astype(np.float64)
    crop_points = np.stack([x, y, np.ones_like(x)], -1)
    points = np.einsum("nij,yxj->nyxi", invert(np.asarray(matrices, np.float64)), crop_points)
    # grid_sample wants -1 and 1 in the middle of the first and the last pixel.
    grid = np.full((pictures, rows, size, size, 2), -10.0)
    grid[index, places] = 2 * points / np.array([max(width - 1, 1), max(height - 1, 1)]) - 1
    flow = torch.from_numpy(grid.reshape(pictures, rows * size, size, 2)).to(images)
    crops = F.grid_sample(images, flow, mode="bilinear", padding_mode="zeros", align_corners=True)
    crops = crops.reshape(pictures, images.shape[1], rows, size, size).transpose(1, 2)
    return crops[torch.from_numpy(index), torch.from_numpy(places)]


def crops_of(
    images: Tensor, faces: Sequence[Sequence[Face]], template: np.ndarray = TEMPLATE, size: int = CROP
) -> Tensor:
    """The aligned crops of all faces, picture by picture, differentiably in the pixels and without aliasing.

    Bilinear sampling reads all pixels of a face up to twice as large as its crop, and ever fewer of a larger one's, the
    others of which would get no gradient. So a face is cut out of the picture averaged over blocks of k x k pixels, k
    being the pixels that lie between two of the crop's, rounded up from .75 on and down below; 1 leaves the picture
    what it is.

    Args:
        images: (B, C, H, W), any float type and device, black is 0.
        faces: of each picture.
        template: (5, 2) where the landmarks come to lie in the crop.
        size: the side of the crops in pixels.

    Returns:
        (n, C, size, size).
    """
    import torch
    import torch.nn.functional as F

    index = np.repeat(np.arange(len(images)), [len(found) for found in faces])
    matrices = similarity(landmarks_of([face for found in faces for face in found]), template)
    scales = np.sqrt(np.abs(np.linalg.det(matrices[:, :, :2])))
    blocks = np.floor(1 / scales.clip(1 / min(images.shape[-2:]), 1) + AS_NEXT).astype(int)
    if (blocks == 1).all():
        return warp(images, index, matrices, size)
    crops = images.new_empty((len(index), images.shape[1], size, size))
    for block in np.unique(blocks):
        (rows,) = np.nonzero(blocks == block)
        averaged = F.avg_pool2d(images, int(block), ceil_mode=True, count_include_pad=False)
        # The middle of block p is at block (p + .5) - .5 in the picture.
        linear, shift = matrices[rows, :, :2] * block, matrices[rows] @ [(block - 1) / 2, (block - 1) / 2, 1]
        reduced = np.concatenate([linear, shift[..., None]], -1)
        crops = crops.index_copy(0, torch.from_numpy(rows).to(crops.device), warp(averaged, index[rows], reduced, size))
    return crops


def warp_array(image: np.ndarray, matrices: np.ndarray, size: int = CROP) -> np.ndarray:
    """`warp` of one picture for inference: (H, W, 3) uint8 or float and (n, 2, 3) -> (n, 3, size, size) float32.

    OpenCV on float32 agrees with `warp` to about .01 of 255 and is ten times faster; on uint8 it would round colours.
    """
    crops = np.empty((len(matrices), 3, size, size), np.float32)
    picture = image.astype(np.float32)
    for crop, matrix in zip(crops, matrices, strict=True):
        crop[:] = cv2.warpAffine(picture, matrix, (size, size), flags=cv2.INTER_LINEAR).transpose(2, 0, 1)
    return crops
