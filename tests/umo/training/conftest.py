"""A small world to train in: a base of 70,000 random weights, people who are colours, a judge that sees colours.

An update takes some hundredths of a second. `tests.umo.training.child` builds the same world in other processes.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor

from tests.conftest import BandJudge
from tests.umo.customizers.conftest import PROMPTS, smooth
from umo import faces
from umo.customizers import load
from umo.customizers.base import Customizer
from umo.customizers.build import TINY, build_tiny
from umo.customizers.flux_uno import FluxUno
from umo.customizers.tiny import PatchAutoencoder
from umo.faces.base import FaceModel
from umo.images import encode_png
from umo.quality import square_crop
from umo.rewards import Kind, MatchingReward
from umo.scenes.prompts import prompt
from umo.training.recipe import Method, Recipe
from umo.training.samples import Sample, Samples
from umo.training.trainer import Log, Trainer

TINY_UNO = Path(__file__).resolve().parents[3] / "models" / "tiny-uno"
PEOPLE = {
    "ann": (230, 60, 40),
    "bob": (50, 200, 60),
    "cas": (60, 70, 230),
    "dee": (210, 200, 40),
    "eve": (40, 190, 200),
    "fay": (200, 50, 190),
}
TRAIN = [("ann", "bob"), ("bob",), ("cas", "ann"), ("cas",), ("bob", "cas", "ann"), ("ann", "bob", "cas")]
VALIDATION = [("dee", "eve"), ("fay",), ("eve", "fay", "dee")]
SMALL = {
    "steps": 4,
    "batch": 4,
    "micro_batch": 4,
    "learning_rate": 1e-2,
    "rank": 2,
    "rollout_steps": 4,
    "gradient_first": 1,
    "gradient_last": 3,
    "checkpoint_every": 6,
}


def photo(*people: str) -> bytes:
    """Bands of colour, one a person, as BandJudge sees people."""
    bands = torch.tensor([PEOPLE[person] for person in people], dtype=torch.uint8)
    return encode_png(bands.repeat_interleave(32, dim=0).expand(32, -1, -1).numpy())


def sample(*people: str) -> Sample:
    """A photograph of each, and a picture of all."""
    prompt = PROMPTS[{1: 0, 2: 1, 3: 3}[len(people)]]
    return Sample("+".join(people), prompt, tuple(photo(person) for person in people), photo(*people), people)


def small_base() -> FluxUno:
    autoencoder = PatchAutoencoder(latent_channels=4).fit(smooth(8, 64, 128))
    settings = TINY.model_copy(update={"steps": 4})
    return build_tiny(
        PROMPTS, autoencoder, settings=settings, double_blocks=1, single_blocks=1, heads=1, head_width=32, text_width=16
    )


def build(
    folder: Path,
    method: Method = "mimr",
    log: Log | None = None,
    customizer: Customizer | None = None,
    train: Sequence[Sequence[str]] = TRAIN,
    **recipe: object,
) -> Trainer:
    """A run in a folder, which goes on from what it finds there."""
    customizer = customizer or small_base()
    given = Recipe.model_validate(SMALL | recipe)
    kind: Kind = "mimr" if method == "sft" else method
    reward = MatchingReward(BandJudge(folder / "bands.weights"), kind, settings=given.ours)
    samples = [
        Samples(
            [sample(*people) for people in split],
            customizer,
            reward,
            given.anchor_of(method),
            folder / "encoded",
            droppable=given.text_dropout > 0,
        )
        for split in (train, VALIDATION)
    ]
    return Trainer(customizer, *samples, reward, given, method, folder / "checkpoints", log)


def build_real(folder: Path, samples: Sequence[Sample], method: Method = "mimr", **recipe: object) -> Trainer:
    """On the embedded base, rewarded by the networks that it is trained with."""
    customizer = load(TINY_UNO)
    given = Recipe.model_validate(SMALL | {"rollout_steps": 6, "rank": 4} | recipe)
    kind: Kind = "mimr" if method == "sft" else method
    reward = MatchingReward(faces.load("opencv_zoo"), kind, settings=given.ours)
    train = Samples(samples, customizer, reward, given.anchor_of(method), folder / "encoded-real")
    return Trainer(customizer, train, None, reward, given, method, folder / "checkpoints-real")


def stir(trainer: Trainer) -> None:
    """Weights in the middle of a training: a new LoRA's gradient is 0 in its first half."""
    generator = torch.Generator().manual_seed(0)
    for weight in trainer.weights:
        weight.data += 0.1 * torch.randn(weight.shape, generator=generator)


@pytest.fixture(scope="session")
def photographs(orl: Callable[[int, int], np.ndarray], opencv_zoo: FaceModel) -> list[Sample]:
    """One, two and three people that the embedded base has not seen, cut out as it takes them."""

    def cut(person: int) -> np.ndarray:
        whole = orl(person, 1)
        return square_crop(whole, opencv_zoo.detect([whole])[0][0].box, 2.2, 128)[0]

    samples = []
    for people in ((8,), (27, 8), (8, 27, 33)):
        photos = [cut(person) for person in people]
        words = prompt([(k + 0.5) / len(people) for k in range(len(people))], "plain blue")
        encoded = tuple(encode_png(photo) for photo in photos)
        names = tuple(f"s{person}" for person in people)
        samples.append(Sample("+".join(names), words, encoded, encode_png(np.hstack(photos)), names))
    return samples


def gradient(trainer: Trainer, rows: Sequence[int]) -> Tensor:
    """Of a batch, all weights in one row; not clipped."""
    trainer.optimizer.zero_grad()
    trainer._backward(rows)
    trainer._average_gradients()
    return torch.cat([weight.grad.flatten() for weight in trainer.weights if weight.grad is not None])


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative to what is expected."""
    return float((found - expected).norm() / expected.norm())


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """These networks are too small to share a step among threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> Iterator[None]:
    """accelerate keeps its first settings for the whole process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
