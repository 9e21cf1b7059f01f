"""A small ONNX interpreter in PyTorch: frozen weights, and a gradient from the output to the input."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from umo.errors import BadInput
from umo.faces.onnx_graph import Graph, Node

Attributes = dict[str, Any]


class OnnxTorch(nn.Module):
    """The network of a graph, in float32 or (after `.double()`) float64, on any device.

    The weights are buffers: nothing of it is trained, and `requires_grad` is false everywhere. Building it raises
    BadInput for an operation, or a form of one, that this interpreter does not know.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        for node in graph.nodes:
            _check(node, graph)
        self.nodes, self.input, self.outputs = graph.nodes, graph.input, graph.outputs
        self.buffer_names: dict[str, str] = {}
        for name, value in graph.constants.items():
            if value.dtype == np.float32:
                self.buffer_names[name] = f"weight{len(self.buffer_names)}"
                weight = torch.from_numpy(np.array(value))
                if weight.ndim == 4:  # kernels lie channels last, which is faster
                    weight = weight.contiguous(memory_format=torch.channels_last)
                self.register_buffer(self.buffer_names[name], weight)
        self.eval()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) in the network's own range and channel order -> its outputs by name."""
        values = {name: self.get_buffer(buffer) for name, buffer in self.buffer_names.items()}
        values[self.input] = x
        for node in self.nodes:
            inputs = [values[name] for name in node.inputs if name in values]
            values[node.output] = OPERATIONS[node.op](inputs, node.attributes)
        return {name: values[name] for name in self.outputs}


def _conv(x: list[Tensor], a: Attributes) -> Tensor:
    bias = x[2] if len(x) > 2 else None
    padding = a.get("pads", [0, 0, 0, 0])[:2]
    return F.conv2d(x[0], x[1], bias, a.get("strides", 1), padding, a.get("dilations", 1), a.get("group", 1))


def _batch_norm(x: list[Tensor], a: Attributes) -> Tensor:
    value, gain, shift, mean, variance = x
    return F.batch_norm(value, mean, variance, gain, shift, False, 0.0, a.get("epsilon", 1e-5))


def _keep_batch_and_channels(x: list[Tensor], a: Attributes) -> Tensor:
    """YuNet's heads, (B, H, W, C) -> (B, H W, C): the file's own shape fixes B to 1."""
    return x[0].flatten(1, 2)


OPERATIONS: dict[str, Callable[[list[Tensor], Attributes], Tensor]] = {
    "Add": lambda x, a: x[0] + x[1],
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "Flatten": lambda x, a: x[0].flatten(1),
    "Identity": lambda x, a: x[0],
    "Gemm": lambda x, a: F.linear(x[0], x[1], x[2]),
    "MaxPool": lambda x, a: F.max_pool2d(x[0], a["kernel_shape"], a["strides"]),
    "Mul": lambda x, a: x[0] * x[1],
    "PRelu": lambda x, a: F.prelu(x[0], x[1].flatten()),
    "Relu": lambda x, a: F.relu(x[0]),
    "Reshape": _keep_batch_and_channels,
    "Resize": lambda x, a: F.interpolate(x[0], scale_factor=2, mode="nearest"),
    "Sigmoid": lambda x, a: torch.sigmoid(x[0]),
    "Sub": lambda x, a: x[0] - x[1],
    "Transpose": lambda x, a: x[0].permute(*a["perm"]),
}


def _check(node: Node, graph: Graph) -> None:
    """Refuse what would be computed wrongly, before anything is computed."""
    a = node.attributes
    pads = a.get("pads", [0, 0, 0, 0])
    scales = a.get("alpha", 1.0), a.get("beta", 1.0)
    last = graph.constants.get(node.inputs[-1])  # of Reshape the shape, of Resize the scales
    forms = {
        "Conv": pads[:2] == pads[2:],
        "Flatten": a.get("axis", 1) == 1,
        "Gemm": len(node.inputs) == 3 and a.get("transB") == 1 and not a.get("transA") and scales == (1, 1),
        "MaxPool": not any(pads) and not a.get("ceil_mode"),
        "Reshape": last is not None and last.shape == (3,) and last[0] == 1 and last[1] == -1,
        "Resize": a.get("mode") == b"nearest" and last is not None and last.tolist() == [1, 1, 2, 2],
    }
    if node.op not in OPERATIONS:
        raise BadInput(f"{graph.path}: ONNX operation {node.op} is not among {', '.join(OPERATIONS)}: use another file")
    if not forms.get(node.op, True):
        raise BadInput(f"{graph.path}: this form of ONNX operation {node.op} is not supported ({a}): use another file")
