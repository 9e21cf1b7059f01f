"""A data set that changes in any way comes out as one made at once: what is taken over is what would be made."""

import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.core import products, store
from pipelines.core.shards import ONE_PROCESS, WORK
from pipelines.measure import stage as measure
from umo import faces

TERMS = {"licence": "CC0", "consent": "given"}
CHANGES = ("add", "remove", "rename", "copy", "copy without licence", "terms", "into a tar", "damage", "scale")


class OneFace:
    """A face model in no time: a face a picture, which its pixels say where it is and whose."""

    name, files, dimension = "one", (), 2

    def detect(self, images):
        return [[faces.Face(np.array([4, 4, 30, 30 + image.mean() / 9]), np.zeros((5, 2)), 0.9)] for image in images]

    def embed(self, images, found):
        return np.array([[image.mean(), image.std()] for image in images], np.float32).reshape(-1, 2)


class Album:
    """Pictures of noise in some sources, and what can become of them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng, self.max_side = folder, np.random.default_rng(seed), 1024
        self.sources = {name: {"path": name, **TERMS} for name in ("one", "two", "tars")}
        self.sources |= {"without": {"path": "without", "consent": "given"}}
        for name in self.sources:
            (folder / name).mkdir()
            self.add(name, 4)

    def add(self, source: str, count: int = 1) -> None:
        for _ in range(count):
            buffer = io.BytesIO()
            Image.fromarray(self.rng.integers(0, 256, (72, 96, 3), np.uint8)).save(buffer, "PNG")
            self.new(source).write_bytes(buffer.getvalue())

    def new(self, source: str) -> Path:
        return self.folder / source / f"{self.rng.integers(10**9)}.png"

    def some(self) -> Path:
        files = sorted(path for name in ("one", "two", "without") for path in (self.folder / name).iterdir())
        return files[self.rng.integers(len(files))]

    def change(self, what: str) -> None:
        match what:
            case "add":
                self.add("one", 2)
            case "remove":
                self.some().unlink()
            case "rename":
                (old := self.some()).rename(self.new(old.parent.name))
            case "copy":
                shutil.copy(self.some(), self.new("two"))
            case "copy without licence":
                shutil.copy(self.some(), self.new("without"))
            case "terms":
                self.sources["one"]["licence"] = f"L-{self.rng.integers(9)}"
            case "into a tar":
                with tarfile.open(self.folder / "tars/some.tar", "w") as archive:
                    archive.add(path := self.some(), path.name)
                path.unlink()
            case "damage":
                (path := self.some()).write_bytes(path.read_bytes()[:60])
            case "scale":
                self.max_side = 64 if self.max_side == 1024 else 1024


@pytest.mark.parametrize("seed", range(3))
def test_a_changed_album_is_as_a_new_one(seed, ingested, tmp_path, monkeypatch):
    model = OneFace()
    monkeypatch.setattr(faces, "load", lambda name: model)
    monkeypatch.setattr(faces, "load_named", lambda name, device: model)
    album = Album(tmp_path, seed)

    def made() -> tuple[list, ...]:
        ingested(album.sources, shard_size=4, max_side=album.max_side)
        measure.run(measure.Params(faces="one", min_score=0.6, min_side=24, max_side=1280), ONE_PROCESS, "ingested")
        pictures = store.Pictures(products.INGESTED)
        rows = [row | {"bytes": row["key"] and pictures.bytes(row)} for row in ingested.rows()]
        placeless = [{key: row[key] for key in row.keys() - {"shard", "offset"}} for row in rows]
        measured = products.measured_images(products.MEASURED_PHOTOS).sort("image_id", "error").to_dicts()
        return placeless, measured, products.faces(products.MEASURED_PHOTOS).sort("face_id").to_dicts()

    made()
    for turn in range(6):
        changes = album.rng.choice(CHANGES, 2)
        for change in changes:
            album.change(change)
        grown = made()
        for place in (WORK, products.INGESTED, products.MEASURED):
            place.rename(tmp_path / f"kept-{place.name}")
        assert grown == made(), f"turn {turn}: {', '.join(changes)}"
        for place in (WORK, products.INGESTED, products.MEASURED):
            shutil.rmtree(place)
            (tmp_path / f"kept-{place.name}").rename(place)
