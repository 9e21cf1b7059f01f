"""How many evaluations of the network cheaper forms of ReReFL need for the likeness that the published form reaches.

Each form trains MIMR from the same base with the same knobs. Every few updates the validation people are drawn by the
usual full sampler and judged by a face model that gave no reward; that drawing is not counted. The forms:

- faithful: Algorithm 1; for every update a rollout from noise down to the step with gradient.
- short: a rollout of three steps, of which the last or the one before has the gradient.
- two-step: no rollout; two steps with gradient, from noise to the picture.
- reforwarded: a whole rollout of four steps serves three updates; the reward sees its end.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from bench.rerefl_curves import FAITHFUL, NAME, Point, compare
from bench.result import Result, write_json
from bench.setup import Setup, faithful, varied
from pipelines.core.params import load
from pipelines.core.shards import digest, file_digest
from umo import faces
from umo.customizers import Customizer, draw
from umo.errors import WorkFailed
from umo.evaluation import metrics
from umo.evaluation.cases import Case
from umo.evaluation.scoring import Gallery, score_case
from umo.faces import FaceModel
from umo.faces.pixels import to_uint8
from umo.images import read_image
from umo.training.recipe import Recipe
from umo.training.samples import Sample, Samples
from umo.training.trainer import Trainer

METRIC = "id_sim_strict"
MORE_UPDATES = 2  # times the updates of the faithful form, for the others: they cost less than half
SEEDS = 3
DRAWN_AT_ONCE = 10


def forms(recipe: Recipe, updates: int) -> dict[str, Recipe]:
    """The recipe of each form.

    Args:
        updates: of the faithful form.
    """
    more = MORE_UPDATES * updates
    return {
        FAITHFUL: faithful(recipe, steps=updates),
        "short": faithful(recipe, steps=more, rollout_steps=3, gradient_first=1, gradient_last=2),
        "two-step": faithful(recipe, steps=more, rollout_steps=2, gradient_first=2, gradient_last=2, gradient_steps=2),
        "reforwarded": varied(
            recipe,
            steps=more,
            rollout_start="noise",
            rollout_steps=4,
            gradient_first=1,
            gradient_last=3,
            reward_picture="rollout",
            updates_per_rollout=3,
            checkpoint_every=3,
        ),
    }


class Evaluations:
    """Counts the samples that go through a network, forward and backward, while it is watched.

    Activations that gradient checkpointing computes again are not counted.
    """

    def __init__(self) -> None:
        self.forwards = self.backwards = 0

    @contextmanager
    def watching(self, network: nn.Module) -> Iterator[None]:
        """A network called with `hidden_states` (B, ...) that returns a tuple, as diffusers' transformers are."""
        handle = network.register_forward_hook(self._forward, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _forward(self, network: nn.Module, inputs: tuple, named: dict[str, Any], output: tuple[Tensor, ...]) -> None:
        count = len(named["hidden_states"])
        self.forwards += count
        if output[0].requires_grad:
            output[0].register_hook(lambda gradient: self._backward(count))

    def _backward(self, count: int) -> None:
        self.backwards += count


class HeldOut:
    """Sets of people not trained on, drawn by a base's usual sampler from fixed noise, and judged."""

    def __init__(self, samples: Sequence[Sample], judge: FaceModel, folder: Path) -> None:
        """
        Args:
            folder: of references and drawn pictures, to be looked at.
        """
        self.samples, self.folder, self.gallery = list(samples), folder, Gallery(judge, folder)
        (folder / "references").mkdir(parents=True, exist_ok=True)
        self.references = [tuple(self._put(photo) for photo in sample.references) for sample in self.samples]

    def _put(self, photo: bytes) -> str:
        name = f"references/{hashlib.sha256(photo).hexdigest()[:16]}"
        (self.folder / name).write_bytes(photo)
        return name

    def likeness(self, customizer: Customizer, to: str) -> dict[str, Any]:
        """`id_sim_strict` with its interval, cases clustered by person.

        Args:
            to: the pictures' folder below `folder`; another one at every call, for a path is looked at once.

        Raises:
            WorkFailed: the judge finds no face in the references of any set.
        """
        (self.folder / to).mkdir(parents=True, exist_ok=True)
        paths = [f"{to}/{sample.name}.png" for sample in self.samples]
        for rows in self._batches():
            for row, picture in zip(rows, self._draw(customizer, rows), strict=True):
                Image.fromarray(picture).save(self.folder / paths[row])
        self.gallery.look(paths)
        scored = []
        for sample, photos, path in zip(self.samples, self.references, paths, strict=True):
            people = tuple((photo,) for photo in photos)
            case = Case(sample.name, sample.prompt, people, (path,), None, sample.people)
            scored += score_case(case, self.gallery).rows
        estimate = metrics.over_cases(scored, [metrics.of_row(row, METRIC) for row in scored])
        if estimate.mean is None:
            raise WorkFailed(f"{self.folder}: none of {len(scored)} sets could be judged: {scored[0]['error']}")
        return asdict(estimate)

    def _batches(self) -> list[list[int]]:
        """Rows that are drawn together: as many references, and so one size."""
        by_count: dict[int, list[int]] = {}
        for row, sample in enumerate(self.samples):
            by_count.setdefault(len(sample.references), []).append(row)
        starts = [(rows, start) for rows in by_count.values() for start in range(0, len(rows), DRAWN_AT_ONCE)]
        return [rows[start : start + DRAWN_AT_ONCE] for rows, start in starts]

    def _draw(self, customizer: Customizer, rows: Sequence[int]) -> np.ndarray:
        """(B, H, W, 3) uint8."""
        chosen = [self.samples[row] for row in rows]
        references = [[read_image(photo) for photo in sample.references] for sample in chosen]
        return to_uint8(draw(customizer, [sample.prompt for sample in chosen], references, seeds=rows))


def run(setup: Setup, updates: int | None = None, every: int = 15, quick: bool = False) -> Result:
    """Evaluations of the cheapest form / those of the faithful form, for the likeness that the latter ends with.

    Forms that are finished are kept, under a key of all that they depend on: a killed bench goes on with the next.

    Args:
        updates: of the faithful form, None takes the recipe's; the others make `MORE_UPDATES` times as many.
        every: updates between measurements.
        quick: one training of each form instead of one with each of `SEEDS` seeds.
    """
    recipes = forms(setup.recipe, updates or setup.recipe.steps)
    judge = faces.load(load("evaluate").model_dump()["judge"])
    held_out = HeldOut(setup.validation, judge, setup.scratch / NAME / "pictures")
    seeds = [setup.recipe.seed + k for k in range(1 if quick else SEEDS)]
    curves: dict[str, list[list[Point]]] = {name: [] for name in recipes}
    for seed in seeds:  # a seed of all forms before the next one
        for name, recipe in recipes.items():
            curves[name].append(kept_curve(setup, name, varied(recipe, seed=seed), held_out, every))
    return compare(curves, setup.recipe, judge.name)


def kept_curve(setup: Setup, name: str, recipe: Recipe, held_out: HeldOut, every: int) -> list[Point]:
    """The curve of a form: of an earlier run, or trained now."""
    judge = held_out.gallery.judge
    code = [file_digest(Path(__file__)), *(file_digest(path) for path in judge.files)]
    key = digest(setup.fingerprint, recipe.model_dump_json(), every, [one.digest for one in held_out.samples], code)
    path = setup.scratch / NAME / f"{name}-{recipe.seed}-{key[:16]}.json"
    if path.exists():
        return [Point(**row) for row in json.loads(path.read_text())]
    points = curve(setup, name, recipe, held_out, every)
    write_json(path, [asdict(point) for point in points])
    return points


def curve(setup: Setup, name: str, recipe: Recipe, held_out: HeldOut, every: int) -> list[Point]:
    """Train a form and measure it before the first update, every few updates, and after the last."""
    customizer = setup.load_base()
    samples = Samples(setup.train, customizer, setup.reward, recipe.anchor, setup.encoded)
    samples.prepare("encode train")
    to = f"{name}-{recipe.seed}"
    trainer = Trainer(customizer, samples, None, setup.reward, recipe, "mimr", setup.scratch / NAME / to)
    evaluations, seconds = Evaluations(), 0.0
    points = [Point(0, 0, 0, 0.0, held_out.likeness(customizer, f"{to}/0"))]
    with tqdm(total=recipe.steps, desc=f"train {to}", unit="update") as bar:
        while (done := trainer.progress.step) < recipe.steps:
            started = time.perf_counter()
            with evaluations.watching(customizer.transformer):
                for _ in range(min(every, recipe.steps - done)):
                    trainer.update()
                    bar.update()
            seconds += time.perf_counter() - started
            step = trainer.progress.step
            likeness = held_out.likeness(customizer, f"{to}/{step}")
            points.append(Point(step, evaluations.forwards, evaluations.backwards, round(seconds, 1), likeness))
            bar.set_postfix({METRIC: f"{likeness['mean']:.3f}"})
    return points
