"""The made-up corpus: its cosines are the measured ones, and it is built as albums and videos are."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from bench import corpus
from pipelines.core import products
from umo import records

FACES = 6000
# SFace's cosines of 256 ORL photographs of 26 people with others scaled to 112 px: mean, deviation, five percentiles.
MEASURED = {
    "same": (0.8099, 0.1087, (0.4661, 0.57, 0.8325, 0.9446, 0.9616)),
    "strangers": (0.1041, 0.0949, (-0.1075, -0.0484, 0.1024, 0.2619, 0.3232)),
}


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
    for kind, sample in (("same", cosines[same]), ("strangers", cosines[~same])):
        mean, std, percentiles = MEASURED[kind]
        np.testing.assert_allclose(np.percentile(sample, (1, 5, 50, 95, 99)), percentiles, atol=0.045, err_msg=kind)
        assert sample.mean() == pytest.approx(mean, abs=0.015)
        assert sample.std() == pytest.approx(std, abs=0.01)


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
