"""Encoded samples: kept, read again, made anew where they are damaged; unfit ones are refused by name."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import BandJudge
from tests.umo.training.conftest import TRAIN, photo, sample, small_base
from umo.customizers.flux_uno import FluxUno
from umo.customizers.references import fill
from umo.errors import BadInput
from umo.guidance import Guidance
from umo.images import encode_png, read_image
from umo.rewards import Anchor, MatchingReward
from umo.training.samples import Batch, Sample, Samples

EYES = np.array([[4, 10], [20, 10], [12, 16], [6, 20], [18, 20]], np.float32)


class Counted:
    """Samples on a base that counts what it encodes."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.encoded = folder, 0
        self.base = small_base()
        self.base.settings = self.base.settings.model_copy(update={"guidance": Guidance(text=4)})
        self.reward = MatchingReward(BandJudge(folder / "bands.weights"))
        real = self.base.encode

        def encode(images: torch.Tensor) -> torch.Tensor:
            self.encoded += 1
            return real(images)

        monkeypatch.setattr(self.base, "encode", encode)

    def __call__(self, samples: Sequence[Sample], anchor: Anchor = "references", droppable: bool = False) -> Samples:
        return Samples(samples, self.base, self.reward, anchor, self.folder / "encoded", droppable)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(tmp_path, monkeypatch)


def people(*names: str) -> Sample:
    """With all that any anchor needs; a band's landmarks lie in its middle."""
    landmarks = tuple(EYES + np.array([4 + 32 * k, 0]) for k in range(len(names)))
    pool = tuple((photo(name), photo(name)) for name in names)
    return replace(sample(*names), target_landmarks=landmarks, pool=pool)


def equal(found: Batch, expected: Batch) -> bool:
    pairs = [(found.target, expected.target), *zip(found.anchors, expected.anchors, strict=True)]
    for ours, theirs in zip(found.condition.samples, expected.condition.samples, strict=True):
        assert ours.keys() == theirs.keys()
        pairs += [(ours[name], theirs[name]) for name in ours]
    return found.condition.guidance == expected.condition.guidance and all(torch.equal(*pair) for pair in pairs)


def test_a_batch_is_what_the_base_makes_of_its_samples(make: Counted) -> None:
    samples = make([people("ann", "bob"), people("cas"), people("bob", "ann")])
    batch = samples.batch([2, 1])
    chosen = [samples.samples[2], samples.samples[1]]
    assert batch.names == ("bob+ann", "cas") and batch.size == (64, 128)
    expected = Batch(
        names=batch.names,
        size=batch.size,
        condition=make.base.condition(
            [one.prompt for one in chosen],
            [[read_image(data) for data in one.references] for one in chosen],
            make.base.settings.training_guidance,
        ),
        target=make.base.encode(torch.stack([fill(read_image(one.target), (64, 128)) for one in chosen])),
        anchors=[make.reward.embed_anchors("references", [read_image(d) for d in one.references]) for one in chosen],
    )
    for name in ("text", "pooled"):
        assert torch.allclose(batch.condition.stack(name), expected.condition.stack(name), atol=1e-6)
    assert torch.allclose(batch.target, expected.target, atol=1e-5)
    texts = [{name: sample[name] for name in ("text", "pooled")} for sample in expected.condition.samples]
    exact = [dict(own) | text for own, text in zip(batch.condition.samples, texts, strict=True)]
    condition = replace(batch.condition, samples=tuple(exact))
    assert equal(replace(batch, condition=condition, target=expected.target), expected)


def test_what_is_encoded_is_kept_and_used_by_the_next(make: Counted) -> None:
    given = [people("ann", "bob"), people("cas")]
    first = make(given)
    first.prepare("encode")
    assert make.encoded == 3 + 2, "a latent a reference and a target"
    assert not list((make.folder / "encoded").glob("*.tmp"))
    before = first.batch([0, 1])
    second = make(given)
    second.prepare("encode")
    assert equal(second.batch([0, 1]), before)
    assert make.encoded == 3 + 2


def test_a_prompt_that_may_be_dropped_is_kept_with_what_takes_its_place(make: Counted) -> None:
    """Apart from what was encoded without."""
    given = [people("ann", "bob")]
    plain = make(given).batch([0]).condition
    whole = make(given, droppable=True).batch([0]).condition
    assert make.encoded == 2 * 3
    assert plain.samples[0].keys() == make(given).batch([0]).condition.samples[0].keys()
    assert {"negative_text", "negative_pooled"} == whole.samples[0].keys() - plain.samples[0].keys()
    dropped, empty = whole.unprompted([0]), make.base.condition([""], [[]])
    assert all(torch.allclose(dropped.stack(name), empty.stack(name), atol=1e-6) for name in ("text", "pooled"))
    assert all(torch.equal(*pair) for pair in zip(dropped.references(0), whole.references(0), strict=True))
    with pytest.raises(ValueError, match="the negative one was not asked for"):
        plain.unprompted([0])


def test_processes_encode_a_share_each(make: Counted) -> None:
    given = [people("ann", "bob"), people("cas"), people("bob", "ann")]
    for share, encoded in enumerate((3 + 3, 2)):
        before = make.encoded
        make(given).prepare("encode", share, 2)
        assert make.encoded == before + encoded
    make(given).prepare("encode")
    assert make.encoded == 3 + 3 + 2, "nothing is left"


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "A photo of one person: the first person on the left."},
        {"references": (photo("dee"), photo("bob"))},
        {"target": photo("dee", "bob")},
        {"pool": ((photo("ann"),), (photo("bob"),))},
        {"target_landmarks": (EYES, EYES)},
        {"name": "other"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_changed_sample_is_encoded_anew(make: Counted, change: dict) -> None:
    make([people("ann", "bob")]).prepare("encode")
    before = make.encoded
    make([replace(people("ann", "bob"), **change)]).prepare("encode")
    assert make.encoded == before + 3


@pytest.mark.parametrize("prepared", [True, False], ids=["by prepare", "when it is needed"])
@pytest.mark.parametrize("damage", [lambda data: data[:-10], lambda data: b"", lambda data: b"\xff" * len(data)])
def test_a_damaged_file_is_encoded_again(make: Counted, damage, prepared: bool) -> None:
    samples = make([people("ann"), people("bob")])
    samples.prepare("encode")
    before, count = samples.batch([0, 1]), make.encoded
    path = samples._path(samples.entries[1])
    whole = path.read_bytes()
    path.unlink()  # a batch in memory may still read the old file
    path.write_bytes(damage(whole))
    if prepared:
        samples.prepare("encode")
        assert make.encoded == count + 2, "a run frees the encoders next: nothing can be encoded later"
    assert equal(samples.batch([0, 1]), before)
    assert make.encoded == count + 2
    assert path.read_bytes() == whole


def test_anchors_are_the_rewards_own(make: Counted) -> None:
    pool = tuple((photo(name), photo("dee")) for name in ("ann", "bob", "cas"))
    one = replace(people("ann", "bob", "cas"), target=photo("dee", "eve", "fay"), pool=pool)
    photos = [read_image(data) for data in one.references]
    target = read_image(one.target)
    faces = make.reward.faces.detect([target])[0]
    expected = {
        "references": make.reward.embed_anchors("references", photos),
        "target": make.reward.embed_anchors("target", [target], faces),
        "pool": make.reward.embed_anchors("pool", [[read_image(data) for data in person] for person in one.pool]),
    }
    assert len({tuple(vectors.flatten().tolist()) for vectors in expected.values()}) == 3
    for anchor, vectors in expected.items():
        (found,) = make([one], anchor).batch([0]).anchors  # type: ignore[arg-type]
        assert torch.allclose(found, vectors, atol=1e-6), anchor


def test_the_target_anchor_looks_where_the_landmarks_say(make: Counted) -> None:
    """Not where faces are found, and in the order of the people."""
    one = people("ann", "bob")
    swapped = replace(one, target_landmarks=one.target_landmarks[::-1])
    (found,), (other,) = (make([each], "target").batch([0]).anchors for each in (one, swapped))
    assert torch.allclose(found, other.flip(0), atol=1e-6) and not torch.allclose(found, other, atol=0.1)


def test_a_photograph_that_samples_share_is_embedded_once(make: Counted) -> None:
    judge: BandJudge = make.reward.faces  # type: ignore[assignment]
    make([people("ann", "bob"), people("bob", "cas"), people("ann")]).prepare("encode")
    assert judge.calls.embed == 3


def test_samples_are_grouped_by_the_size_of_their_pictures(make: Counted) -> None:
    samples = make([people(*names) for names in TRAIN])
    assert samples.by_size == {(64, 128): [0, 1, 2, 3], (64, 192): [4, 5]}
    assert samples.batch([4]).target.shape[2:] == (16, 48)


def test_unfit_samples_are_refused_by_name(make: Counted) -> None:
    nobody = replace(people("ann"), name="s7")
    with pytest.raises(BadInput, match="no samples"):
        make([])
    with pytest.raises(BadInput, match=r"sample ann\+bob\+cas\+dee: 4 people, and tiny-uno takes at most 3"):
        make(
            [
                people("ann"),
                replace(sample("ann", "bob", "cas"), name="ann+bob+cas+dee", references=(photo("ann"),) * 4),
            ]
        )
    black = encode_png(np.zeros((40, 40, 3), np.uint8))
    with pytest.raises(BadInput, match="sample s7: no face in a photograph of person 1"):
        two = replace(people("ann", "bob"), name="s7", references=(photo("ann"), black))
        make([two]).prepare("encode")
    with pytest.raises(BadInput, match="sample s7: reference 0: not an image"):
        make([replace(nobody, references=(b"not a picture",))]).prepare("encode")
    with pytest.raises(BadInput, match="sample s7: target: truncated or corrupt"):
        make([replace(nobody, target=photo("ann")[:60])]).prepare("encode")
    low = (people("ann").target_landmarks[0] + np.array([0, 5]),)  # 32 rows become 128, of which the middle 64 stay
    with pytest.raises(BadInput, match=r"sample s7: cut to the 64x128 .* loses the face of person 0"):
        make([replace(nobody, target_landmarks=low)]).prepare("encode")
    with pytest.raises(BadInput, match="sample s7: photograph of person 0: empty file"):
        make([replace(nobody, pool=((photo("ann"), b""),))], "pool").prepare("encode")


@pytest.mark.parametrize(
    ("anchor", "change"),
    [("pool", {"pool": ()}), ("pool", {"pool": ((photo("ann"),), ())}), ("target", {"target_landmarks": (EYES,)})],
)
def test_a_sample_without_what_its_anchor_needs_is_refused_by_name(make: Counted, anchor: Anchor, change: dict) -> None:
    with pytest.raises(BadInput, match=f"sample ann.bob: .*{anchor}"):
        make([people("cas"), replace(people("ann", "bob"), **change)], anchor)


def test_the_base_that_freed_its_encoders_reads_what_is_kept(make: Counted) -> None:
    samples = make([people("ann", "bob")])
    samples.prepare("encode")
    before = samples.batch([0])
    base: FluxUno = make.base
    base.drop_encoders()
    assert base.text_encoder is None and base.text_encoder_2 is None
    assert equal(samples.batch([0]), before)
