"""An ONNX file as plain float constants and nodes: dequantised, batch normalisation folded, ready for two runtimes.

`umo.faces.onnx_torch` runs such a graph differentiably; `session` gives it to onnxruntime, which is the fastest on a
CPU once the weights are plain floats (it refuses both files of OpenCV Zoo as they are shipped, and dequantises block
by block at every call where it does not).
"""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from umo.errors import BadInput


@dataclass(slots=True)
class Node:
    """One operation: names of its inputs and its output, and ONNX attributes as Python values."""

    op: str
    inputs: list[str]
    output: str
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Graph:
    """A network with one input, read from the file at `path`."""

    path: Path
    input: str
    outputs: list[str]  # in the file's order
    nodes: list[Node]  # in an order that can be run
    constants: dict[str, np.ndarray]  # float32 once dequantised; shapes of `Reshape` stay integers
    opset: int


def read_graph(path: Path) -> Graph:
    """Read an ONNX file; every weight that can be computed without the input is computed.

    Raises BadInput for a file that is not ONNX, or has not one input.
    """
    try:
        model = onnx.load(str(path))
    except Exception as error:
        raise BadInput(f"{path}: not an ONNX file ({type(error).__name__}): install its package again") from error
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes: list[Node] = []
    for proto in model.graph.node:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute}
        node = Node(proto.op_type, list(proto.input), proto.output[0], attributes)
        if node.op == "Reshape" and constants.get(node.inputs[1], np.zeros(3)).size == 2:
            node = Node("Flatten", node.inputs[:1], node.output)  # an exporter that knew the shape of its example
        value = _constant(node, constants)
        if value is None:
            nodes.append(node)
        else:
            constants[node.output] = value
    nodes = _drop_dropout(_fold_batch_norm(nodes, constants))
    used = {name for node in nodes for name in node.inputs}
    # MXNet's exporter declares every weight as an input as well: the true input is the one without a value.
    inputs = [value.name for value in model.graph.input if value.name in used and value.name not in constants]
    if len(inputs) != 1:
        raise BadInput(f"{path}: an ONNX network with one input is needed, this one has {len(inputs)}: {inputs}")
    return Graph(
        path=path,
        input=inputs[0],
        outputs=[value.name for value in model.graph.output],
        nodes=nodes,
        constants={name: constants[name] for name in sorted(used) if name in constants},
        opset=next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")),
    )


def _constant(node: Node, constants: dict[str, np.ndarray]) -> np.ndarray | None:
    """The value of a node that depends on no input, or None."""
    if node.op == "Constant":
        return numpy_helper.to_array(node.attributes["value"])
    if not all(name in constants for name in node.inputs):
        return None
    if node.op == "DequantizeLinear":
        quantised, scale, zero_point = (constants[name] for name in node.inputs)
        axis, block_size = node.attributes.get("axis", 1), node.attributes.get("block_size", 0)
        return dequantise(quantised, scale, zero_point, axis, block_size)
    if node.op == "Identity":  # PyTorch writes weights that are alike once
        return constants[node.inputs[0]]
    if node.op == "Reshape":
        return constants[node.inputs[0]].reshape(constants[node.inputs[1]])
    return None


def dequantise(
    quantised: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, axis: int = 1, block_size: int = 0
) -> np.ndarray:
    """(quantised - zero_point) * scale in float32, as ONNX defines DequantizeLinear.

    With a `block_size`, each run of that many entries along `axis` has its own scale; without one, `scale` is a
    scalar, or holds one entry for each index of `axis`.
    """
    if block_size:
        kept = range(quantised.shape[axis])
        scale = np.repeat(scale, block_size, axis).take(kept, axis)
        zero_point = np.repeat(zero_point, block_size, axis).take(kept, axis)
    elif scale.ndim == 1 and scale.size > 1:
        shape = [1] * quantised.ndim
        shape[axis] = -1
        scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
    whole = quantised.astype(np.int32) - zero_point.astype(np.int32)
    return whole.astype(np.float32) * scale.astype(np.float32)


def _fold_batch_norm(nodes: list[Node], constants: dict[str, np.ndarray]) -> list[Node]:
    """Convolution followed by batch normalisation becomes one convolution (computed in float64)."""
    readers = Counter(name for node in nodes for name in node.inputs)
    kept: list[Node] = []
    made: dict[str, Node] = {}
    for node in nodes:
        before = made.get(node.inputs[0]) if node.op == "BatchNormalization" else None
        if before is None or before.op != "Conv" or readers[before.output] != 1:
            kept.append(node)
            made[node.output] = node
            continue
        gain, shift, mean, variance = (constants[name].astype(np.float64) for name in node.inputs[1:5])
        gain = gain / np.sqrt(variance + node.attributes.get("epsilon", 1e-5))
        weight = constants[before.inputs[1]].astype(np.float64) * gain[:, None, None, None]
        bias = constants[before.inputs[2]].astype(np.float64) if len(before.inputs) > 2 else 0.0
        names = [f"{node.output}/weight", f"{node.output}/bias"]
        constants[names[0]] = weight.astype(np.float32)
        constants[names[1]] = (shift + (bias - mean) * gain).astype(np.float32)
        before.inputs[1:], before.output = names, node.output
        made[node.output] = before
    return kept


def _drop_dropout(nodes: list[Node]) -> list[Node]:
    """Dropout does nothing outside training: its readers read its input."""
    renamed: dict[str, str] = {}
    kept = []
    for node in nodes:
        node.inputs = [renamed.get(name, name) for name in node.inputs]
        if node.op == "Dropout":
            renamed[node.output] = node.inputs[0]
        else:
            kept.append(node)
    return kept


def session(graph: Graph, threads: int = 0) -> onnxruntime.InferenceSession:
    """The graph in onnxruntime on the CPU, for any batch and any size of picture.

    0 threads are as many as OMP_NUM_THREADS says, which onnxruntime does not read itself, or else all cores.
    """
    options = onnxruntime.SessionOptions()
    given = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    options.intra_op_num_threads = threads or (int(given) if given.isdigit() else 0)
    options.log_severity_level = 3
    # Idle threads that spin would take the cores from torch, which runs in the same process.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(to_onnx(graph).SerializeToString(), options, providers=["CPUExecutionProvider"])


def to_onnx(graph: Graph, side: int | None = None) -> onnx.ModelProto:
    """An ONNX model that onnxruntime accepts and runs fast, for any batch of `side` x `side` or (None) any pixels."""
    constants, nodes = dict(graph.constants), []
    for node in graph.nodes:
        if node.op == "PRelu":
            nodes += _prelu_as_convolutions(node, constants)
            continue
        if node.op == "Reshape":  # the exporter fixed the batch to 1; 0 means "as it comes"
            shape = constants[node.inputs[1]]
            constants[node.inputs[1]] = np.concatenate([np.zeros_like(shape[:1]), shape[1:]])
        # insightface tells from the names of the first nodes (Sub, Mul) whether a network wants 0..255.
        name = f"{node.op}_{len(nodes)}"
        nodes.append(onnx.helper.make_node(node.op, node.inputs, [node.output], name, **node.attributes))
    used = {name for node in nodes for name in node.input}
    value, size = onnx.helper.make_tensor_value_info, [side, side] if side else ["height", "width"]
    return onnx.helper.make_model(
        onnx.helper.make_graph(
            nodes,
            graph.path.stem,
            [value(graph.input, onnx.TensorProto.FLOAT, ["batch", 3, *size])],
            [value(name, onnx.TensorProto.FLOAT, None) for name in graph.outputs],
            [numpy_helper.from_array(np.ascontiguousarray(constants[k]), k) for k in constants if k in used],
        ),
        opset_imports=[onnx.helper.make_opsetid("", graph.opset)],
        ir_version=10,
    )


def _prelu_as_convolutions(node: Node, constants: dict[str, np.ndarray]) -> list[onnx.NodeProto]:
    """prelu(x) = a x + (1 - a) relu(x), with a per channel as 1x1 depthwise convolutions.

    onnxruntime has no PRelu in its blocked layout and reorders the whole tensor before and after each; like this the
    same numbers take half the time.
    """
    source, slope_name = node.inputs
    slope = constants[slope_name].reshape(-1, 1, 1, 1)
    names = [f"{node.output}/{part}" for part in ("slope", "rest", "relu", "linear", "positive")]
    constants[names[0]], constants[names[1]] = slope, (1 - slope).astype(np.float32)
    make, channels = onnx.helper.make_node, len(slope)
    return [
        make("Relu", [source], [names[2]]),
        make("Conv", [source, names[0]], [names[3]], group=channels, kernel_shape=[1, 1]),
        make("Conv", [names[2], names[1]], [names[4]], group=channels, kernel_shape=[1, 1]),
        make("Add", [names[3], names[4]], [node.output]),
    ]
