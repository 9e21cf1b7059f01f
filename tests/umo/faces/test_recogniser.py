"""A user's own recogniser as a reward: a small random network as insightface's arcface_torch exports its own."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from umo import faces
from umo.errors import BadInput
from umo.faces import network as feeding
from umo.faces.insightface import InsightFace
from umo.faces.network import Network
from umo.rewards import MatchingReward

WIDTHS = (4, 6)  # of the two stages, each half as large as what it reads
DIMENSION = 512


def iresnet(path: Path, flatten: str = "Flatten") -> Path:
    """As buffalo_l's w600k_r50: names, operations and shapes; normalisation before a block's convolutions stays, what
    follows a convolution is folded into it, and weights that are alike are written once."""
    random = np.random.default_rng(0)
    nodes, constants = [], {"shape": np.array([1, -1]), "ones": np.ones(WIDTHS[-1], np.float32)}

    def put(op: str, source: str, *weights: np.ndarray, **attributes: object) -> str:
        output = str(100 + len(nodes))
        names = [f"{output}.{k}" for k in range(len(weights))]
        constants.update(zip(names, (np.asarray(weight, np.float32) for weight in weights), strict=True))
        nodes.append(helper.make_node(op, [source, *names], [output], f"{op}_{len(nodes)}", **attributes))
        return output

    def convolution(source: str, inputs: int, outputs: int, side: int = 3, stride: int = 1) -> str:
        weight = random.normal(0, 1 / np.sqrt(inputs * side**2), (outputs, inputs, side, side))
        shape = {"kernel_shape": [side] * 2, "pads": [side // 2] * 4, "strides": [stride] * 2}
        return put("Conv", source, weight, random.normal(0, 0.1, outputs), dilations=[1, 1], group=1, **shape)

    def normalised(source: str, width: int) -> str:
        statistics = random.normal(0, 0.2, (2, width)), random.uniform(0.5, 2, (2, width))
        return put("BatchNormalization", source, statistics[1][0], *statistics[0], statistics[1][1], epsilon=1e-5)

    def bent(source: str, width: int) -> str:
        return put("PRelu", source, random.uniform(0, 0.5, (width, 1, 1)))

    inputs = WIDTHS[0]
    x = bent(convolution("input.1", 3, inputs), inputs)
    for width in WIDTHS:
        inner = bent(convolution(normalised(x, inputs), inputs, width), width)
        inner = convolution(inner, width, width, stride=2)
        nodes.append(helper.make_node("Add", [inner, convolution(x, inputs, width, 1, 2)], [f"sum{width}"]))
        x, inputs = f"sum{width}", width
    nodes.append(helper.make_node("Identity", ["ones"], ["gain"]))
    nodes.append(helper.make_node("BatchNormalization", [x, "gain", *["ones"] * 3], ["last"], epsilon=1e-5))
    flat = ["last", "shape"] if flatten == "Reshape" else ["last"]
    nodes.append(helper.make_node(flatten, flat, ["flat"]))
    features = inputs * 28 * 28
    vector = put("Gemm", "flat", random.normal(0, features**-0.5, (DIMENSION, features)), np.zeros(DIMENSION), transB=1)
    nodes.append(helper.make_node("Identity", [normalised(vector, DIMENSION)], ["683"]))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "torch-jit-export",
        [value("input.1", TensorProto.FLOAT, ["None" if flatten == "Flatten" else 1, 3, 112, 112])],
        [value("683", TensorProto.FLOAT, [1, DIMENSION])],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6), str(path))
    return path


@pytest.fixture(scope="module")
def recogniser(tmp_path_factory) -> Path:
    return iresnet(tmp_path_factory.mktemp("buffalo") / "w600k_r50.onnx")


@pytest.mark.parametrize("flatten", ["Flatten", "Reshape"])
def test_torch_computes_what_onnxruntime_does(tmp_path, flatten: str) -> None:
    path = iresnet(tmp_path / "net.onnx", flatten)
    crops = np.random.default_rng(1).uniform(-1, 1, (3, 3, 112, 112)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(path))
    expected = np.concatenate([session.run(None, {"input.1": crop[None]})[0] for crop in crops])
    assert np.abs(expected).mean() > 0.1
    found = Network(path, threads=1).run(torch.from_numpy(crops))["683"]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


def test_a_drawn_picture_is_seen_as_insightface_sees_it(recogniser, group, tensor_of) -> None:
    """Through the whole adapter, to the bytes that insightface rounds a crop to."""
    model = InsightFace(recogniser, detector="opencv_zoo", calibrated=False)
    assert model.differentiable and model.dimension == DIMENSION
    found = model.detect([group])
    vectors = model.embed(tensor_of(group), found)
    assert float((vectors * torch.from_numpy(model.embed([group], found))).sum(1).min()) > 0.9999


def test_it_rewards_and_its_gradient_is_the_finite_difference(recogniser, group, tensor_of) -> None:
    """In float64, faces held. It needs no calibration: a reward has no threshold."""
    model = faces.load_reward(str(recogniser), gradient=True)
    reward = MatchingReward(model)
    picture = tensor_of(group[100:300, 200:520]).double()
    found = [faces.load("opencv_zoo").detect(picture)[0][:2]]
    generator = torch.Generator().manual_seed(0)
    anchors = [
        torch.nn.functional.normalize(torch.randn(2, DIMENSION, generator=generator, dtype=torch.float64), dim=1)
    ]
    pixels = picture.clone().requires_grad_()
    reward(pixels, anchors, found).reward.sum().backward()
    direction = pixels.grad.sign()
    with torch.no_grad():
        up, down = (float(reward(picture + step * direction, anchors, found).reward) for step in (1e-8, -1e-8))
    assert (up - down) / 2e-8 == pytest.approx(float((pixels.grad * direction).sum()), rel=1e-4)
    assert up > down


def test_a_network_that_torch_cannot_follow_is_refused_as_a_reward(recogniser, tmp_path) -> None:
    """It may still judge: insightface runs it."""
    model = onnx.load(str(recogniser))
    model.graph.node[-1].op_type = "Tanh"
    path = tmp_path / "tanh.onnx"
    onnx.save(model, str(path))
    with pytest.raises(BadInput, match=r"tanh\.onnx: ONNX operation Tanh is not among Add"):
        faces.load_reward(str(path), gradient=True)
    judge = faces.load_named(str(path), calibrated=False)
    assert judge.embed([np.zeros((64, 64, 3), np.uint8)], [[]]).shape == (0, DIMENSION)


def test_a_face_model_without_gradient_rewards_only_what_needs_none() -> None:
    with pytest.raises(BadInput, match="reward dlib has no gradient, which rerefl needs: choose another face model"):
        faces.load_reward("dlib", gradient=True)
    assert faces.load_reward("dlib", gradient=False).name == "dlib"


def test_a_gpu_is_given_batches_of_one_size_and_no_channels_last(recogniser, monkeypatch):
    """What it is given there, computed here: the same embeddings and gradients, whatever fills a batch up."""
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert (feeding.layout(cpu), feeding.layout(cuda)) == (torch.channels_last, torch.contiguous_format)
    assert feeding.fixed_batch(cpu) is None
    monkeypatch.setattr(feeding, "GPU_BATCH", 3)
    network = feeding.Network(recogniser, threads=1)
    crops = 2 * torch.rand(4, 3, 112, 112, generator=torch.Generator().manual_seed(0)) - 1

    def embed():
        pixels = crops.clone().requires_grad_()
        vectors = network.embed(pixels)
        return vectors, torch.autograd.grad(vectors[:, 0].sum(), pixels)[0]

    expected, shapes, forward = embed(), [], network.torch.forward
    monkeypatch.setattr(
        network.torch, "forward", lambda x: shapes.append((x.shape[0], x.is_contiguous())) or forward(x)
    )
    for name in ("layout", "fixed_batch"):
        there = getattr(feeding, name)(cuda)
        monkeypatch.setattr(feeding, name, lambda device, there=there: there)
    monkeypatch.setattr(feeding, "CPU_BATCH", len(crops))
    for found, one in zip(embed(), expected, strict=True):
        torch.testing.assert_close(found, one, rtol=1e-3, atol=1e-5)
    assert shapes == [(3, True)] * 2
    kernels = [buffer for buffer in network.torch.buffers() if buffer.ndim == 4]
    assert all(kernel.is_contiguous() for kernel in kernels)
