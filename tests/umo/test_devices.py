"""What is chosen for a GPU, told by a torch that says it has one."""

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from PIL import Image

from umo import customizers, devices
from umo.cli import main
from umo.customizers.attention import attention, set_attention
from umo.errors import BadInput
from umo.generate import generate_one

TINY_UNO = Path(__file__).resolve().parents[2] / "models" / "tiny-uno"


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """A card with bfloat16, which can be taken away; what it changes in the process is put back."""
    card, empty = {"bf16": True}, torch.empty
    monkeypatch.setattr(
        torch,
        "empty",
        lambda *size, device=None, **how: empty(*size, device=None if "cuda" in str(device) else device, **how),
    )
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: card["bf16"])
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *where, **how: self)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    yield card
    torch.backends.cuda.enable_cudnn_sdp(before)


@pytest.fixture
def attending(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' choice, put back."""
    monkeypatch.setattr(_AttentionBackendRegistry, "_active_backend", AttentionBackendName.NATIVE)


def test_loading_on_a_gpu_takes_cudnn_out_of_the_choice_and_bf16(card: dict[str, bool], attending: None) -> None:
    assert customizers.load(TINY_UNO).dtype == torch.float32
    assert attention() == {"kernel": "native", "cudnn": True}, "nothing of a GPU's on a CPU"
    assert customizers.load(TINY_UNO, device="cuda").dtype == torch.bfloat16
    assert attention() == {"kernel": "native", "cudnn": False}
    assert customizers.load(TINY_UNO, device="cuda", dtype=torch.float32).dtype == torch.float32


def test_moving_to_a_gpu_later_takes_it_out_too(card: dict[str, bool]) -> None:
    """As one of several processes does, which loads into main memory what it is going to share out."""
    customizers.load(TINY_UNO).to("cuda:1")
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_a_card_without_bfloat16_is_one_line_before_anything_is_loaded(
    card: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    card["bf16"] = False
    monkeypatch.setitem(customizers.CUSTOMIZERS, "FluxPipeline", lambda: pytest.fail("it is being loaded"))
    for asked in (None, torch.bfloat16):
        with pytest.raises(BadInput) as error:
            customizers.load(TINY_UNO, device="cuda:0", dtype=asked)
        assert str(error.value) == (
            "device cuda:0: Tesla T4 has no bfloat16: give --dtype fp32 (precision: fp32 in a recipe)"
        )
    assert devices.precision_on("cuda:0", "fp32") == "fp32"


def train(monkeypatch: pytest.MonkeyPatch, *options: str) -> object:
    """The exit code of `umo train`."""
    given = ["--base", "base", "--data", "sets", "--method", "sft", "--out", "out", "--set", "steps=1"]
    monkeypatch.setattr(sys, "argv", ["umo", "train", *given, *options])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code


def test_a_gpu_that_is_not_here_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(monkeypatch, "--device", "cuda") == 2
    assert capsys.readouterr().err == "umo: device cuda: not to be had here; choose another, such as cpu\n"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--device", "cuda"], "bf16"),
        (["--device", "cuda", "--set", "precision=fp32"], "fp32"),
        (["--device", "cuda", "--set", "precision=bf16", "--dtype", "fp32"], "fp32"),
        (["--dtype", "bf16"], "bf16"),
        ([], "fp32"),
    ],
    ids=str,
)
def test_training_takes_the_recipes_precision_or_the_devices(
    card: dict[str, bool], monkeypatch: pytest.MonkeyPatch, options: list[str], expected: str
) -> None:
    seen = []
    monkeypatch.setattr("umo.training.folder.train", lambda job, data, out: seen.append(job.recipe.precision))
    assert (train(monkeypatch, *options), seen) == (0, [expected])


def test_drawing_in_bfloat16_is_drawing(tmp_path: Path) -> None:
    pictures, face = [], tmp_path / "face.png"
    Image.new("RGB", (64, 64), (200, 150, 120)).save(face)
    for dtype in ("fp32", "bf16"):
        path = tmp_path / f"{dtype}.png"
        generate_one(TINY_UNO, "A photo of one person.", [face], path, steps=2, crop=False, dtype=dtype)  # type: ignore[arg-type]
        pictures.append(np.asarray(Image.open(path)).astype(int))
    difference = np.abs(pictures[0] - pictures[1])
    assert 0 < difference.mean() < 8 and pictures[0].std() > 8


@pytest.mark.parametrize("kernel", ["flash", "math"])
def test_a_kernel_that_is_named_is_the_one_that_attends(
    attending: None, monkeypatch: pytest.MonkeyPatch, kernel: str
) -> None:
    base = customizers.load(TINY_UNO, attention=kernel)
    assert attention()["kernel"] == kernel
    called, real = [], torch.nn.attention.sdpa_kernel
    monkeypatch.setattr(
        "diffusers.models.attention_dispatch.torch.nn.attention.sdpa_kernel",
        lambda backend: called.append(backend) or real(backend),
    )
    latents = torch.zeros(1, *base.latents_shape(base.settings.sizes[0])).requires_grad_()
    condition = base.condition(["a photo"], [[torch.zeros(3, 64, 64)]])
    base.velocity(latents, 0.5, condition).sum().backward()
    backends = torch.nn.attention.SDPBackend
    assert set(called) == {{"flash": backends.FLASH_ATTENTION, "math": backends.MATH}[kernel]}


def test_a_transformer_that_leaves_the_choice_to_pytorch_says_so() -> None:
    with pytest.raises(BadInput, match="attention flash: mine leaves the choice to PyTorch; leave `attention` out"):
        set_attention(torch.nn.Linear(1, 1), "flash", "mine")


def test_naming_formats_loads_no_torch() -> None:
    command = "import sys, umo.devices, umo.training.recipe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0
