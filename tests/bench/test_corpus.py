"""The made-up corpus: its cosines are the measured ones, and it is built as albums and videos are."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from bench import corpus
from pipelines.core import products
from umo import faces, records

FACES = 6000
PERCENTILES = {"p1": 1, "p5": 5, "p50": 50, "p95": 95, "p99": 99}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, pl.DataFrame]:
    folder = tmp_path_factory.mktemp("corpus")
    return folder, corpus.write(folder, FACES, seed=3)


def read(folder: Path, product: Path, table: str) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(path) for path in sorted((folder / product).glob(f"*/{table}"))])


def measured(made) -> pl.DataFrame:
    """Faces with the truth, copies left out."""
    folder, truth = made
    found = read(folder, products.MEASURED_PHOTOS, products.FACES_TABLE).join(truth, on=["face_id", "image_id"])
    hashes = read(folder, products.MEASURED_PHOTOS, products.MEASURED_IMAGES_TABLE)
    found = found.join(hashes.select("image_id", "phash", of_picture="sharpness"), on="image_id")
    return found.filter(pl.col("of_picture") >= 0.025).sort("face_id")


def test_cosines_follow_the_measured_ones(made):
    found = measured(made).filter(pl.col("person") >= 0)
    vectors, person = found["embedding"].to_numpy().astype(np.float32), found["person"].to_numpy()
    first, second = np.triu_indices(len(vectors), 1)
    cosines = (vectors @ vectors.T)[first, second]
    same = person[first] == person[second]
    shipped = json.loads((Path(faces.__file__).parent / "opencv_zoo.calibration.json").read_text())["sides"]["112"]
    for kind, sample in (("same", cosines[same]), ("strangers", cosines[~same])):
        for name, percent in PERCENTILES.items():
            assert np.percentile(sample, percent) == pytest.approx(shipped[kind][name], abs=0.045), (kind, name)
        assert sample.mean() == pytest.approx(shipped[kind]["mean"], abs=0.015)
        assert sample.std() == pytest.approx(shipped[kind]["std"], abs=0.01)


def test_it_is_as_large_as_asked_and_the_products_are_valid(made):
    folder, truth = made
    assert truth.height == truth["face_id"].n_unique() == FACES
    assert truth.filter(pl.col("person") >= 0)["person"].n_unique() == pytest.approx(FACES / 10, abs=5)
    for product, table, schema in (
        (products.INGESTED, products.IMAGES_TABLE, records.IMAGES),
        (products.MEASURED_PHOTOS, products.MEASURED_IMAGES_TABLE, records.MEASURED_IMAGES),
        (products.MEASURED_PHOTOS, products.FACES_TABLE, records.measured_faces(128)),
        (products.SYNTHESISED, products.LAYOUT_TABLE, records.LAYOUT),
        (products.MEASURED_SCENES, products.FACES_TABLE, records.measured_faces(128)),
    ):
        for path in (folder / product).glob(f"*/{table}"):
            assert records.read(path, schema).schema.names == schema.names


def test_people_return_in_pictures_groups_and_clips(made):
    folder, truth = made
    images = read(folder, products.INGESTED, products.IMAGES_TABLE)
    shown = truth.filter(pl.col("person") >= 0)
    assert shown.group_by("image_id").agg(twice=pl.col("person").is_duplicated().any())["twice"].sum() == 0
    assert set(shown.group_by("image_id").len()["len"]) == {1, 2, 3, 4}
    groups = shown.group_by("person").agg(pl.col("group").n_unique())["group"]
    assert 0.1 < (groups > 1).mean() < 0.3
    clips = shown.join(images.select("image_id", "clip"), on="image_id").drop_nulls("clip")
    assert (clips.group_by("person").agg(pl.col("clip").n_unique())["clip"] > 1).mean() > 0.2
    labelled = truth.join(images.drop_nulls("label").select("image_id", "label"), on="image_id")
    assert (
        labelled.filter(pl.col("person") >= 0)
        .select((pl.format("person-{}", "person") == pl.col("label")).all())
        .item()
    )


def test_copies_are_near_in_hash_and_in_face(made):
    folder, _ = made
    table = read(folder, products.MEASURED_PHOTOS, products.MEASURED_IMAGES_TABLE)
    bits = np.array([int(text, 16) for text in table["phash"]], np.uint64)
    apart = np.bitwise_count(bits[:, None] ^ bits[None])
    np.fill_diagonal(apart, 64)
    near = np.argwhere(apart <= corpus.COPY_BITS)
    near = near[near[:, 0] < near[:, 1]]
    assert table["n_faces"].to_numpy()[near[:, 0]].sum() == pytest.approx(corpus.COPIES * FACES, abs=3)
    vectors = read(folder, products.MEASURED_PHOTOS, products.FACES_TABLE).sort("face_id")
    by_image = {
        image_id: np.stack(rows["embedding"].to_list())
        for (image_id,), rows in vectors.group_by("image_id", maintain_order=True)
    }
    for first, second in near[:50]:
        pair = (by_image[table["image_id"][int(k)]].astype(np.float32) for k in (first, second))
        assert (np.sum(np.multiply(*pair), axis=1) > 0.98).all()


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        corpus.write(tmp_path / name, 300, seed=seed)
    files = [path.relative_to(tmp_path / "a") for path in sorted((tmp_path / "a").rglob("*.parquet"))]
    assert len(files) > 10
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert (tmp_path / "a" / corpus.TRUTH).read_bytes() != (tmp_path / "c" / corpus.TRUTH).read_bytes()
