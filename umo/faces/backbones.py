"""Networks that describe faces, rebuilt from the names and shapes of their weights: no file says what it is.

IR (He et al. 2016, as ArcFace has it): model_ir_se50, AdaFace, CVLface, CurricularFace. Inception-ResNet v1 (Szegedy et
al. 2016): facenet-pytorch's FaceNet. Widths and depths are the file's own.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from umo.errors import BadInput

State = Mapping[str, Tensor]
FACENET_EPSILON = 1e-3
SCALES = {"repeat_1": 0.17, "repeat_2": 0.10, "repeat_3": 0.20}


class Unlike(ValueError):
    """The weights are not those of the network that was asked for; the message is the first name that tells."""


def backbone(state: State, where: str) -> nn.Module:
    """The network of some weights, ready to infer: (B, 3, side, side) -> (B, d), not of unit length.

    Raises BadInput where they belong to no network that is known here, or one is missing or left over.
    """
    if "input_layer.0.weight" in state and "body.0.res_layer.0.weight" in state:
        build: Callable[[State], nn.Module] = IR
    elif "conv2d_1a.conv.weight" in state:
        build = InceptionResNet
        state = {name: value for name, value in state.items() if not name.startswith("logits.")}
    else:
        raise BadInput(
            f"{where}: weights of no network that is read (IR as in ArcFace, Inception-ResNet v1 of FaceNet)"
        )
    try:
        network = build(state)
        missing, left = network.load_state_dict(state, strict=False)
    except (KeyError, Unlike) as error:
        raise BadInput(f"{where}: {error.args[0]} is missing or of another kind; copy the file again") from error
    except RuntimeError as error:
        raise BadInput(f"{where}: {' '.join(str(error).split())[:200]}") from error
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or left:
        first, what = (missing[0], "is missing") if missing else (left[0], "belongs to nothing in it")
        raise BadInput(f"{where}: {first} {what}; copy the file again")
    if any(not torch.isfinite(value).all() for value in state.values()):
        raise BadInput(f"{where}: holds weights that are not finite; copy the file again")
    return network.requires_grad_(False).eval()


def convolution(state: State, name: str, stride: int = 1, padding: int | tuple[int, int] = 0) -> nn.Conv2d:
    """With the widths and the kernel of `name.weight`; a bias where there is one."""
    weight = state[f"{name}.weight"]
    if weight.ndim != 4:
        raise Unlike(f"{name}.weight")
    out, into, *kernel = weight.shape
    return nn.Conv2d(into, out, tuple(kernel), stride, padding, bias=f"{name}.bias" in state)  # type: ignore[arg-type]


class SqueezeExcite(nn.Module):
    """Channels weighed by what the picture as a whole shows."""

    def __init__(self, state: State, name: str) -> None:
        super().__init__()
        self.fc1, self.fc2 = convolution(state, f"{name}.fc1"), convolution(state, f"{name}.fc2")

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean(dim=(2, 3), keepdim=True)))))


class IRBlock(nn.Module):
    """Normalised, convolved twice, added to what came in; the second convolution has the stride."""

    def __init__(self, state: State, name: str, stride: int) -> None:
        super().__init__()
        last = _kernels(state, f"{name}.res_layer")[-1]
        parts = [
            _layer(state, f"{name}.res_layer.{j}", stride if j == last else 1)
            for j in _numbers(state, f"{name}.res_layer")
        ]
        self.res_layer = nn.Sequential(*parts)
        self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        if f"{name}.shortcut_layer.0.weight" in state:
            self.shortcut_layer = nn.Sequential(
                convolution(state, f"{name}.shortcut_layer.0", stride), _layer(state, f"{name}.shortcut_layer.1")
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut_layer(x) + self.res_layer(x)


class IR(nn.Module):
    """Blocks in stages, the first of each halving the sides: where the width changes, and the very first block."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self.input_layer = nn.Sequential(*(_layer(state, f"input_layer.{j}") for j in range(3)))
        blocks, width = [], state["input_layer.0.weight"].shape[0]
        for k in _numbers(state, "body"):
            name = f"body.{k}"
            kernels = _kernels(state, f"{name}.res_layer")
            if len(kernels) != 2:
                raise Unlike(f"{name}.res_layer, a block of two convolutions,")
            out = state[f"{name}.res_layer.{kernels[-1]}.weight"].shape[0]
            blocks.append(IRBlock(state, name, 2 if k == 0 or out != width else 1))
            width = out
        self.body = nn.Sequential(*blocks)
        out, flat = state["output_layer.3.weight"].shape
        self.output_layer = nn.Sequential(
            _layer(state, "output_layer.0"),
            nn.Identity(),  # dropout
            nn.Flatten(),
            nn.Linear(flat, out, bias="output_layer.3.bias" in state),
            nn.BatchNorm1d(out, affine="output_layer.4.weight" in state),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.output_layer(self.body(self.input_layer(x)))


def _layer(state: State, name: str, stride: int = 1) -> nn.Module:
    """By what its weights look like: a convolution, a normalisation, a PReLU, or squeeze and excitation."""
    if f"{name}.fc1.weight" in state:
        return SqueezeExcite(state, name)
    if f"{name}.running_mean" in state:
        return nn.BatchNorm2d(len(state[f"{name}.running_mean"]))
    if _is_kernel(state, f"{name}.weight"):
        return convolution(state, name, stride, state[f"{name}.weight"].shape[-1] // 2)
    return nn.PReLU(len(state[f"{name}.weight"]))


def _is_kernel(state: State, name: str) -> bool:
    return name in state and state[name].ndim == 4


def _kernels(state: State, name: str) -> list[int]:
    """Which parts of a sequence are convolutions."""
    return [j for j in _numbers(state, name) if _is_kernel(state, f"{name}.{j}.weight")]


def _numbers(state: State, name: str) -> Sequence[int]:
    """Of the parts of a sequence: `name.0`, `name.1`, ..."""
    found = {key.removeprefix(f"{name}.").partition(".")[0] for key in state if key.startswith(f"{name}.")}
    return sorted(int(number) for number in found if number.isdecimal())


class Convolved(nn.Module):
    """A convolution, a normalisation, a ReLU."""

    def __init__(self, state: State, name: str, stride: int = 1, padding: int | tuple[int, int] = 0) -> None:
        super().__init__()
        self.conv = convolution(state, f"{name}.conv", stride, padding)
        self.bn = nn.BatchNorm2d(self.conv.out_channels, eps=FACENET_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Branches(nn.Module):
    """Branches side by side: put together (`pooled`: with the pooled input), or convolved and added to the input."""

    def __init__(
        self, state: State, name: str, branches: Sequence[Sequence[Any]], scale: float | None, bent: bool = True
    ) -> None:
        super().__init__()
        self.count, self.scale, self.bent = len(branches), scale, bent
        for k, parts in enumerate(branches):
            own = f"{name}.branch{k}"
            if len(parts) == 1:
                setattr(self, f"branch{k}", Convolved(state, own, *parts[0]))
            else:
                made = [Convolved(state, f"{own}.{j}", *part) for j, part in enumerate(parts)]
                setattr(self, f"branch{k}", nn.Sequential(*made))
        if scale is not None:
            self.conv2d = convolution(state, f"{name}.conv2d")

    def forward(self, x: Tensor) -> Tensor:
        found = [getattr(self, f"branch{k}")(x) for k in range(self.count)]
        if self.scale is None:
            return torch.cat([*found, F.max_pool2d(x, 3, 2)], dim=1)
        added = self.conv2d(torch.cat(found, dim=1)) * self.scale + x
        return F.relu(added) if self.bent else added


# (stride, padding) of every convolution of every branch.
PLAIN, SAME, HALVED = (1, 0), (1, 1), (2, 0)
STEM = {
    "conv2d_1a": HALVED,
    "conv2d_2a": PLAIN,
    "conv2d_2b": SAME,
    "conv2d_3b": PLAIN,
    "conv2d_4a": PLAIN,
    "conv2d_4b": HALVED,
}
RESIDUAL: dict[str, Sequence[Sequence[Any]]] = {
    "repeat_1": [[PLAIN], [PLAIN, SAME], [PLAIN, SAME, SAME]],
    "repeat_2": [[PLAIN], [PLAIN, (1, (0, 3)), (1, (3, 0))]],
    "repeat_3": [[PLAIN], [PLAIN, (1, (0, 1)), (1, (1, 0))]],
}
REDUCED: dict[str, Sequence[Sequence[Any]]] = {
    "mixed_6a": [[HALVED], [PLAIN, SAME, HALVED]],
    "mixed_7a": [[PLAIN, HALVED], [PLAIN, HALVED], [PLAIN, SAME, HALVED]],
}


class InceptionResNet(nn.Module):
    """facenet-pytorch's InceptionResnetV1 without its classifier."""

    def __init__(self, state: State) -> None:
        super().__init__()
        for name, how in STEM.items():
            setattr(self, name, Convolved(state, name, *how))
        for name, branches in RESIDUAL.items():
            blocks = [Branches(state, f"{name}.{k}", branches, SCALES[name]) for k in _numbers(state, name)]
            setattr(self, name, nn.Sequential(*blocks))
        for name, branches in REDUCED.items():
            setattr(self, name, Branches(state, name, branches, None))
        self.block8 = Branches(state, "block8", RESIDUAL["repeat_3"], 1.0, bent=False)
        out, flat = state["last_linear.weight"].shape
        self.last_linear = nn.Linear(flat, out, bias=False)
        self.last_bn = nn.BatchNorm1d(out, eps=FACENET_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self._through(x, "conv2d_1a", "conv2d_2a", "conv2d_2b"), 3, 2)
        x = self._through(x, "conv2d_3b", "conv2d_4a", "conv2d_4b", "repeat_1", "mixed_6a", "repeat_2", "mixed_7a")
        x = self._through(x, "repeat_3", "block8")
        return self.last_bn(self.last_linear(x.mean(dim=(2, 3))))

    def _through(self, x: Tensor, *names: str) -> Tensor:
        for name in names:
            x = self.get_submodule(name)(x)
        return x
