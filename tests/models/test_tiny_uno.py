"""The embedded base's training: a killed run goes on to the very same weights, and what it writes can be loaded."""

import csv
import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from umo.customizers import Drawing, draw, load
from umo.images import encode_png
from umo.quality import square_crop

HERE = Path(__file__).resolve().parents[2] / "models" / "tiny-uno"
LANDMARKS = [[24.0, 32.0], [40.0, 32.0], [32.0, 40.0], [26.0, 48.0], [38.0, 48.0]]


@pytest.fixture(scope="module")
def pretrain() -> Iterator[ModuleType]:
    """The script as a module, beside its `scenes`."""
    sys.path.insert(0, str(HERE / "pretraining"))
    spec = importlib.util.spec_from_file_location("tiny_uno_pretrain", HERE / "pretraining/pretrain.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(HERE / "pretraining"))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def picture(rng: np.random.Generator, height: int, width: int) -> dict[str, object]:
    pixels = np.kron(rng.integers(0, 255, (height // 16, width // 16, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    return {"bytes": encode_png(pixels), "path": f"{rng.integers(10**9)}.png"}


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """Sets of invented people in the exported columns that training reads."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("validation", 2)):
        rows = [
            {
                "n": 2,
                "prompt": "A photo of two people: the first person on the left and the second person on the right.",
                "target": picture(rng, 128, 256),
                "references": [picture(rng, 64, 64) for _ in range(2)],
                "pool": [[picture(rng, 64, 64)] for _ in range(2)],
                "person_ids": [f"{split}{k}a", f"{split}{k}b"],
                "reference_landmarks": [np.ravel(LANDMARKS).tolist()] * 2,
                "pool_landmarks": [[np.ravel(LANDMARKS).tolist()]] * 2,
            }
            for k in range(count)
        ]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{split}-00000.parquet")
    return tmp_path


def params(pretrain: ModuleType, exported: Path, **changes: object) -> object:
    small = {"steps": 4, "batch": 2, "checkpoint_every": 1, "validate_every": 2, "autoencoder_scenes": 12}
    given = yaml.safe_load((HERE / "params.yaml").read_text())
    return pretrain.Params(**{**given, "data": exported, **small, **changes})


def test_killed_training_goes_on_to_the_same_weights(
    pretrain: ModuleType, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = params(pretrain, exported)
    whole, resumed, work = tmp_path / "whole", tmp_path / "resumed", tmp_path / "work"
    pretrain.train(given, tmp_path / "other-work", whole)
    real = pretrain.Trainer.train_step

    def dies_at_the_third(trainer: object) -> float:
        if trainer.step == 2:  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        return real(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(pretrain.Trainer, "train_step", dies_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            pretrain.train(given, work, resumed)
    assert not resumed.exists()
    pretrain.train(given, work, resumed)
    for name in ("transformer", "text_encoder_2", "vae"):
        (file,) = (whole / name).glob("*.safetensors")
        assert file.read_bytes() == (resumed / name / file.name).read_bytes()
    facts = json.loads((resumed / "training.json").read_text())
    assert facts["steps"] == 4 and facts["people"] == 12
    assert len((resumed / "curve.csv").read_text().splitlines()) == 3
    assert list(json.loads((resumed / "people.json").read_text())) == sorted(
        f"train{k}{s}" for k in range(6) for s in "ab"
    )
    base = load(resumed)
    assert draw(base, ["a photo"], [[np.zeros((70, 70, 3), np.uint8)]], [0], Drawing(steps=1)).shape == (1, 3, 64, 128)


def test_scenes_begin_as_copies_on_the_patch_grid(pretrain: ModuleType, exported: Path) -> None:
    given = params(pretrain, exported, morph=0.0, max_light=0.0, easy_until=0.25, hard_from=0.6)
    scenes = sys.modules["scenes"]
    people = scenes.photos_of_people(scenes.exported(exported, "train"))
    drawer = scenes.Scenes([list(photos.values()) for photos in people.values()], given)
    easy, hard = pretrain.ease_at(given, 0.0), pretrain.ease_at(given, 1.0)
    assert (easy.freedom, hard.freedom) == (0.0, 1.0)
    scene = drawer.draw(1, 128, scenes.Ease(0.0, 1.0), np.random.default_rng(3))
    (reference,) = scene.references
    inner = scene.heads > 0.99
    rows, columns = np.nonzero(inner)
    found = [
        np.abs(scene.target[inner].astype(int) - np.roll(reference, (dy, dx), (0, 1))[rows, columns % 64]).mean()
        for dx in range(0, 64, 8)
        for dy in range(-16, 17, 8)
    ]
    assert min(found) < 12, "the face is no copy of the reference's patches"
    assert len({drawer.draw(2, 128, hard, np.random.default_rng(k)).prompt for k in range(8)}) > 1


def test_learning_rate_rises_and_falls(pretrain: ModuleType, exported: Path) -> None:
    given = params(pretrain, exported, steps=100, warmup=0.1)
    rates = [pretrain.learning_rate(given, step) for step in range(100)]
    assert max(rates) == rates[9] == pytest.approx(given.learning_rate)  # type: ignore[attr-defined]
    assert rates[0] < rates[5] and rates[99] < 1e-5


class TestShipped:
    """The base that lies in the repository."""

    def test_it_is_whole_and_small(self):
        lines = (HERE / "SHA256SUMS").read_text().splitlines()
        size = 0
        for line in lines:
            value, name = line.split("  ")
            data = (HERE / name).read_bytes()
            size += len(data)
            assert hashlib.sha256(data).hexdigest() == value, name
        assert size <= 16 * 2**20

    def test_it_has_seen_the_training_people_and_nobody_else(self):
        ledger = HERE.parents[1] / "datasets" / "splits.csv"
        split = {row["person_id"]: row["split"] for row in csv.DictReader(ledger.open())}
        seen = json.loads((HERE / "people.json").read_text())
        assert {split[person] for person in seen} == {"train"}
        assert len(seen) == sum(value == "train" for value in split.values())

    def test_people_it_never_saw_are_drawn_where_they_belong(self, orl, opencv_zoo):
        """Two people of the test split: two faces, the first on the left more alike the first reference."""
        base = load(HERE)
        whole = [orl(person, 1) for person in (8, 27)]
        boxes = [faces[0].box for faces in opencv_zoo.detect(whole)]
        photos = [square_crop(photo, box, 2.2, 256)[0] for photo, box in zip(whole, boxes, strict=True)]
        words = "A photo of two people in front of a plain blue background: "
        words += "the first person on the left and the second person on the right."
        drawn = draw(base, [words] * 4, [photos] * 4, range(4), Drawing())
        found = opencv_zoo.detect(drawn)
        assert sum(len(faces) == 2 for faces in found) >= 3
        reference = opencv_zoo.embed(photos, [faces[:1] for faces in opencv_zoo.detect(photos)])
        ordered = [sorted(faces, key=lambda face: face.box[0]) for faces in found if len(faces) == 2]
        pictures = torch.stack([picture for picture, faces in zip(drawn, found, strict=True) if len(faces) == 2])
        cosines = reference @ opencv_zoo.embed(pictures, ordered).detach().numpy().T
        same = np.mean([cosines[k % 2, k] for k in range(cosines.shape[1])])
        crossed = np.mean([cosines[1 - k % 2, k] for k in range(cosines.shape[1])])
        assert same > crossed + 0.05
