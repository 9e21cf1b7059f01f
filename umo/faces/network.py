"""A network of an ONNX file in its two forms, onnxruntime for arrays and torch for gradients, and how each is fed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from onnxruntime import InferenceSession
    from torch import Tensor

    from umo.faces.onnx_graph import Graph
    from umo.faces.onnx_torch import OnnxTorch

CPU_BATCH = 8  # more do not fit a CPU's caches
GPU_BATCH = 16


class Network:
    """A file's network, loaded when first asked for: who only wants the files' names need not wait."""

    def __init__(self, path: Path, threads: int) -> None:
        self.path, self.threads = path, threads

    @cached_property
    def graph(self) -> Graph:
        from umo.faces.onnx_graph import read_graph

        return read_graph(self.path)

    @cached_property
    def session(self) -> InferenceSession:
        from umo.faces.onnx_graph import session

        return session(self.graph, self.threads)

    @cached_property
    def torch(self) -> OnnxTorch:
        from umo.faces.onnx_torch import OnnxTorch

        return OnnxTorch(self.graph)

    def __call__(self, batch: np.ndarray, device: str | None) -> dict[str, np.ndarray]:
        """Its outputs for arrays (B, 3, H, W) float32: by torch on a device, by onnxruntime where that is None."""
        if device is None:
            return dict(zip(self.graph.outputs, self.session.run(None, {self.graph.input: batch}), strict=True))
        import torch

        with torch.no_grad():
            found = self.run(torch.from_numpy(batch).to(device))
        return {name: value.cpu().numpy() for name, value in found.items()}

    def run(self, batch: Tensor) -> dict[str, Tensor]:
        """Its outputs for (B, 3, H, W), where the tensor is and in its dtype, with their gradient."""
        import torch

        network = self.torch.to(batch, memory_format=layout(batch.device))  # type: ignore[call-overload]
        if (size := fixed_batch(batch.device)) is None:
            return network(batch)
        parts = [
            {name: found[:real] for name, found in network(part).items()} for part, real in in_batches(batch, size)
        ]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def embed(self, crops: Tensor) -> Tensor:
        """Its one output for any number of crops (n, 3, side, side), as unit vectors (n, d) with their gradient."""
        import torch
        import torch.nn.functional as F

        crops = crops.contiguous(memory_format=layout(crops.device))
        at_once = CPU_BATCH if crops.device.type == "cpu" else len(crops)
        vectors = torch.cat([next(iter(self.run(part).values())) for part in crops.split(at_once)])
        return F.normalize(vectors, dim=1)


def layout(device: torch.device) -> torch.memory_format:
    """How pictures and kernels lie in memory where that is fastest.

    Channels last on a CPU. On CUDA that layout sends depthwise convolutions in float32 to cuDNN instead of PyTorch's
    own kernels (`use_cudnn_depthwise` in aten/src/ATen/native/Convolution.cpp); likely that is why they took 5 ms each
    on an H200.
    """
    import torch

    return torch.channels_last if device.type == "cpu" else torch.contiguous_format


def fixed_batch(device: torch.device) -> int | None:
    """How many pictures a network is always given at once; None for as many as there are.

    cuDNN chooses and builds its kernels anew for every shape, and the number of faces differs at every update.
    """
    return GPU_BATCH if device.type == "cuda" else None


def in_batches(tensor: Tensor, size: int) -> Iterator[tuple[Tensor, int]]:
    """Batches of one size, the last filled with 0, and how many of each are real: a result never depends on its
    neighbours, for a network rounds differently at another batch size."""
    import torch.nn.functional as F

    for part in tensor.split(size):
        yield F.pad(part, (0, 0) * (part.ndim - 1) + (0, size - len(part))), len(part)
