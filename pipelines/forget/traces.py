"""What there is of a person: their faces, the pictures that show them, the scenes made from those."""

import difflib
from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from pipelines.core import products, store
from pipelines.core.shards import WORK
from pipelines.core.sources import read_sources
from pipelines.core.tombstones import hashes, near, unpadded
from umo.errors import BadInput
from umo.faces.base import FaceModel
from umo.quality import perceptual_hash

BLOCK = 2**24  # cosines in memory at once


@dataclass(frozen=True)
class Traces:
    """Of a person, of one who goes by several ids, or of somebody whose faces belong to nobody."""

    person_ids: frozenset[str]  # none for the latter
    centres: np.ndarray  # (k, d) float32 unit vectors of their faces, one a person_id
    others: np.ndarray  # (m, d) of the people who stay
    image_ids: frozenset[str]  # of the photographs that show them, alone or with others, and of near copies
    phashes: dict[str, str]  # by image_id, of what was photographed, without padding
    n_faces: int  # of them in those
    shared: int  # how many of the photographs also show somebody else
    derived: frozenset[str]  # image_ids of the scenes made from the photographs
    alike: list[tuple[str, float]]  # others as alike as one person's photographs are: perhaps the same; with cosine


def of_people(person_ids: Collection[str], min_cosine: float, pad: float) -> Traces:
    """The traces of some of those whom identify found; BadInput where nobody has an id, or a product is missing.

    Args:
        min_cosine: two faces at or above it are the same person.
        pad: of tight crops, as a part of each side.
    """
    people = products.people()
    rows = people.filter(pl.col("person_id").is_in(list(person_ids)))
    for person_id in sorted(set(person_ids) - set(rows["person_id"])):
        nearest = difflib.get_close_matches(person_id, people["person_id"].to_list(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"{len(people)} people are known"
        remedy = "--photo FILE finds somebody by a photograph"
        raise BadInput(f"no person '{person_id}' in {products.PEOPLE}: {hint}; {remedy}")
    return _traces(frozenset(person_ids), unit(np.array(rows["centre"].to_list())), min_cosine, pad)


def _traces(person_ids: frozenset[str], centres: np.ndarray, min_cosine: float, pad: float) -> Traces:
    """By the centres (k, d) of their faces, or by one face of somebody to whom identify gave none."""
    faces = products.faces(products.MEASURED_PHOTOS, ["face_id", "image_id", "embedding"])
    owner = products.people_faces().select("face_id", "person_id")
    faces = faces.join(owner, on="face_id", how="left", maintain_order="left")
    names, others = people_but(person_ids)
    own = faces["person_id"].is_in(list(person_ids)).fill_null(False).to_numpy().copy()
    # A face that belongs to somebody else who is kept is theirs, however alike; any other face may be of this person.
    free = ~faces["person_id"].is_in(names).fill_null(False).to_numpy()
    embeddings = unit(faces["embedding"].to_numpy().astype(np.float32))
    own |= free & nearest_is(embeddings, centres, others, min_cosine)
    image_ids = frozenset(_with_near_copies(set(faces["image_id"].to_numpy()[own]), pad))
    return Traces(
        person_ids,
        centres,
        others,
        image_ids,
        phashes={image_id: plain for image_id, (plain, _) in _looks(image_ids, pad).items()},
        n_faces=int(own.sum()),
        shared=len(set(faces["image_id"].to_numpy()[~own]) & image_ids),
        derived=frozenset(derived_from(person_ids, image_ids)),
        alike=alike(centres, min_cosine, person_ids),
    )


def alike(centres: np.ndarray, min_cosine: float, but: Collection[str] = ()) -> list[tuple[str, float]]:
    """Everybody, kept or not, whose centre is as near to one of these (k, d) as a person's photographs are to each
    other: perhaps the same person, whose faces were put into several clusters. The most alike first, with the cosine.
    """
    names, others = people_but(frozenset(but), kept=False)
    cosines = (others @ centres.T).max(1) if names else np.zeros(0)
    order = np.argsort(-cosines, kind="stable")
    return [(names[k], float(cosines[k])) for k in order if cosines[k] >= min_cosine]


def _with_near_copies(image_ids: set[str], pad: float) -> set[str]:
    """These, and the ingested pictures that look like one of them, by the hashes that measure took."""
    measured = products.measured_images(products.MEASURED_PHOTOS).filter(pl.col("phash").is_not_null())
    known = hashes(chain.from_iterable(_looks(image_ids, pad).values()))
    return image_ids | set(measured["image_id"].to_numpy()[near(hashes(measured["phash"]), known)])


def _looks(image_ids: Collection[str], pad: float) -> dict[str, tuple[str, str]]:
    """By image_id, of the ingested pictures among these: perceptual hashes of what was photographed, without padding
    and with it, as a tight crop gets it.
    """
    sources, pictures = read_sources(), store.Pictures(products.INGESTED, keep=1)
    images = products.images(products.INGESTED)
    rows = images.filter((pl.col("status") == "ok") & pl.col("image_id").is_in(list(image_ids))).sort("image_id")
    found = {}
    for row in rows.iter_rows(named=True):
        picture = pictures.read(row)
        if row["source"] in sources and sources[row["source"]].tight_crop:
            picture = unpadded(picture, pad)
        found[row["image_id"]] = (perceptual_hash(picture), perceptual_hash(_padded(picture, pad)))
    return found


def _padded(picture: np.ndarray, pad: float) -> np.ndarray:
    y, x = (round(side * pad) for side in picture.shape[:2])
    return np.pad(picture, ((y, y), (x, x), (0, 0)), mode="edge")


def people_but(person_ids: Collection[str], kept: bool = True) -> tuple[list[str], np.ndarray]:
    """All people but these, or all who are kept, and their centres (n, d)."""
    rows = products.people().filter(~pl.col("person_id").is_in(list(person_ids)))
    rows = rows.filter("keep") if kept else rows
    centres = np.array(rows["centre"].to_list(), np.float32)
    return rows["person_id"].to_list(), centres if len(rows) else np.zeros((0, 0), np.float32)


def nearest_is(embeddings: np.ndarray, centres: np.ndarray, others: np.ndarray, min_cosine: float) -> np.ndarray:
    """(n,) bool: which embeddings (n, d) are of the centres (k, d): near enough to one, and nearer than to any of the
    others (m, d).
    """
    cosine = (embeddings @ centres.T).max(1) if len(embeddings) else np.zeros(0)
    found = cosine >= min_cosine
    rows = np.flatnonzero(found) if len(others) else np.zeros(0, int)
    step = max(1, BLOCK // max(1, len(others)))
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        found[block] = (embeddings[block] @ others.T).max(1) < cosine[block]
    return found


def derived_from(person_ids: Collection[str], image_ids: Collection[str]) -> set[str]:
    """image_ids of the scenes that were made from the people or the pictures, now or in an earlier run."""
    short, found = [image_id[:16] for image_id in image_ids], set[str]()
    earlier = WORK.glob(f"synthesise/*/{products.LAYOUT_TABLE}")
    for path in (*products.SYNTHESISED.rglob(products.LAYOUT_TABLE), *earlier):
        columns = ["image_id", "person_id", "source_image_id", "guide_face_id"]
        rows = pl.DataFrame(pq.read_table(path, columns=columns, partitioning=None))
        theirs = pl.col("person_id").is_in(list(person_ids)) | pl.col("source_image_id").is_in(list(image_ids))
        theirs |= pl.col("guide_face_id").str.head(16).is_in(short)
        found.update(rows.filter(theirs)["image_id"])
    return found


# By photograph -------------------------------------------------------------------------------------------------------

CLEAR_LEAD = 0.15  # over the next person, in cosine; a standard deviation of one person's own photographs is .10


def of_photograph(
    path: Path, model: FaceModel, min_score: float, min_side: float, pad: float, min_sure: float
) -> Traces:
    """The traces of the one person whom a photograph shows.

    Args:
        min_score, min_side: of a face that counts, as measure takes it.
        pad: edge padding, as a part of each side, for a tight crop in which no face is found otherwise.
        min_sure: a less alike person is named and not taken: one stranger in a hundred passes for any given person.

    Raises:
        Unclear: it shows somebody who is not clearly one of those known.
        BadInput: the file is no picture, shows nobody, several people, or somebody unknown.
    """
    found, min_cosine = _faces_in(path, model, min_score, min_side, pad), model.same_person_cosine
    names, centres = people_but(())
    matches = [_candidates(names, centres, embedding, min_cosine) for embedding in found]
    if len(found) != 1:
        listed = "; ".join(f"face {k}: {_listed(match) or 'nobody known'}" for k, match in enumerate(matches, 1))
        what = f"{len(found)} faces ({listed}): cut it to one of them, or name the person" if found else "no face"
        raise BadInput(f"{path}: {what}")
    match, face = matches[0], found[0][None]
    if len(match) > 1:
        raise Unclear(f"{path}: not clearly one person: {_listed(match)}; name the person", alike(face, min_cosine))
    if match and match[0][1] < min_sure:
        perhaps = f"{path}: perhaps {_listed(match)}, which is too little to be sure of: name the person if it is"
        raise Unclear(perhaps, alike(face, min_cosine))
    if match:
        traces = of_people([match[0][0]], min_cosine, pad)
        cosines = dict(alike(face, min_cosine, traces.person_ids)) | dict(traces.alike)
        return replace(traces, alike=sorted(cosines.items(), key=lambda pair: -pair[1]))
    traces = _traces(frozenset(), face, min_cosine, pad)
    if not traces.n_faces:
        best = _listed(_candidates(names, centres, found[0], -1)[:1])
        nearest = f"; nearest {best}" if best else ""
        raise BadInput(f"{path}: nobody known (a match needs {min_cosine:.2f}{nearest})")
    return traces


class Unclear(BadInput):
    """Which person is meant is not clear; `alike` are those who may be, with their cosines."""

    def __init__(self, message: str, alike: list[tuple[str, float]]) -> None:
        super().__init__(message)
        self.alike = alike


def _faces_in(path: Path, model: FaceModel, min_score: float, min_side: float, pad: float) -> list[np.ndarray]:
    """Embeddings (d,) of the faces of a photograph; of a padded one where that is needed to find any."""
    from umo.images import require_image

    picture = require_image(path, str(path))
    for image in (picture, _padded(picture, pad)):
        faces = [face for face in model.detect([image])[0] if face.score >= min_score and face.side >= min_side]
        if faces:
            return list(unit(model.embed([image], [faces])))
    return []


def _candidates(names: list[str], centres: np.ndarray, face: np.ndarray, min_cosine: float) -> list[tuple[str, float]]:
    """People whom a face may be, the likeliest first; one where it is clear."""
    if not names:
        return []
    cosines = centres @ face
    order = [k for k in np.argsort(-cosines) if cosines[k] >= max(min_cosine, cosines.max() - CLEAR_LEAD)]
    return [(names[k], float(cosines[k])) for k in order]


def _listed(match: list[tuple[str, float]]) -> str:
    return ", ".join(f"{name} ({cosine:.2f})" for name, cosine in match[:5])


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (..., d) at length 1, in float32."""
    return (vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)).astype(np.float32)
