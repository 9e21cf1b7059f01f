"""A made-up corpus of any size, whose cosines follow the measured ones: what `ingest` and `measure` would have left.

A face is a unit vector: a part that all faces share (why strangers' cosines are .1 and not 0), its person's
direction, and what is its picture's alone. How much of the latter, a face's `clarity` says; its distribution is
fitted to the percentiles in umo/faces/opencv_zoo.calibration.json, which a test compares. People live in groups
(albums and long videos), some in several; they return in several pictures of a group, one to four people in each.
Beside that: near copies of pictures, faces too poor to tell, some look-alikes, and one archive too large for an album.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from pipelines.core import products
from umo import records

TRUTH = "truth.parquet"  # face_id, image_id, person (-1: nobody that could be told), group
EMBEDDER = "made up"
MEAN_COSINE = 0.104  # of two strangers
NARROWEST = 0.37  # deviation along the last of the directions, the first's being 1: gives the strangers' deviation
CLARITY = (
    0.013,
    1.0,
    0.117,
)  # -log of it: least, and shape and scale of a gamma beyond; gives the cosines of one person
POOR_CLARITY = 0.3  # times that
PEOPLE_PER_GROUP = 8
ARCHIVE = 0.03  # of the people are in one group
VISITS = (0.2, 0.05)  # of the people are in a second, in a third group
ALIKE, ALIKE_COSINE = 0.005, (0.45, 0.65)  # of the people resemble the one before; cosine of the two directions
COPIES, COPY_BITS = 0.03, 2  # of the faces are on near copies; bits of the hash that differ at most
POOR = 0.02  # of the faces
PICTURE_SIZES = (0.62, 0.25, 0.09, 0.04)  # one to four people
WIDTH, HEIGHT = 1024, 768
SHARD_FACES = 62_500


@dataclass(frozen=True)
class _Places:
    """Who is in which picture.

    Attributes:
        person, group, clip, picture: (n,) of each face; a face's picture counts from 0, its rows lie together.
        rank: (n,) of the face in its picture, from left to right.
    """

    person: np.ndarray
    group: np.ndarray
    clip: np.ndarray
    picture: np.ndarray
    rank: np.ndarray


def write(folder: Path, faces: int, faces_per_person: float = 10, seed: int = 0, dimension: int = 128) -> pl.DataFrame:
    """Write the products of `ingest` (but for the pictures), of `measure`, and of a `synthesise` that made no scene.

    Args:
        folder: where `datasets/` goes; the truth lies beside it.
        faces: how many, near copies included.
        faces_per_person: on average; every person has at least one.

    Returns:
        The truth: face_id, image_id, person, group.
    """
    rng = np.random.default_rng(seed)
    people = max(2, round(faces / faces_per_person))
    places = _places(rng, round(faces * (1 - COPIES)), people)
    origin = np.concatenate([np.arange(len(places.person)), _copied(rng, places, faces - len(places.person))])
    copied = np.arange(len(origin)) >= len(places.person)
    picture = places.picture[origin]
    picture[copied] = places.picture.max(initial=-1) + 1 + _dense(picture[copied])
    poor = rng.random(len(places.person)) < POOR
    vectors = _vectors(rng, places.person, people, poor, dimension)
    pictures = _pictures(rng, places, picture, origin, copied)
    table = _faces(rng, pictures["image_id"].to_numpy()[picture], places.rank[origin], poor[origin], origin)
    buckets = max(4, faces // SHARD_FACES)
    table = table.with_columns(bucket=pl.Series(picture % buckets), row=pl.Series(origin), copied=copied)
    for bucket in range(buckets):
        _write_shard(folder, rng, f"{bucket:04d}", pictures, table.filter(bucket=bucket).sort("face_id"), vectors)
    _write_no_scenes(folder, dimension)
    truth = table.select(
        "face_id",
        "image_id",
        person=pl.Series(np.where(poor, -1, places.person)[origin]),
        group=pl.Series(places.group[origin]),
    ).sort("face_id")
    truth.write_parquet(folder / TRUTH)
    return truth


def _places(rng: np.random.Generator, faces: int, people: int) -> _Places:
    """Faces to people, people to groups, and within a group to pictures: in each round everybody is shown once."""
    home = np.sort(rng.integers(0, max(1, people // PEOPLE_PER_GROUP), people)) + 1
    home[rng.random(people) < ARCHIVE] = 0
    visits = [home, *(np.where(rng.random(people) < part, rng.permutation(home), home) for part in VISITS)]
    share = rng.lognormal(0, 0.7, people)
    person = np.concatenate([np.arange(people), rng.choice(people, max(0, faces - people), p=share / share.sum())])
    person = person[:faces]
    group = np.stack(visits)[rng.integers(0, len(visits), len(person)), person]
    order = np.lexsort((rng.random(len(person)), person, group))
    person, group = person[order], group[order]
    first = np.r_[True, (person[1:] != person[:-1]) | (group[1:] != group[:-1])]
    turn = np.arange(len(person)) - np.maximum.accumulate(np.where(first, np.arange(len(person)), 0))
    order = np.lexsort((rng.random(len(person)), turn, group))
    person, group, turn = person[order], group[order], turn[order]
    picture = _cut(rng, group, turn)
    starts = np.r_[True, picture[1:] != picture[:-1]]
    rank = np.arange(len(person)) - np.maximum.accumulate(np.where(starts, np.arange(len(person)), 0))
    return _Places(person, group, turn // 4, picture, rank)


def _cut(rng: np.random.Generator, group: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Pictures of drawn sizes (n,), none over the end of a round, so that nobody is twice in one."""
    sizes = rng.choice(np.arange(1, 1 + len(PICTURE_SIZES)), len(group), p=PICTURE_SIZES)
    ends = np.cumsum(sizes)
    starts = np.zeros(len(group), bool)
    starts[np.r_[0, ends[ends < len(group)]] if len(group) else []] = True
    starts[1:] |= (group[1:] != group[:-1]) | (turn[1:] != turn[:-1])
    return np.cumsum(starts) - 1


def _copied(rng: np.random.Generator, places: _Places, wanted: int) -> np.ndarray:
    """Faces (exactly `wanted`) of pictures that are there a second time, whole pictures."""
    sizes = np.bincount(places.picture)
    chosen = rng.permutation(len(sizes))
    total = np.cumsum(sizes[chosen])
    whole = chosen[total <= wanted]
    missing = wanted - int(sizes[whole].sum())
    single = np.setdiff1d(np.flatnonzero(sizes == 1), whole)[:missing]
    return np.flatnonzero(np.isin(places.picture, np.r_[whole, single]))


def _dense(values: np.ndarray) -> np.ndarray:
    return np.unique(values, return_inverse=True)[1]


def _clarity(rng: np.random.Generator, count: int) -> np.ndarray:
    """Of each face, the part in (0, 1] of its direction that is its person's."""
    least, shape, scale = CLARITY
    return np.exp(-least - rng.gamma(shape, scale, count)).astype(np.float32)


def _vectors(rng: np.random.Generator, person: np.ndarray, people: int, poor: np.ndarray, dimension: int) -> np.ndarray:
    """Unit vectors (n, dimension) in float16."""
    scale = np.linspace(1, NARROWEST, dimension, dtype=np.float32)
    shared = rng.normal(size=dimension).astype(np.float32)
    shared *= np.sqrt(MEAN_COSINE) / np.linalg.norm(shared)
    centres = _directions(rng, people, scale)
    alike = np.flatnonzero(rng.random(people) < ALIKE)
    alike = alike[alike > 0]
    cosine = rng.uniform(*ALIKE_COSINE, len(alike)).astype(np.float32)[:, None]
    centres[alike] = cosine * centres[alike - 1] + np.sqrt(1 - cosine**2) * centres[alike]
    centres[alike] /= np.linalg.norm(centres[alike], axis=1, keepdims=True)
    clarity = np.where(poor, POOR_CLARITY, 1) * _clarity(rng, len(person))
    vectors = np.empty((len(person), dimension), np.float16)
    for start in range(0, len(person), SHARD_FACES):
        part = slice(start, start + SHARD_FACES)
        own = clarity[part, None].astype(np.float32)
        found = own * centres[person[part]] + np.sqrt(1 - own**2) * _directions(rng, len(own), scale)
        found = shared + np.sqrt(1 - MEAN_COSINE, dtype=np.float32) * found
        vectors[part] = found / np.linalg.norm(found, axis=1, keepdims=True)
    return vectors


def _directions(rng: np.random.Generator, count: int, scale: np.ndarray) -> np.ndarray:
    found = rng.standard_normal((count, len(scale)), np.float32) * scale
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def _pictures(
    rng: np.random.Generator, places: _Places, picture: np.ndarray, origin: np.ndarray, copied: np.ndarray
) -> pl.DataFrame:
    """A row a picture, in the order of their numbers: records.IMAGES and records.MEASURED_IMAGES without nulls."""
    first = np.unique(picture, return_index=True)[1]
    source = origin[first]  # a face of the picture, or of the one that it is a copy of
    group, clip = places.group[source], places.clip[source]
    hashes = rng.integers(0, 2**63, len(places.picture), np.uint64)[places.picture[source]]
    for _ in range(COPY_BITS):
        flip = np.uint64(1) << rng.integers(0, 63, len(first), np.uint64)
        hashes = np.where(copied[first] & (rng.random(len(first)) < 0.5), hashes ^ flip, hashes)
    digits = rng.bytes(32 * len(first))
    sizes = np.bincount(picture)
    person = places.person[source]
    video = group % 2 == 1
    frame = pl.DataFrame(
        {
            "image_id": [digits[k : k + 32].hex() for k in range(0, len(digits), 32)],
            "group": pl.Series(group),
            "clip": pl.Series(clip),
            "video": video,
            "time": np.where(video, clip * 8.0 + first % 8, np.nan),
            "label": pl.Series(np.where(sizes == 1, person, -1)),
            "phash": [f"{value:016x}" for value in hashes.tolist()],
            "sharpness": rng.uniform(0.01, 0.05, len(first)).astype(np.float32) * np.where(copied[first], 0.5, 1),
            "n_faces": sizes.astype(np.int32),
        }
    )
    name = pl.format("{}-{}", pl.when("video").then(pl.lit("video")).otherwise(pl.lit("album")), "group")
    return frame.with_columns(
        group=name,
        clip=pl.when("video").then(pl.format("{}/{}", name, "clip")),
        time=pl.col("time").fill_nan(None),
        label=pl.when(pl.col("label") >= 0).then(pl.format("person-{}", "label")),
        path=pl.format("{}/{}.jpg", name, pl.col("image_id").str.head(16)),
    )


def _faces(
    rng: np.random.Generator, image_id: np.ndarray, rank: np.ndarray, poor: np.ndarray, origin: np.ndarray
) -> pl.DataFrame:
    """records.MEASURED_FACES without the embedding, in no order."""
    count = len(image_id)
    side = np.where(poor, rng.uniform(30, 60, count), rng.uniform(50, 200, count)).astype(np.float32)
    x = (60 + rank * 240 + rng.uniform(0, 30, count)).astype(np.float32)
    y = rng.uniform(80, 500, count).astype(np.float32)
    five = np.array([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.8], [0.65, 0.8]], np.float32)
    landmarks = (np.stack([x, y], 1)[:, None] + five * side[:, None, None]).reshape(count, 10)
    pose = rng.normal(0, (18, 8, 5), (int(origin.max(initial=-1)) + 1, 3))[origin]
    frame = pl.DataFrame(
        {
            "image_id": image_id,
            "box": np.stack([x, y, x + side, y + side], 1),
            "landmarks": landmarks,
            "score": np.where(poor, rng.uniform(0.5, 0.8, count), rng.uniform(0.75, 0.99, count)).astype(np.float32),
            "side_px": side,
            "pose": pose.astype(np.float32),
            "sharpness": (rng.uniform(0.01, 0.05, count) * np.where(poor, 0.1, 1)).astype(np.float32),
        }
    )
    return frame.with_columns(face_id=pl.format("{}-{}", pl.col("image_id").str.head(16), pl.Series(rank)))


def _write_shard(
    folder: Path, rng: np.random.Generator, name: str, pictures: pl.DataFrame, rows: pl.DataFrame, vectors: np.ndarray
) -> None:
    shown = pictures.filter(pl.col("image_id").is_in(rows["image_id"].unique().implode())).sort("image_id")
    found = vectors[rows["row"].to_numpy()].astype(np.float32)
    again = rows["copied"].to_numpy()
    found[again] += 0.01 * rng.standard_normal((int(again.sum()), found.shape[1]), np.float32)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    described = rows.with_columns(embedding=found.astype(np.float16), embedder=pl.lit(EMBEDDER))
    measured = folder / products.MEASURED_PHOTOS / name
    _write(folder / products.INGESTED / name / products.IMAGES_TABLE, _as_images(shown, name), records.IMAGES)
    without_error = shown.with_columns(error=pl.lit(None, pl.String))
    _write(measured / products.MEASURED_IMAGES_TABLE, without_error, records.MEASURED_IMAGES)
    _write(measured / products.FACES_TABLE, described, records.measured_faces(found.shape[1]))


def _as_images(shown: pl.DataFrame, shard: str) -> pl.DataFrame:
    constants = {"shard": shard, "source": "made-up", "licence": "CC0-1.0", "consent": "given", "status": "ok"}
    return shown.with_columns(
        key=pl.format("{}.jpg", "image_id"),
        width=pl.lit(WIDTH),
        height=pl.lit(HEIGHT),
        error=pl.lit(None, pl.String),
        offset=pl.lit(None, pl.Int64),
        size=pl.lit(None, pl.Int64),
        sha256=pl.lit(None, pl.String),
        **{key: pl.lit(value) for key, value in constants.items()},
    )


def _write(path: Path, rows: pl.DataFrame, schema: records.pa.Schema) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    records.write(path, rows.select(schema.names).to_arrow().cast(schema), schema)


def _write_no_scenes(folder: Path, dimension: int) -> None:
    """The products of a `synthesise` that was asked for none: whole files without rows."""
    for product, tables in (
        (
            products.SYNTHESISED,
            {
                products.IMAGES_TABLE: records.IMAGES,
                products.LAYOUT_TABLE: records.LAYOUT,
                products.SCENES_TABLE: records.SCENES,
            },
        ),
        (
            products.MEASURED_SCENES,
            {
                products.MEASURED_IMAGES_TABLE: records.MEASURED_IMAGES,
                products.FACES_TABLE: records.measured_faces(dimension),
            },
        ),
    ):
        for table, schema in tables.items():
            path = folder / product / "0000" / table
            path.parent.mkdir(parents=True, exist_ok=True)
            records.write(path, schema.empty_table(), schema)
