"""Where no face is found, our reward has a gradient at the places of the target, and the trainer says how often."""

from pathlib import Path

import pytest

from tests.umo.training.conftest import build, gradient, stir
from tests.umo.training.test_samples import people
from umo.training.samples import Samples
from umo.training.trainer import Trainer

GIVEN = {"anchor": None, "stranger": 0.2, "ceiling": 0.9}


def unseen(folder: Path, **ours: object) -> Trainer:
    """It draws two people whom the detector does not find."""
    without = {"diffusion_weight": 0.0, "rollout_start": "target"}  # a rollout moves with the weights, unseen
    trainer = build(folder, "ours", batch=2, micro_batch=2, ours=GIVEN | ours, **without)
    trainer.train = Samples([people("ann", "bob")], trainer.customizer, trainer.reward, "references", folder / "own")
    trainer.train.prepare("encode")
    stir(trainer)
    trainer.reward.faces.detect = lambda images: [[] for _ in images]  # type: ignore[method-assign]
    return trainer


@pytest.mark.parametrize("place_absent", [True, False])
def test_people_who_are_not_found_have_a_gradient_by_their_places(tmp_path: Path, place_absent: bool) -> None:
    trainer = unseen(tmp_path, place_absent=place_absent)
    row = trainer.update()
    assert (row["gradient_norm"] > 0) == place_absent
    assert (row["absent"], row["no_face"], row["placed"]) == (1, 1, place_absent)
    assert row["reward"] == pytest.approx(-trainer.recipe.ours.absent)
    assert trainer.progress.skipped == 0


def test_a_step_along_that_gradient_makes_the_places_more_alike(tmp_path: Path) -> None:
    trainer = unseen(tmp_path, absent=0, ceiling=None)
    seen = []
    embed = trainer.reward.faces.embed

    def watched(images, found):
        vectors = embed(images, found)
        seen.append((vectors.detach().reshape(-1, 2, 3) * trainer.train.batch([0]).anchors[0]).sum(dim=2).mean())
        return vectors

    trainer.reward.faces.embed = watched  # type: ignore[method-assign]
    slope = gradient(trainer, [0, 0])
    sizes = [weight.numel() for weight in trainer.weights]
    for weight, part in zip(trainer.weights, slope.split(sizes), strict=True):
        weight.data -= 0.01 * (part / slope.norm()).reshape(weight.shape)
    gradient(trainer, [0, 0])
    before, after = seen
    assert (after - before).item() == pytest.approx(0.01 * slope.norm().item(), rel=0.02)
