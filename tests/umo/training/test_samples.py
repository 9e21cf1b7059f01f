"""Encoded samples: kept, read again, made anew where they are damaged; unfit ones are left out, and counted."""

import io
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from tests.conftest import BandJudge
from tests.umo.training.conftest import TRAIN, photo, sample, small_base
from umo.customizers.base import Settings, Size
from umo.customizers.buckets import buckets_around, training_size
from umo.customizers.build import TINY
from umo.customizers.flux2 import DEV, KLEIN_BASE
from umo.customizers.flux_uno import FLUX, FluxUno
from umo.customizers.omnigen2.adapter import OMNIGEN2
from umo.customizers.qwen_edit import QWEN
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
        places=[4 * torch.tensor(np.array(one.target_landmarks)) for one in chosen],
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
    assert samples.by_size == {((64, 128), None): [0, 1, 2, 3], ((64, 192), None): [4, 5]}
    assert samples.batch([4]).target.shape[2:] == (16, 48)


SQUARE, WIDE, TALL = (64, 64), (32, 64), (64, 32)


def shaped(height: int, width: int, *names: str) -> Sample:
    """With a target of that shape: soft grey, and nobody's landmarks."""
    shades = np.linspace(0, 255, height * width, dtype=np.uint8).reshape(height, width, 1).repeat(3, axis=2)
    return replace(sample(*names), name=f"{height}x{width}", target=encode_png(shades))


@pytest.fixture
def bucketed(make: Counted) -> Counted:
    """A base of three sizes."""
    changed = {"buckets": (SQUARE, WIDE, TALL), "only_sizes": False}
    make.base.settings = make.base.settings.model_copy(update=changed)
    return make


def test_a_target_takes_the_bucket_nearest_to_its_shape(bucketed: Counted) -> None:
    shapes = {(90, 100): SQUARE, (100, 90): SQUARE, (100, 180): WIDE, (300, 100): TALL, (20, 100): WIDE}
    samples = bucketed([shaped(*shape, "ann") for shape in shapes])
    assert [entry.size for entry in samples.entries] == list(shapes.values())
    one = bucketed([shaped(60, 120, "ann")])
    assert torch.equal(
        one.batch([0]).target[0], bucketed.base.encode(fill(read_image(one.samples[0].target), WIDE)[None])[0]
    )


def test_the_nearest_is_as_near_upright_as_wide() -> None:
    """Between 1:1 and 1:2 the border is the ratio's root, and turning a picture turns its bucket."""
    settings = TINY.model_copy(update={"buckets": (SQUARE, WIDE, TALL), "only_sizes": False})
    for width, expected in ((141, SQUARE), (142, WIDE)):
        assert training_size(settings, 1, lambda width=width: (100, width)) == expected  # type: ignore[misc]
        assert training_size(settings, 1, lambda width=width: (width, 100)) == expected[::-1]  # type: ignore[misc]


def test_a_base_of_one_size_is_not_asked_for_shapes() -> None:
    def never() -> Size:
        raise AssertionError("the picture need not be looked at")

    only = TINY.model_copy(update={"buckets": (SQUARE,)})
    assert [training_size(only, n, never) for n in (1, 2, 3)] == [(64, 128), (64, 128), (64, 192)]


def test_photographs_of_cameras_are_taken_upright(bucketed: Counted) -> None:
    """A JPEG that lies on its side and says so, by its header and by decoding."""
    lying = Image.fromarray(np.zeros((40, 90, 3), np.uint8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for kind in ("JPEG", "WEBP"):
        lying.save(buffer := io.BytesIO(), kind, exif=exif)
        one = replace(sample("ann"), target=buffer.getvalue())
        assert bucketed([one]).entries[0].size == TALL


def test_batches_of_a_family_that_groups_have_one_number_of_references(
    bucketed: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [shaped(64, 64, "ann"), shaped(64, 64, "ann", "bob"), shaped(70, 64, "bob"), shaped(32, 64, "cas", "dee")]
    assert list(bucketed(given).by_size.values()) == [[0, 2], [1], [3]]
    monkeypatch.setattr(FluxUno, "mixes_references", True)
    assert list(bucketed(given).by_size.values()) == [[0, 1, 2], [3]]


@pytest.mark.parametrize(("side", "step"), [(512, 64), (1024, 64), (1024, 32)])
def test_buckets_around_a_side_have_its_area_and_both_ways(side: int, step: int) -> None:
    buckets = buckets_around(side, step)
    assert {size[::-1] for size in buckets} == set(buckets) and (side, side) in buckets
    assert len(set(buckets)) == len(buckets) == 2 * len([size for size in buckets if size[0] > size[1]]) + 1
    for height, width in buckets:
        assert height % step == width % step == 0
        assert height * width == pytest.approx(side**2, rel=step / min(height, width))
        assert max(height, width) <= 3 * min(height, width)


def test_flux_has_unos_buckets() -> None:
    upright = {(256, 768), (320, 768), (320, 704), (384, 640), (448, 576)}
    assert set(FLUX.buckets) == upright | {(512, 512)} | {size[::-1] for size in upright}


@pytest.mark.parametrize(
    "settings", [FLUX, KLEIN_BASE, DEV, OMNIGEN2, QWEN], ids=["uno", "klein", "dev", "omnigen2", "qwen"]
)
def test_every_bucket_of_a_family_can_be_drawn(settings: Settings) -> None:
    for size in settings.buckets:
        assert all(side % 16 == 0 and settings.min_side <= side <= settings.max_side for side in size)
    assert set(settings.sizes) < set(settings.buckets)


BLACK = encode_png(np.zeros((40, 40, 3), np.uint8))
LOW = (people("ann").target_landmarks[0] + np.array([0, 5]),)  # 32 rows become 128, of which the middle 64 stay
LOST = {"target": photo("ann"), "target_landmarks": LOW * 2}
MANY = {"references": (photo("ann"),) * 4}


@pytest.mark.parametrize(
    ("change", "anchor", "reason", "fault"),
    [
        (MANY, "references", "too many people", "4 people, and tiny-uno takes at most 3"),
        ({"pool": ()}, "pool", "nothing for the anchor 'pool'", "somebody has nothing"),
        ({"pool": ((photo("ann"),), ())}, "pool", "nothing for the anchor 'pool'", "somebody has nothing"),
        ({"target_landmarks": (EYES,)}, "target", "nothing for the anchor 'target'", "somebody has nothing"),
        ({"references": (photo("ann"), BLACK)}, "references", "no face in a photograph", "of person 1"),
        (
            {"references": (photo("ann"), b"no")},
            "references",
            "a picture that cannot be read",
            "reference 1: not an im",
        ),
        ({"target": photo("ann")[:60]}, "references", "a picture that cannot be read", "target: truncated or corrupt"),
        (LOST, "references", "a face lost in the cut", "cut to the 64x128 .*face of person 0"),
        ({"pool": ((photo("ann"),), (b"",))}, "pool", "a picture that cannot be read", "photograph of person 1: empty"),
    ],
)
def test_an_unfit_sample_is_left_out_with_its_reason(
    make: Counted, change: dict, anchor: Anchor, reason: str, fault: str
) -> None:
    """In this run and, without trying again, in the next; its people do not count."""
    unfit = replace(people("ann", "eve"), name="s7", **change)
    given = [people("bob"), unfit, people("cas"), replace(unfit, name="s8")]
    samples = make(given, anchor)
    samples.prepare("encode")
    for found in (samples, again := make(given, anchor)):
        if found is again:
            before = make.encoded
            again.prepare("encode")
            assert make.encoded == before
        assert [entry.name for entry in found.entries] == ["bob", "cas"] and len(found) == 2
        assert found.people == {"bob", "cas"}
        assert {why: len(of) for why, of in found.unusable.items()} == {reason: 2}
        assert re.fullmatch(
            rf"2 of 4 samples cannot be used: 2 {reason} \(first sample s7: .*{fault}.*\)", found.left_out
        )
        assert sorted(row for rows in found.by_size.values() for row in rows) == [0, 1]
        assert found.batch([1]).names == ("cas",)


def test_what_another_process_found_unfit_is_left_out(make: Counted) -> None:
    given = [people("bob"), replace(people("ann"), name="s7", references=(BLACK,)), people("cas")]
    one, other = make(given), make(given)
    one.prepare("encode", 0, 2)
    other.prepare("encode", 1, 2)
    for samples in (one, other):
        samples.leave_out()
        assert [entry.name for entry in samples.entries] == ["bob", "cas"]
        assert list(samples.unusable) == ["no face in a photograph"]
    assert make.encoded == 2 * 2, "each in one process, and nothing of what is unfit"


def test_without_a_sample_that_can_be_used_there_is_nothing_to_train_on(make: Counted) -> None:
    with pytest.raises(BadInput, match="no samples"):
        make([])
    with pytest.raises(BadInput, match="nothing to train on: 1 of 1 samples cannot be used: 1 too many people"):
        make([replace(people("ann"), **MANY)])
    samples = make([replace(people("ann"), references=(BLACK,)), replace(people("bob"), references=(b"no",))])
    with pytest.raises(
        BadInput, match=r"2 of 2 .*: 1 no face .*\(first sample ann: .*; 1 a picture .*sample bob"
    ) as all_:
        samples.prepare("encode")
    assert "\n" not in str(all_.value)


def test_a_sample_that_is_asked_for_unprepared_is_refused_by_name(make: Counted) -> None:
    with pytest.raises(BadInput, match="sample s7: no face in a photograph of person 0"):
        make([replace(people("ann"), name="s7", references=(BLACK,))]).batch([0])


def test_the_base_that_freed_its_encoders_reads_what_is_kept(make: Counted) -> None:
    samples = make([people("ann", "bob")])
    samples.prepare("encode")
    before = samples.batch([0])
    base: FluxUno = make.base
    base.drop_encoders()
    assert base.text_encoder is None and base.text_encoder_2 is None
    assert equal(samples.batch([0]), before)
