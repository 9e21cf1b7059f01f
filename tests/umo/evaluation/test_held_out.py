"""The held-out loss, against the formula and one sample at a time."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.umo.customizers.conftest import PROMPTS, small_flux, smooth
from umo.customizers.flux_uno import FluxUno
from umo.errors import BadInput, WorkFailed
from umo.evaluation.cases import Case
from umo.evaluation.held_out import held_out_losses

CASES = [
    Case("one", PROMPTS[0], (("0.png",),), (), "2.png", None),
    Case("two", PROMPTS[1], (("0.png", "2.png"), ("1.png",)), (), "0.png", None),
    Case("drawn without a target", PROMPTS[0], (("0.png",),), (), None, None),
]


@pytest.fixture
def base() -> FluxUno:
    """Trained with another guidance than it draws with."""
    torch.set_num_threads(1)
    return small_flux()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for index, photo in enumerate(smooth(3, 32, 64, seed=4)):
        array = ((photo + 1) * 127.5).byte().permute(1, 2, 0).numpy()
        Image.fromarray(array).save(tmp_path / f"{index}.png")
    return tmp_path


class Seen:
    """Stands before a base's network and keeps what it was asked and what it answered."""

    def __init__(self, base: FluxUno, monkeypatch: pytest.MonkeyPatch) -> None:
        self.base, self.velocity = base, base.velocity
        self.asked: list[tuple] = []
        self.answers: list[torch.Tensor] = []
        monkeypatch.setattr(base, "velocity", self)

    def __call__(self, latents, sigma, condition):
        self.asked.append((latents, sigma, condition))
        self.answers.append(self.velocity(latents, sigma, condition))
        return self.answers[-1]

    def noise(self, call: int, target: Path) -> torch.Tensor:
        """What a target must have been mixed with to give the latents that a call asked about."""
        latents, sigma, _ = self.asked[call]
        sigma = sigma.reshape(-1, 1, 1, 1)
        return (latents - (1 - sigma) * encoded(self.base, target)) / sigma


@torch.no_grad()
def encoded(base: FluxUno, picture: Path) -> torch.Tensor:
    """(1, C, h, w) of a file whose size is the base's own."""
    pixels = torch.from_numpy(np.array(Image.open(picture))).permute(2, 0, 1)
    return base.encode(pixels[None] / 127.5 - 1)


@torch.no_grad()
def test_the_loss_is_the_formulas(base, root, monkeypatch):
    seen = Seen(base, monkeypatch)
    losses = held_out_losses(base, CASES, root, draws=4)
    assert list(losses) == ["one", "two"]
    for call, case in enumerate(CASES[:2]):
        latents, sigma, condition = seen.asked[call]
        assert sigma.tolist() == [0.125, 0.375, 0.625, 0.875]
        assert condition.guidance == (base.settings.training_guidance,) * 4 != (base.settings.guidance,) * 4
        errors = []
        for row, noise in enumerate(seen.noise(call, root / case.target)):
            predicted = seen.velocity(latents[row][None], sigma[row], condition.take([row]))
            errors.append(float(((predicted - (noise - encoded(base, root / case.target))) ** 2).mean()))
        assert losses[case.case_id] == pytest.approx(sum(errors) / 4, rel=1e-4)


def test_a_model_that_knows_the_target_loses_nothing(base, root, monkeypatch):
    """On the straight path from x0, the velocity is (x - x0) / sigma."""
    x0 = encoded(base, root / CASES[0].target)
    monkeypatch.setattr(base, "velocity", lambda x, sigma, _: (x - x0) / sigma.reshape(-1, 1, 1, 1))
    assert held_out_losses(base, CASES[:1], root, draws=4)["one"] == pytest.approx(0, abs=1e-8)


def test_every_model_is_asked_about_the_same_noise(base, root, monkeypatch):
    """Whatever its weights are and in whatever order the cases come; no two draws and no two cases share it."""
    tuned = small_flux()
    tuned.add_lora(2)
    first, second = Seen(base, monkeypatch), Seen(tuned, monkeypatch)
    held_out_losses(base, CASES, root, draws=3)
    held_out_losses(tuned, CASES[::-1], root, draws=3)
    for (mine, *_), (theirs, *_) in zip(first.asked, second.asked[::-1], strict=True):
        assert torch.equal(mine, theirs)
    noises = torch.cat([first.noise(call, root / CASES[call].target) for call in (0, 1)]).flatten(1)
    assert float(torch.corrcoef(noises).fill_diagonal_(0).abs().max()) < 0.5
    assert not any(answer.requires_grad for answer in second.answers)


def test_what_cannot_be_used_is_named(base, root, monkeypatch):
    gone = Case("bad", PROMPTS[0], (("9.png",),), (), "0.png", None)
    with pytest.raises(BadInput, match=r"case bad: reference .*9\.png: cannot be read"):
        held_out_losses(base, [gone], root, draws=1)
    with pytest.raises(BadInput, match=r"case bad: target .*9\.png: cannot be read"):
        held_out_losses(base, [Case("bad", PROMPTS[0], (("0.png",),), (), "9.png", None)], root, draws=1)
    monkeypatch.setattr(base, "velocity", lambda latents, *_: latents * torch.nan)
    with pytest.raises(WorkFailed, match="small-flux: its loss on case one is not finite; check the base's"):
        held_out_losses(base, CASES, root, draws=1)
