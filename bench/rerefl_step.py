"""What a whole ReReFL update costs beside its own parts called bare: what the trainer adds around the networks.

The parts are what no trainer could leave out: the rollout's forwards, the diffusion pass, the reward pass, decoder,
detector, embedder and the way back. They run on the batch and the random numbers of the whole update just before.
"""

from collections.abc import Sequence
from statistics import median

import torch
from torch import Tensor

from bench.result import Result
from bench.setup import Setup, faithful
from bench.timing import Stopwatch
from umo import flow
from umo.training.draws import Draws, draw_randomness
from umo.training.samples import Batch, Samples
from umo.training.trainer import Trainer

NAME = "rerefl-step-overhead"
BAR = 1.10
WHOLE = "whole update"
PARTS = ("rollout", "diffusion pass", "reward pass", "decode", "detect", "embed and backward")


class LastBatch(Samples):
    """Samples that remember the batch they gave last."""

    last: Batch

    def batch(self, indices: Sequence[int]) -> Batch:
        self.last = super().batch(indices)
        return self.last


def run(setup: Setup, updates: int = 12, warm_up: int = 2) -> Result:
    """The median over the updates of whole / sum of the parts.

    Args:
        updates: measured; each is followed by its own parts.
        warm_up: of them before, not measured.
    """
    trainer, samples = prepare(setup)
    seconds = [pair(trainer, samples) for _ in range(warm_up + updates)][warm_up:]
    ratios = [row[WHOLE] / sum(row[part] for part in PARTS) for row in seconds]
    return Result(
        name=NAME,
        value=median(ratios),
        unit="seconds of a whole update / seconds of its parts",
        against="the networks' own passes of that update, called bare on the same batch and late step",
        bar=BAR,
        lower_is_better=True,
        details={
            "updates": updates,
            "batch": trainer.recipe.batch,
            "ratios": [round(ratio, 4) for ratio in ratios],
            "seconds_per_update": {
                name: round(sum(row[name] for row in seconds) / updates, 4) for name in (WHOLE, *PARTS)
            },
        },
    )


def prepare(setup: Setup) -> tuple[Trainer, LastBatch]:
    """A trainer of the faithful recipe whose batches go through the networks in one piece."""
    recipe = faithful(setup.recipe, micro_batch=setup.recipe.batch)
    customizer = setup.load_base()
    samples = LastBatch(setup.train, customizer, setup.reward, recipe.anchor, setup.encoded)
    samples.prepare("encode train")
    return Trainer(customizer, samples, None, setup.reward, recipe, "mimr", setup.scratch / NAME), samples


def pair(trainer: Trainer, samples: LastBatch) -> dict[str, float]:
    """One update and then its parts: the seconds of each."""
    watch = Stopwatch(trainer.customizer.device)
    step = trainer.progress.step
    with watch(WHOLE):
        trainer.update()
    batch = samples.last
    draws = draw_randomness(trainer.recipe, batch.target.shape[1:], step, range(len(batch.names)))
    bare(trainer, batch, draws, watch)
    return watch.seconds


def bare(trainer: Trainer, batch: Batch, draws: Draws, watch: Stopwatch) -> None:
    """The parts of an update without what stands around them; leaves the weights as they are."""
    customizer, faces, steps = trainer.customizer, trainer.reward.faces, trainer.recipe.rollout_steps
    time, noise, start = (numbers.to(batch.target) for numbers in (draws.time, draws.noise, draws.start))
    sigmas = customizer.sigmas(steps, batch.size).to(start)
    sigma = sigmas[steps - draws.late]

    def velocity(latents: Tensor, sigma: Tensor) -> Tensor:
        return customizer.velocity(latents, sigma, batch.condition)

    trainer.optimizer.zero_grad(set_to_none=True)
    with trainer.accelerator.autocast():
        with watch("rollout"), torch.no_grad():
            latents = flow.rollout(velocity, start, sigmas, stop=steps - draws.late)
        with watch("diffusion pass"):
            flow.loss(velocity, batch.target, noise, time).backward()
        with watch("reward pass"):
            clean = flow.one_step_x0(latents, sigma, velocity(latents, sigma))
        with watch("decode"):
            pictures = customizer.decode(clean).float()
    with watch("detect"):
        found = faces.detect(pictures.detach())
    with watch("embed and backward"):
        if any(found):
            faces.embed(pictures, found).mean().backward()
