"""dlib's two face networks in torch, batched, on any device: the ResNet that describes and the CNN that finds.

Their weights are read from dlib's own files. As dlib builds them: dnn_face_recognition_ex.cpp and
dnn_mmod_face_detection_ex.cpp of its examples (King, 2016).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from umo.errors import BadInput

LEVELS = [(32, "same same same"), (64, "down same same same"), (128, "down same same"), (256, "down same same")]
FOUND = [(3, 16, 2), (16, 32, 2), (32, 32, 2), (32, 45, 1), (45, 45, 1), (45, 45, 1)]  # channels in and out, stride
EPSILON = 1e-4  # of dlib's batch normalisation
MEAN = (122.782, 117.001, 104.298)


def _header(*shape: int) -> bytes:
    """A tensor's head in dlib's file: version 2 and its four sides, each with its length before it."""
    numbers = (2, *shape, *[1] * (4 - len(shape)))
    sides = [number.to_bytes((number.bit_length() + 7) // 8, "little") for number in numbers]
    return b"".join(bytes([len(side)]) + side for side in sides)


class _Weights:
    """The tensors of a file, read from the input to the output."""

    def __init__(self, path: Path) -> None:
        self.path, self.data, self.place = path, path.read_bytes(), 0

    def next(self, *shape: int) -> np.ndarray:
        """The next tensor of this shape, flat.

        Raises:
            BadInput: there is none.
        """
        head, count = _header(*shape), int(np.prod(shape))
        start = self.data.find(head, self.place) + len(head)
        if start < len(head) or start + 4 * count > len(self.data):
            raise BadInput(f"{self.path}: not the network that dlib ships under this name: install its package again")
        self.place = start + 4 * count
        return np.frombuffer(self.data, "<f4", count, start)

    def convolution(self, inputs: int, outputs: int, side: int, then: str = "") -> tuple[Tensor, Tensor]:
        """Kernel (outputs, inputs, side, side) and bias (outputs,), with what follows folded in.

        Args:
            then: "affine" or "normalisation" (a batch's, by its running statistics).
        """
        flat = self.next(inputs * outputs * side**2 + outputs)
        kernel, bias = flat[:-outputs].reshape(outputs, inputs, side, side), flat[-outputs:]
        if then:
            gain, shift = self.next(2 * outputs).reshape(2, outputs)
            if then == "normalisation":
                _, _, mean, variance = (self.next(1, outputs) for _ in range(4))  # of the last batch, then running
                gain = gain / np.sqrt(variance + EPSILON)
                shift = shift - gain * mean
            kernel, bias = kernel * gain[:, None, None, None], bias * gain + shift
        return torch.from_numpy(np.array(kernel)).contiguous(memory_format=torch.channels_last), torch.tensor(bias)


class _Network(nn.Module):
    """Weights are buffers: nothing is trained."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.strides: list[int] = []

    def add(self, weights: tuple[Tensor, Tensor], stride: int = 1) -> None:
        for name, value in zip("wb", weights, strict=True):
            self.register_buffer(f"{name}{len(self.strides)}", value)
        self.strides.append(stride)

    def convolve(self, at: int, x: Tensor) -> Tensor:
        """dlib pads a convolution to its own size where the stride is 1, and not at all where it is 2."""
        kernel, stride = self.get_buffer(f"w{at}"), self.strides[at]
        return F.conv2d(x, kernel, self.get_buffer(f"b{at}"), stride, kernel.shape[-1] // 2 if stride == 1 else 0)

    def normalised(self, pictures: Tensor) -> Tensor:
        return ((pictures - self.mean) / 256).contiguous(memory_format=torch.channels_last)


class Describer(_Network):
    """dlib_face_recognition_resnet_model_v1.dat: (B, 3, 150, 150) RGB in 0..255 -> (B, 128), not of unit length."""

    last: Tensor

    def __init__(self, path: Path) -> None:
        super().__init__()
        weights, inputs = _Weights(path), 32
        self.add(weights.convolution(3, 32, 7, "affine"), 2)
        self.blocks: list[bool] = []
        for outputs, blocks in [*LEVELS, (256, "down")]:
            for block in blocks.split():
                down = block == "down"
                self.add(weights.convolution(inputs, outputs, 3, "affine"), 2 if down else 1)
                self.add(weights.convolution(outputs, outputs, 3, "affine"))
                self.blocks.append(down)
                inputs = outputs
        self.register_buffer("last", torch.from_numpy(np.array(weights.next(256, 128).reshape(256, 128))))

    def forward(self, chips: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.convolve(0, self.normalised(chips))), 3, 2)
        for block, down in enumerate(self.blocks):
            y = self.convolve(2 * block + 2, F.relu(self.convolve(2 * block + 1, x)))
            kept = F.avg_pool2d(x, 2, 2) if down else x
            missing = y.shape[1] - kept.shape[1]  # dlib adds what is not there as 0, in channels, rows and columns
            rows, columns = (kept.shape[side] - y.shape[side] for side in (2, 3))
            y = F.pad(y, (0, max(columns, 0), 0, max(rows, 0)))
            kept = F.pad(kept, (0, max(-columns, 0), 0, max(-rows, 0), 0, missing))
            x = F.relu(y + kept)
        return x.mean((2, 3)) @ self.last


class Finder(_Network):
    """mmod_human_face_detector.dat: pictures (B, 3, H, W) RGB in 0..255 -> a score a place, a face where it is > 0.

    One window of 80 x 80 px; a face of another size is found where the picture is scaled to it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        weights = _Weights(path)
        for inputs, outputs, stride in FOUND:
            self.add(weights.convolution(inputs, outputs, 5, "normalisation"), stride)
        self.add(weights.convolution(45, 1, 9))

    def forward(self, pictures: Tensor) -> Tensor:
        """(B, h, w), each 8 px apart; the window of the first has its middle at (14, 14)."""
        x = self.normalised(pictures)
        for layer in range(len(FOUND)):
            x = F.relu(self.convolve(layer, x))
        return self.convolve(len(FOUND), x)[:, 0]
