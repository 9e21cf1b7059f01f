"""Somebody absent pulls where the target leaves a place free: a gradient, and no value."""

import json
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch

from umo import faces
from umo.errors import BadInput
from umo.faces.base import Face
from umo.reward_settings import Ours
from umo.rewards import MatchingReward
from umo.rewards.places import absent_at, face_at, free_places

RED, GREEN, BLUE, DARK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (3, 2, 3)  # what is dark is seen as nobody
EYES = torch.tensor([[4, 10], [20, 10], [12, 16], [6, 20], [18, 20]], dtype=torch.float32)
SETTINGS = Ours(stranger=0.2, ceiling=0.9, anchor=None)


def places(*bands: int) -> torch.Tensor:
    return torch.stack([EYES + torch.tensor([32.0 * band, 0]) for band in bands])


def tensor(picture: np.ndarray) -> torch.Tensor:
    return (torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1).requires_grad_()


def by_band(gradient: torch.Tensor) -> list[torch.Tensor]:
    """The colour that each band is pulled towards, (3,) each."""
    return [part.sum(dim=(1, 2)) for part in gradient[0].split(32, dim=2)]


@pytest.mark.parametrize(
    ("drawn", "absent"),
    [
        ((RED, DARK, BLUE), 1),
        ((GREEN, DARK, BLUE), 0),  # whose own place is taken by the second person
    ],
    ids=["in order", "in another order"],
)
def test_the_place_that_is_left_is_pulled_towards_who_is_absent(band_judge, bands, drawn, absent: int) -> None:
    reward, anchors = MatchingReward(band_judge, "ours", settings=SETTINGS), torch.eye(3)
    images = tensor(bands(*drawn))
    found = reward(images, [anchors], places=[places(0, 1, 2)])
    assert found.placed == (1,)
    (gradient,) = torch.autograd.grad(found.reward.sum(), images)
    alike = band_judge.embed(images, [[face_at(places(1)[0].numpy())]])[0, absent]
    (expected,) = torch.autograd.grad(alike / 3, images)
    assert torch.allclose(gradient[..., 32:64], expected[..., 32:64]) and expected.any()
    assert by_band(gradient)[1].argmax() == absent
    plain = reward(images, [anchors])
    assert plain.placed == (0,) and torch.equal(plain.reward, found.reward)
    assert band_judge.calls.embed == 3, "one a batch"


def test_a_picture_without_a_face_pulls_everywhere(band_judge, bands) -> None:
    reward, images = MatchingReward(band_judge, "ours", settings=SETTINGS), tensor(bands(DARK, DARK, DARK))
    found = reward(images, [torch.eye(3)], places=[places(2, 0, 1)])
    assert found.reward.item() == pytest.approx(-SETTINGS.absent) and found.placed == (3,)
    found.reward.sum().backward()
    assert images.grad is not None
    assert [int(part.argmax()) for part in by_band(images.grad)] == [1, 2, 0]
    assert not reward(images, [torch.eye(3)]).reward.requires_grad


@pytest.mark.parametrize(
    ("kind", "change", "drawn", "known"),
    [
        ("ours", {"place_absent": False}, (RED, DARK), (0, 1)),
        ("ours", {}, (RED, RED), (0, 1)),
        ("ours", {}, (RED, DARK), ()),
        ("sir", {}, (RED, DARK), (0, 1)),
        ("mimr", {}, (RED, DARK), (0, 1)),
    ],
    ids=["switched off", "faces enough", "places unknown", "sir", "mimr"],
)
def test_nobody_is_placed(band_judge, bands, kind, change, drawn, known) -> None:
    reward = MatchingReward(band_judge, kind, settings=SETTINGS.model_copy(update=change))
    images, there = tensor(bands(*drawn)), places(*known) if known else torch.zeros(0, 5, 2)
    found, plain = reward(images, [torch.eye(3)[:2]], places=[there]), reward(images, [torch.eye(3)[:2]])
    assert found.placed == (0,) and found.reward.item() == plain.reward.item()
    gradients = [torch.autograd.grad(one.reward.sum(), images)[0] for one in (found, plain)]
    assert torch.equal(*gradients)


def test_faces_take_the_nearest_places() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        spots = random.uniform(0, 100, (4, 5, 2))
        drawn = [Face(np.zeros(4), random.uniform(0, 100, (5, 2)), 1.0) for _ in range(random.integers(0, 4))]

        def far(taken: tuple[int, ...], spots=spots, drawn=drawn) -> float:
            pairs = zip(taken, drawn, strict=True)
            return sum(np.linalg.norm(spots[k].mean(axis=0) - one.landmarks.mean(axis=0)) for k, one in pairs)

        nearest = min(permutations(range(4), len(drawn)), key=far)
        assert free_places(spots, drawn) == sorted(set(range(4)) - set(nearest))


def test_who_is_absent_stands_at_the_own_place_or_at_what_is_left() -> None:
    cosines = np.array([[0.1], [0.8], [0.0], [0.2]])
    assert absent_at(cosines, [0, 2, 3]) == {0: 0, 2: 2, 3: 3}
    assert absent_at(cosines, [1, 2, 3]) == {2: 2, 3: 3, 1: 0}


def test_bounds_are_measured_on_the_face_model(opencv_zoo) -> None:
    reward = MatchingReward(opencv_zoo, "ours")
    side = json.loads((Path(faces.__file__).parent / "opencv_zoo.calibration.json").read_text())["sides"]["64"]
    assert (reward.stranger, reward.ceiling) == (side["strangers"]["p95"], side["same"]["p50"])
    assert 0 < reward.stranger < opencv_zoo.same_person_cosine < reward.ceiling < 1
    given = MatchingReward(opencv_zoo, "ours", settings=Ours(stranger=None, ceiling=0.9))
    assert (given.stranger, given.ceiling) == (None, 0.9)


def test_what_cannot_be_measured_is_said(band_judge) -> None:
    for key, other in (("stranger", "ceiling"), ("ceiling", "stranger")):
        with pytest.raises(BadInput, match=rf"bands has no calibration, which ours.{key}: measured needs"):
            MatchingReward(band_judge, "ours", settings=Ours.model_validate({other: 0.5}))
    band_judge.same_person_cosine = float("nan")
    with pytest.raises(BadInput, match=r"bands has no calibration, which ours.doubled needs: set it to 0"):
        MatchingReward(band_judge, "ours", settings=SETTINGS)
    MatchingReward(band_judge, "ours", settings=SETTINGS.model_copy(update={"doubled": 0}))
    MatchingReward(band_judge)
