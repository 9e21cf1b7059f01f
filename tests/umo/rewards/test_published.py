from collections.abc import Iterator
from itertools import permutations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from umo.errors import BadInput
from umo.faces.base import Face
from umo.rewards import MatchingReward, assigned, mimr, padded_cosines, sir

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
SIZES = [(m, n) for m in range(1, 7) for n in range(1, 7)]


def matrix(cosines: object) -> tuple[torch.Tensor, torch.Tensor]:
    """One sample as a batch, all of it valid."""
    batch = torch.as_tensor(cosines, dtype=torch.float64)[None]
    return batch, torch.ones_like(batch, dtype=torch.bool)


def uniform(matched: float, unmatched: float, m: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """m references, n faces, face j is person j."""
    cosines = np.full((m, n), unmatched)
    np.fill_diagonal(cosines, matched)
    return matrix(cosines)


def released_mimr(cosines: np.ndarray, lambda_match: float = 1.0, lambda_mismatch: float = -1.0) -> float:
    """Picture by picture and pair by pair, with the matching found by trying them all."""
    m, n = cosines.shape
    if n == 0:
        return 0.0
    if m <= n:
        ways = [{(k, j) for k, j in enumerate(chosen)} for chosen in permutations(range(n), m)]
    else:
        ways = [{(k, j) for j, k in enumerate(chosen)} for chosen in permutations(range(m), n)]
    sigma = max(ways, key=lambda pairs: sum(cosines[pair] for pair in pairs))
    total = 0.0
    for j in range(n):
        for k in range(m):
            total += (lambda_match if (k, j) in sigma else lambda_mismatch) * cosines[k, j]
    return total / (m * n)


@pytest.mark.parametrize(("m", "n"), SIZES)
@pytest.mark.parametrize("weights", [(1.0, -1.0), (1.0, 0.0), (0.5, -0.25)])
def test_mimr_is_the_published_form(m: int, n: int, weights: tuple[float, float]) -> None:
    cosines = np.random.default_rng(m * 10 + n).uniform(-1, 1, (m, n))
    assert mimr(*matrix(cosines), *weights).item() == pytest.approx(released_mimr(cosines, *weights))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=5), st.integers(0, 99))
def test_a_padded_batch_is_its_samples(sizes: list[tuple[int, int]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    anchors = [F.normalize(torch.randn(m, 8, generator=generator), dim=1).double() for m, _ in sizes]
    drawn = [F.normalize(torch.randn(n, 8, generator=generator), dim=1).double() for _, n in sizes]
    cosines, valid = padded_cosines(anchors, drawn)
    for reward, alone in ((sir, lambda c: c.max(axis=1).mean() if c.size else 0.0), (mimr, released_mimr)):
        singles = [alone((a @ d.T).numpy()) for a, d in zip(anchors, drawn, strict=True)]
        assert reward(cosines, valid).tolist() == pytest.approx(singles)


def test_padding_gets_no_gradient_and_real_pairs_do() -> None:
    cosines = torch.rand(2, 3, 4, dtype=torch.float64, requires_grad=True)
    valid = torch.zeros(2, 3, 4, dtype=torch.bool)
    valid[0, :2, :3] = True
    for reward in (sir, mimr):
        cosines.grad = None
        reward(cosines, valid).sum().backward()
        assert torch.isfinite(cosines.grad).all()
        assert (cosines.grad[~valid] == 0).all()
        assert cosines.grad[valid].any()
    assert torch.allclose(cosines.grad[valid].abs(), torch.full((6,), 1 / 6, dtype=torch.float64))


def test_matching_leaves_padding_alone() -> None:
    cosines, valid = padded_cosines([torch.eye(2), torch.eye(2)[:1]], [torch.eye(2), torch.eye(2)[1:]])
    assert assigned(cosines, valid).nonzero().tolist() == [[0, 0, 0], [0, 1, 1], [1, 0, 0]]


# What is known to be wrong with the published form: facts to keep, and to hold other rewards against.


@pytest.mark.parametrize("n", [2, 3, 4, 6])
def test_leaving_one_person_out_gives_the_identical_value(n: int) -> None:
    a, b = 0.6, 0.05
    everyone = mimr(*uniform(a, b, n, n)).item()
    assert everyone == pytest.approx((a - (n - 1) * b) / n)
    assert mimr(*uniform(a, b, n, n - 1)).item() == pytest.approx(everyone)


def test_two_people_example() -> None:
    assert mimr(*uniform(0.6, 0.05, 2, 2)).item() == pytest.approx(0.275)
    assert mimr(*uniform(0.6, 0.05, 2, 1)).item() == pytest.approx(0.275)
    assert mimr(*matrix([[0.6, 0.05, 0.05], [0.05, 0.6, 0.05]])).item() == pytest.approx(1 / 6)  # with a bystander


@pytest.mark.parametrize(("n", "weight"), [(1, 1.0), (2, 0.25), (3, 1 / 9), (4, 0.0625), (10, 0.01)])
def test_the_weight_of_a_matched_pair_falls_as_one_over_n_squared(n: int, weight: float) -> None:
    cosines, valid = uniform(0.6, 0.05, n, n)
    cosines.requires_grad_()
    mimr(cosines, valid).sum().backward()
    assert torch.allclose(cosines.grad[0].diagonal(), torch.full((n,), weight, dtype=torch.float64))


def test_two_copies_of_one_person_score_nothing() -> None:
    assert mimr(*matrix([[0.8, 0.8], [0.1, 0.1]])).item() == pytest.approx(0)


def test_averaged_faces_score_nothing() -> None:
    assert mimr(*matrix([[0.5, 0.5], [0.5, 0.5]])).item() == pytest.approx(0)


def test_a_wrong_face_with_a_negative_cosine_is_worse_than_none() -> None:
    assert mimr(*matrix([[-0.2]])).item() < 0


def test_sir_lets_two_references_share_a_face_and_mimr_does_not() -> None:
    blend = matrix([[0.6], [0.6]])
    assert sir(*blend).item() == pytest.approx(0.6)
    assert mimr(*blend).item() == pytest.approx(0)


# The whole reward, with a judge that needs no network.


def tensor(*pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def test_a_batch_costs_one_detection_and_one_embedding(band_judge, bands) -> None:
    reward = MatchingReward(band_judge)
    anchors = [torch.eye(3)[:2], torch.eye(3)[:1], torch.eye(3)[2:]]
    found = reward(tensor(bands(GREEN, RED), bands(RED, (0, 0, 0)), bands((0, 0, 0), (0, 0, 0))), anchors)
    assert (band_judge.calls.detect, band_judge.calls.embed) == (1, 1)
    assert found.reward.tolist() == pytest.approx([0.5, 1, 0])
    assert found.n_faces.tolist() == [2, 1, 0]
    assert found.no_face.tolist() == [False, False, True]
    assert [tuple(cosines.shape) for cosines in found.cosines] == [(2, 2), (1, 1), (1, 0)]
    reward(tensor(bands(RED)), [torch.eye(3)[:1]], faces=[found.faces[1]])
    assert band_judge.calls.detect == 1


@pytest.mark.parametrize("kind", ["sir", "mimr"])
def test_a_picture_without_a_face_has_reward_and_gradient_exactly_zero(band_judge, bands, kind) -> None:
    nobody, somebody = tensor(bands()), tensor(bands((200, 30, 0)))
    images = torch.cat([nobody, somebody]).requires_grad_()
    found = MatchingReward(band_judge, kind)(images, [torch.eye(3)] * 2)
    found.reward.sum().backward()
    assert found.reward[0].item() == 0
    assert (images.grad[0] == 0).all()
    assert torch.isfinite(images.grad).all()
    assert images.grad[1].any()
    alone = MatchingReward(band_judge, kind)(nobody, [torch.eye(3)])
    assert alone.reward.item() == 0
    assert alone.no_face.all()


def test_three_anchors(band_judge, bands) -> None:
    reward = MatchingReward(band_judge)
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, 64:] = RED
    references = reward.embed_anchors("references", [wide, bands(BLUE)])
    assert torch.allclose(references, torch.eye(3)[[0, 2]])
    picture = bands(GREEN, RED, BLUE)
    faces = band_judge.detect([picture])[0]
    target = reward.embed_anchors("target", [picture], faces=[faces[2], faces[0]])
    assert torch.allclose(target, torch.eye(3)[[2, 1]])
    pool = reward.embed_anchors("pool", [[bands(RED), bands(GREEN)], [bands(BLUE)]])
    assert torch.allclose(pool, torch.tensor([[0.5, 0.5, 0], [0, 0, 1]]))


def test_the_largest_face_of_a_reference_counts(band_judge, bands, monkeypatch) -> None:
    small = Face(np.array([0, 0, 16, 16], np.float32), np.zeros((5, 2), np.float32), 0.99)
    large = Face(np.array([32, 0, 64, 32], np.float32), np.zeros((5, 2), np.float32), 0.7)
    monkeypatch.setattr(band_judge, "detect", lambda images: [[small, large]])
    anchors = MatchingReward(band_judge).embed_anchors("references", [bands(RED, BLUE)])
    assert torch.allclose(anchors, torch.eye(3)[2:])


def test_a_reference_without_a_face_is_named(band_judge, bands) -> None:
    reward = MatchingReward(band_judge)
    with pytest.raises(BadInput, match="person 1: no face in photograph 0"):
        reward.embed_anchors("references", [bands(RED), bands()])
    with pytest.raises(BadInput, match="pool anchor of person 0: no face in photograph 1"):
        reward.embed_anchors("pool", [[bands(RED), bands()]])


@pytest.mark.parametrize(
    ("anchor", "photos", "faces"),
    [
        ("target", [0], None),
        ("target", [0], []),
        ("target", [0, 0], [0]),
        ("references", [], None),
        ("references", [0], [0]),
        ("pool", [[]], None),
        ("other", [0], None),
    ],
)
def test_arguments_that_do_not_fit_the_anchor(band_judge, anchor, photos, faces) -> None:
    with pytest.raises(ValueError, match="anchor"):
        MatchingReward(band_judge).embed_anchors(anchor, photos, faces)


def test_wrong_use_is_refused(band_judge, bands) -> None:
    with pytest.raises(ValueError, match="choose one of sir, mimr"):
        MatchingReward(band_judge, "other")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sets of anchors"):
        MatchingReward(band_judge)(tensor(bands(RED)), [])
    with pytest.raises(ValueError, match="sets of anchors"):
        MatchingReward(band_judge)(tensor(bands(RED)), [torch.zeros(0, 3)])
    with pytest.raises(ValueError, match="lists of faces"):
        MatchingReward(band_judge)(tensor(bands(RED)), [torch.eye(3)], faces=[])
    with pytest.raises(ValueError, match="not finite"):
        MatchingReward(band_judge)(tensor(bands(RED)), [torch.full((1, 3), torch.nan)])


# The whole reward on a photograph of six people: pixels -> warp -> SFace -> cosines -> matching.


@pytest.fixture(scope="module")
def scene(opencv_zoo, group_photo, orl) -> tuple[torch.Tensor, list[Face], torch.Tensor]:
    """Two of the six, cut out (1, 3, H, W) in float64; their faces; anchors of three other people."""
    people = sorted(opencv_zoo.detect([group_photo])[0], key=lambda face: face.box[0])[:2]
    x1 = int(max(face.box[2] for face in people)) + 20
    y0, y1 = (int(edge) for edge in (min(f.box[1] for f in people) - 20, max(f.box[3] for f in people) + 20))
    cut = np.ascontiguousarray(group_photo[max(y0, 0) : y1, :x1])
    anchors = MatchingReward(opencv_zoo).embed_anchors("references", [orl(person, 1) for person in (1, 5, 9)])
    (faces,) = opencv_zoo.detect([cut])
    assert len(faces) == 2
    return tensor(cut).double(), faces, anchors.double()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Convolutions in float64 gain little by threads, and on a busy machine two of them wait long for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kind", ["sir", "mimr"])
def test_pixel_gradient_agrees_with_finite_differences(opencv_zoo, scene, kind) -> None:
    images, faces, anchors = scene
    reward = MatchingReward(opencv_zoo, kind)

    def value(pixels: torch.Tensor) -> torch.Tensor:
        return reward(pixels, [anchors], faces=[faces]).reward.sum()

    pixels = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(pixels), pixels)
    generator = torch.Generator().manual_seed(0)
    directions = [torch.randn(images.shape, generator=generator, dtype=torch.float64) for _ in range(2)]
    directions.append(gradient / gradient.norm())
    for place in gradient.abs().flatten().topk(1).indices:
        directions.append(
            torch.zeros(images.numel(), dtype=torch.float64).index_fill(0, place, 1).reshape(images.shape)
        )
    # The network has a kink at every zero of its PReLUs: a longer step crosses some of them, and the slope with them.
    step = 1e-6
    with torch.no_grad():
        for direction in (one / one.norm() for one in directions):
            numeric = (value(images + step * direction) - value(images - step * direction)) / (2 * step)
            assert numeric.item() == pytest.approx((gradient * direction).sum().item(), rel=1e-4)


def test_every_drawn_face_has_a_gradient_and_no_weight_has(opencv_zoo, scene) -> None:
    images, faces, anchors = scene
    pixels = images.float().requires_grad_()
    MatchingReward(opencv_zoo)(pixels, [anchors]).reward.sum().backward()
    for face in faces:
        x0, y0, x1, y1 = (max(int(edge), 0) for edge in face.box)
        assert pixels.grad[0, :, y0:y1, x0:x1].abs().sum() > 0
    networks = [part.torch for part in (opencv_zoo._detector, opencv_zoo._embedder)]
    weights = [weight for network in networks for weight in (*network.parameters(), *network.buffers())]
    assert weights
    assert all(weight.grad is None and not weight.requires_grad for weight in weights)


def test_a_batch_of_photographs_is_its_single_photographs(opencv_zoo, orl) -> None:
    reward = MatchingReward(opencv_zoo)
    photos = [orl(person, 2) for person in (1, 2, 3)]
    anchors = [reward.embed_anchors("references", [orl(person, 1)]) for person in (1, 2, 4)]
    together = reward(tensor(*photos), anchors)
    alone = [reward(tensor(photo), [anchor]) for photo, anchor in zip(photos, anchors, strict=True)]
    assert torch.allclose(together.reward, torch.cat([one.reward for one in alone]), atol=1e-5)
    assert together.reward[0] > 0.5 > together.reward[2]
