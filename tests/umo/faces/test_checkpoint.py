"""Published recognisers: small random weights under the names of the real files, against networks written out anew."""

import collections
import sys
import types
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import save_file

from umo import faces
from umo.errors import BadInput
from umo.faces.align import TEMPLATE, similarity
from umo.faces.backbones import backbone
from umo.faces.checkpoint import Checkpoint, read_state
from umo.rewards import MatchingReward

State = dict[str, torch.Tensor]
WIDTHS = ((4, 2), (6, 1))  # of two stages: width, blocks
SIDE = 112 // 4  # after two halvings
DIMENSION = 8


def filled(generator: torch.Generator, name: str, *shape: int) -> State:
    """A kernel or a vector."""
    scale = float(np.prod(shape[1:])) ** -0.5 if len(shape) > 1 else 0.3
    return {name: scale * torch.randn(*shape, generator=generator)}


def normal(generator: torch.Generator, name: str, width: int, affine: bool = True) -> State:
    found = {f"{name}.running_mean": 0.2 * torch.randn(width, generator=generator)}
    found |= {f"{name}.running_var": 0.5 + torch.rand(width, generator=generator)}
    found |= {f"{name}.num_batches_tracked": torch.tensor(7)}
    if affine:
        found |= {f"{name}.weight": 0.5 + torch.rand(width, generator=generator)}
        found |= {f"{name}.bias": 0.2 * torch.randn(width, generator=generator)}
    return found


def ir_state(squeezed: bool, inner: bool) -> State:
    """IR-SE50's kind of block has squeeze and excitation and no normalisation between its convolutions; AdaFace's,
    CVLface's and CurricularFace's are the other way round, and their last normalisation has no weights of its own."""
    g = torch.Generator().manual_seed(0)
    state = filled(g, "input_layer.0.weight", WIDTHS[0][0], 3, 3, 3) | normal(g, "input_layer.1", WIDTHS[0][0])
    state |= {"input_layer.2.weight": torch.rand(WIDTHS[0][0], generator=g)}
    width, k = WIDTHS[0][0], 0
    for out, blocks in WIDTHS:
        for _ in range(blocks):
            own, j = f"body.{k}", 2
            if width != out:
                state |= filled(g, f"{own}.shortcut_layer.0.weight", out, width, 1, 1)
                state |= normal(g, f"{own}.shortcut_layer.1", out)
            state |= normal(g, f"{own}.res_layer.0", width)
            state |= filled(g, f"{own}.res_layer.1.weight", out, width, 3, 3)
            if inner:
                state |= normal(g, f"{own}.res_layer.{j}", out)
                j += 1
            state |= {f"{own}.res_layer.{j}.weight": torch.rand(out, generator=g)}
            state |= filled(g, f"{own}.res_layer.{j + 1}.weight", out, out, 3, 3)
            state |= normal(g, f"{own}.res_layer.{j + 2}", out)
            if squeezed:
                state |= filled(g, f"{own}.res_layer.{j + 3}.fc1.weight", 2, out, 1, 1)
                state |= filled(g, f"{own}.res_layer.{j + 3}.fc2.weight", out, 2, 1, 1)
            width, k = out, k + 1
    state |= normal(g, "output_layer.0", width)
    state |= filled(g, "output_layer.3.weight", DIMENSION, width * SIDE * SIDE)
    state |= filled(g, "output_layer.3.bias", DIMENSION)
    return state | normal(g, "output_layer.4", DIMENSION, affine=squeezed)


def normed(x: torch.Tensor, state: State, name: str, epsilon: float = 1e-5) -> torch.Tensor:
    mean, var, weight, bias = (
        state.get(f"{name}.{part}") for part in ("running_mean", "running_var", "weight", "bias")
    )
    return F.batch_norm(x, mean, var, weight, bias, eps=epsilon)


def ir_by_hand(x: torch.Tensor, state: State, squeezed: bool, inner: bool) -> torch.Tensor:
    x = F.conv2d(x, state["input_layer.0.weight"], padding=1)
    x = F.prelu(normed(x, state, "input_layer.1"), state["input_layer.2.weight"])
    k, width = 0, WIDTHS[0][0]
    for out, blocks in WIDTHS:
        for rank in range(blocks):
            own, stride = f"body.{k}", 2 if rank == 0 else 1
            y = F.conv2d(normed(x, state, f"{own}.res_layer.0"), state[f"{own}.res_layer.1.weight"], padding=1)
            j = 2
            if inner:
                y, j = normed(y, state, f"{own}.res_layer.2"), 3
            y = F.prelu(y, state[f"{own}.res_layer.{j}.weight"])
            y = F.conv2d(y, state[f"{own}.res_layer.{j + 1}.weight"], stride=stride, padding=1)
            y = normed(y, state, f"{own}.res_layer.{j + 2}")
            if squeezed:
                gate = F.conv2d(F.adaptive_avg_pool2d(y, 1), state[f"{own}.res_layer.{j + 3}.fc1.weight"]).relu()
                y = y * F.conv2d(gate, state[f"{own}.res_layer.{j + 3}.fc2.weight"]).sigmoid()
            if width != out:
                x = F.conv2d(x, state[f"{own}.shortcut_layer.0.weight"], stride=stride)
                x = normed(x, state, f"{own}.shortcut_layer.1")
            else:
                x = x[:, :, ::stride, ::stride]
            x, width, k = x + y, out, k + 1
    flat = normed(x, state, "output_layer.0").flatten(1)
    return normed(F.linear(flat, state["output_layer.3.weight"], state["output_layer.3.bias"]), state, "output_layer.4")


@pytest.mark.parametrize(("squeezed", "inner"), [(True, False), (False, True)], ids=["IR-SE50", "AdaFace"])
def test_ir_is_rebuilt_from_its_weights(squeezed: bool, inner: bool) -> None:
    state = ir_state(squeezed, inner)
    x = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(backbone(state, "file")(x), ir_by_hand(x, state, squeezed, inner), rtol=1e-4, atol=1e-5)


# FaceNet, with every width a twelfth or so of the real one's.
A = 4


def inception_state() -> State:
    g, state = torch.Generator().manual_seed(0), {}

    def convolved(name: str, into: int, out: int, *kernel: int) -> None:
        state.update(filled(g, f"{name}.conv.weight", out, into, *kernel))
        state.update(normal(g, f"{name}.bn", out))

    for name, into, out, k in (
        ("conv2d_1a", 3, A, 3),
        ("conv2d_2a", A, A, 3),
        ("conv2d_2b", A, 2 * A, 3),
        ("conv2d_3b", 2 * A, 2 * A, 1),
        ("conv2d_4a", 2 * A, 3 * A, 3),
        ("conv2d_4b", 3 * A, 4 * A, 3),
    ):
        convolved(name, into, out, k, k)

    def residual(name: str, width: int, kernels: list[list[tuple[int, int]]]) -> None:
        for b, branch in enumerate(kernels):
            into = width
            for j, kernel in enumerate(branch):
                convolved(f"{name}.branch{b}" + (f".{j}" if len(branch) > 1 else ""), into, A, *kernel)
                into = A
        state.update(filled(g, f"{name}.conv2d.weight", width, len(kernels) * A, 1, 1))
        state.update(filled(g, f"{name}.conv2d.bias", width))

    one, three = (1, 1), (3, 3)
    for k in range(2):
        residual(f"repeat_1.{k}", 4 * A, [[one], [one, three], [one, three, three]])
    convolved("mixed_6a.branch0", 4 * A, A, 3, 3)
    for j, kernel in enumerate((1, 3, 3)):
        convolved(f"mixed_6a.branch1.{j}", A if j else 4 * A, A, kernel, kernel)
    for k in range(3):
        residual(f"repeat_2.{k}", 6 * A, [[one], [one, (1, 7), (7, 1)]])
    for b, kernels in enumerate(((1, 3), (1, 3), (1, 3, 3))):
        for j, kernel in enumerate(kernels):
            convolved(f"mixed_7a.branch{b}.{j}", A if j else 6 * A, A, kernel, kernel)
    for k in range(2):
        residual(f"repeat_3.{k}", 9 * A, [[one], [one, (1, 3), (3, 1)]])
    residual("block8", 9 * A, [[one], [one, (1, 3), (3, 1)]])
    state |= filled(g, "last_linear.weight", DIMENSION, 9 * A) | normal(g, "last_bn", DIMENSION)
    return state | filled(g, "logits.weight", 3, DIMENSION) | filled(g, "logits.bias", 3)


def inception_by_hand(x: torch.Tensor, state: State) -> torch.Tensor:
    def step(x: torch.Tensor, name: str, stride: int = 1, pad: bool = False) -> torch.Tensor:
        kernel = state[f"{name}.conv.weight"]
        padding = tuple(side // 2 for side in kernel.shape[2:]) if pad else 0
        return normed(F.conv2d(x, kernel, stride=stride, padding=padding), state, f"{name}.bn", 1e-3).relu()

    def block(x: torch.Tensor, name: str, scale: float, bent: bool = True) -> torch.Tensor:
        found = []
        for b in range(3):
            if f"{name}.branch{b}.conv.weight" in state:
                found.append(step(x, f"{name}.branch{b}", pad=True))
            elif f"{name}.branch{b}.0.conv.weight" in state:
                y, j = x, 0
                while f"{name}.branch{b}.{j}.conv.weight" in state:
                    y, j = step(y, f"{name}.branch{b}.{j}", pad=True), j + 1
                found.append(y)
        y = F.conv2d(torch.cat(found, 1), state[f"{name}.conv2d.weight"], state[f"{name}.conv2d.bias"])
        return (x + scale * y).relu() if bent else x + scale * y

    x = step(step(step(x, "conv2d_1a", 2), "conv2d_2a"), "conv2d_2b", pad=True)
    x = step(step(step(F.max_pool2d(x, 3, 2), "conv2d_3b"), "conv2d_4a"), "conv2d_4b", 2)
    for k in range(2):
        x = block(x, f"repeat_1.{k}", 0.17)
    y = step(step(step(x, "mixed_6a.branch1.0"), "mixed_6a.branch1.1", pad=True), "mixed_6a.branch1.2", 2)
    x = torch.cat([step(x, "mixed_6a.branch0", 2), y, F.max_pool2d(x, 3, 2)], 1)
    for k in range(3):
        x = block(x, f"repeat_2.{k}", 0.10)
    first, second = (step(step(x, f"mixed_7a.branch{b}.0"), f"mixed_7a.branch{b}.1", 2) for b in (0, 1))
    third = step(step(step(x, "mixed_7a.branch2.0"), "mixed_7a.branch2.1", pad=True), "mixed_7a.branch2.2", 2)
    x = torch.cat([first, second, third, F.max_pool2d(x, 3, 2)], 1)
    for k in range(2):
        x = block(x, f"repeat_3.{k}", 0.20)
    x = block(x, "block8", 1.0, bent=False).mean(dim=(2, 3))
    return normed(F.linear(x, state["last_linear.weight"]), state, "last_bn", 1e-3)


def test_facenet_is_rebuilt_from_its_weights() -> None:
    """Its classifier is left out."""
    state = inception_state()
    x = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(backbone(state, "file")(x), inception_by_hand(x, state), rtol=1e-4, atol=1e-5)


# Files as they are published, and what each is shown.


class Settings:
    """Of a trainer, as Lightning keeps beside the weights."""


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    se, plain = ir_state(True, False), ir_state(False, True)
    torch.save(collections.OrderedDict(se), tmp_path / "model_ir_se50.pth")
    trainer = types.ModuleType("pytorch_lightning_of_old")
    Settings.__module__, trainer.Settings = trainer.__name__, Settings  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, trainer.__name__, trainer)
    kept = {f"model.{name}": value for name, value in plain.items()} | {"head.kernel": torch.zeros(DIMENSION, 3)}
    content = {"epoch": 24, "state_dict": kept, "callbacks": {Settings: {"best": 1.0}}, "hyper_parameters": Settings()}
    torch.save(content, tmp_path / "adaface_ir50_ms1mv2.ckpt")
    monkeypatch.delitem(sys.modules, trainer.__name__)
    for name, colours in (("cvlface", "RGB"), ("cvlface_bgr", "BGR")):
        folder = tmp_path / name / "pretrained_model"
        folder.mkdir(parents=True)
        save_file({f"model.net.{key}": value for key, value in plain.items()}, folder.parent / "model.safetensors")
        (folder.parent / "config.json").write_text("{}")
        (folder.parent / "wrapper.py").write_text("raise SystemExit('its code was run')")
        (folder / "model.yaml").write_text(yaml.safe_dump({"color_space": colours, "input_size": [3, 112, 112]}))
    torch.save(plain, tmp_path / "glint360k_curricular_face_r101_backbone.bin")
    torch.save(inception_state(), tmp_path / "20180402-114759-vggface2.pt")
    return {path.stem if path.is_file() else path.name: path for path in tmp_path.iterdir()}


def aligned(picture: np.ndarray, face: faces.Face, scale: int = 1) -> np.ndarray:
    matrix = similarity(np.asarray(face.landmarks)[None], scale * TEMPLATE)[0]
    return cv2.warpAffine(picture.astype(np.float32), matrix, (scale * 112,) * 2)


def as_tensor(crop: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(crop, np.float32)).permute(2, 0, 1)[None]


SHOWN: dict[str, Callable[[np.ndarray, faces.Face], torch.Tensor]] = {
    "model_ir_se50": lambda p, f: (as_tensor(aligned(p, f)) / 255 - 0.5) / 0.5,
    "adaface_ir50_ms1mv2": lambda p, f: (as_tensor(aligned(p, f)[..., ::-1]) / 255 - 0.5) / 0.5,
    "cvlface": lambda p, f: (as_tensor(aligned(p, f)) / 255 - 0.5) / 0.5,
    "cvlface_bgr": lambda p, f: (as_tensor(aligned(p, f)[..., ::-1]) / 255 - 0.5) / 0.5,
    "glint360k_curricular_face_r101_backbone": lambda p, f: (
        (as_tensor(cv2.resize(aligned(p, f, 2), (112, 112), interpolation=cv2.INTER_AREA)) / 255 - 0.5) / 0.5
    ),
    "20180402-114759-vggface2": lambda p, f: (
        (as_tensor(cv2.resize(p[_cut(p, f)], (160, 160), interpolation=cv2.INTER_AREA)) - 127.5) / 128
    ),
}


def _cut(picture: np.ndarray, face: faces.Face) -> tuple[slice, slice]:
    x0, y0, x1, y1 = (max(0, int(edge)) for edge in face.box)
    return slice(y0, min(y1, len(picture))), slice(x0, min(x1, picture.shape[1]))


@pytest.mark.parametrize("name", SHOWN)
def test_each_is_shown_faces_as_its_authors_do(published, group, name: str) -> None:
    """Crop, colour order and scale; the network as rebuilt above."""
    model = faces.load_named(str(published[name]), calibrated=False, detector="opencv_zoo")
    assert model.name == name and model.dimension == DIMENSION
    found = model.detect([group])
    state, _ = read_state(published[name])
    network = backbone(state, name)
    expected = torch.cat([network(SHOWN[name](group, face)) for face in found[0]])
    vectors = model.embed([group], found)
    np.testing.assert_allclose(vectors, F.normalize(expected).numpy(), atol=2e-3)
    assert model.embed([group], [[]]).shape == (0, DIMENSION)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("name", ["model_ir_se50", "adaface_ir50_ms1mv2"])
def test_a_drawn_picture_is_seen_as_its_bytes_are(published, group, tensor_of, name: str) -> None:
    model = Checkpoint(published[name], detector="opencv_zoo", calibrated=False)
    found = model.detect([group])
    tensor = tensor_of(group).requires_grad_()
    vectors = model.embed(tensor, found)
    assert float((vectors.detach() * torch.from_numpy(model.embed([group], found))).sum(1).min()) > 0.999
    assert model.differentiable
    MatchingReward(model)(tensor, [torch.eye(DIMENSION)[:2]], found).reward.sum().backward()
    assert tensor.grad is not None and tensor.grad.abs().sum() > 0


def test_the_channels_of_a_network_matter(published, group) -> None:
    """Else the test of what each is shown would prove nothing of colours."""
    one, other = (Checkpoint(published[name], "opencv_zoo", calibrated=False) for name in ("cvlface", "cvlface_bgr"))
    found = one.detect([group])
    alike = (one.embed([group], found) * other.embed([group], found)).sum(axis=1)
    assert alike.max() < 0.999
    swapped = np.ascontiguousarray(group[..., ::-1])
    np.testing.assert_allclose(one.embed([swapped], found), other.embed([group], found), atol=1e-4)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.write_bytes(b"no weights"), "no weights that can be read"),
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "no weights that can be read"),
        (lambda path: torch.save({"epoch": 3}, path), "holds no weights; copy it again"),
        (lambda path: torch.save({"layer.weight": torch.zeros(3, 3)}, path), "weights of no network that is read"),
        (lambda path: _changed(path, lambda s: s.pop("body.1.res_layer.3.weight")), "body.1.res_layer"),
        (lambda path: _changed(path, lambda s: s.pop("output_layer.3.weight")), "output_layer.3.weight is missing"),
        (
            lambda path: _changed(path, lambda s: s.update({"extra.weight": torch.zeros(2)})),
            "extra.weight belongs to nothing in it",
        ),
        (lambda path: _changed(path, lambda s: s["input_layer.0.weight"].fill_(np.nan)), "not finite"),
    ],
)
def test_a_broken_or_foreign_file_is_refused(published, spoil, reason: str) -> None:
    path = published["model_ir_se50"]
    spoil(path)
    with pytest.raises(BadInput, match=reason):
        Checkpoint(path, "opencv_zoo", calibrated=False)


def _changed(path: Path, change: Callable[[State], object]) -> None:
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


def test_it_needs_a_calibration_to_judge(published) -> None:
    with pytest.raises(BadInput, match=r"model_ir_se50.calibration.json: no calibration"):
        faces.load_named(str(published["model_ir_se50"]))


def test_an_objects_code_is_not_run(tmp_path: Path) -> None:
    """A pickle may name any function; what is not a tensor is replaced by nothing."""
    torch.save({"state_dict": ir_state(True, False), "callbacks": _Harm(tmp_path / "harmed")}, tmp_path / "bad.ckpt")
    state, _ = read_state(tmp_path / "bad.ckpt")
    assert "input_layer.0.weight" in state and not (tmp_path / "harmed").exists()


class _Harm:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return exec, (f"open({str(self.path)!r}, 'w').close()",)
