"""What there is of a person: their faces, the pictures that show them, the scenes made from those."""

import difflib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
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

BLOCK = 4096


@dataclass(frozen=True)
class Traces:
    """Of a person, or of somebody whose faces belong to nobody."""

    person_id: str | None  # None for the latter
    centre: np.ndarray  # (d,) float32 unit vector of their faces
    image_ids: frozenset[str]  # of the photographs that show them, alone or with others, and of near copies
    phashes: dict[str, str]  # by image_id, of what was photographed, without padding
    n_faces: int  # of them in those
    shared: int  # how many of the photographs also show somebody else
    derived: frozenset[str]  # image_ids of the scenes made from the photographs
    alike: list[tuple[str, float]]  # others as alike as one person's photographs are: perhaps the same; with cosine


def of_person(person_id: str, min_cosine: float, pad: float) -> Traces:
    """The traces of somebody whom identify found; BadInput where nobody has that id, or a product is missing.

    Args:
        min_cosine: two faces at or above it are the same person.
        pad: of tight crops, as a part of each side.
    """
    people = products.people()
    row = people.filter(person_id=person_id)
    if row.is_empty():
        known = people["person_id"].to_list()
        nearest = difflib.get_close_matches(person_id, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"{len(known)} people are known"
        remedy = "--photo FILE finds somebody by a photograph"
        raise BadInput(f"no person '{person_id}' in {products.PEOPLE}: {hint}; {remedy}")
    return _traces(person_id, unit(np.array(row["centre"][0])), min_cosine, pad)


def _traces(person_id: str | None, centre: np.ndarray, min_cosine: float, pad: float) -> Traces:
    """By the centre (d,) of their faces, or by one face of somebody to whom identify gave none."""
    faces = products.faces(products.MEASURED_PHOTOS, ["face_id", "image_id", "embedding"])
    owner = products.people_faces().select("face_id", "person_id")
    faces = faces.join(owner, on="face_id", how="left", maintain_order="left")
    names, others = other_centres(person_id)
    own = faces["person_id"].is_in([person_id] if person_id else []).fill_null(False).to_numpy().copy()
    # A face that belongs to somebody else who is kept is theirs, however alike; any other face may be of this person.
    free = ~faces["person_id"].is_in(names).fill_null(False).to_numpy()
    embeddings = unit(faces["embedding"].to_numpy().astype(np.float32))
    own |= free & nearest_is(embeddings, centre, others, min_cosine)
    image_ids = frozenset(_with_near_copies(set(faces["image_id"].to_numpy()[own]), pad))
    cosines = [(name, float(other @ centre)) for name, other in zip(names, others, strict=True)]
    return Traces(
        person_id,
        centre,
        image_ids,
        phashes={image_id: plain for image_id, (plain, _) in _looks(image_ids, pad).items()},
        n_faces=int(own.sum()),
        shared=len(set(faces["image_id"].to_numpy()[~own]) & image_ids),
        derived=frozenset(derived_from(person_id, image_ids)),
        alike=sorted((found for found in cosines if found[1] >= min_cosine), key=lambda found: -found[1]),
    )


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


def other_centres(person_id: str | None) -> tuple[list[str], np.ndarray]:
    """The people who are kept but this one, and their centres (n, d); nobody where the product is missing."""
    if not (products.PEOPLE / products.PEOPLE_TABLE).exists():
        return [], np.zeros((0, 0), np.float32)
    kept = products.people().filter(pl.col("keep") & (pl.col("person_id") != (person_id or "")))
    centres = np.array(kept["centre"].to_list(), np.float32)
    return kept["person_id"].to_list(), centres if len(kept) else np.zeros((0, 0), np.float32)


def nearest_is(embeddings: np.ndarray, centre: np.ndarray, others: np.ndarray, min_cosine: float) -> np.ndarray:
    """(n,) bool: which embeddings (n, d) are the centre's (d,): near enough, and nearer than to any other's (m, d)."""
    cosine = embeddings @ centre
    found = cosine >= min_cosine
    rows = np.flatnonzero(found) if len(others) else np.zeros(0, int)
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        found[block] = (embeddings[block] @ others.T).max(1) < cosine[block]
    return found


def derived_from(person_id: str | None, image_ids: frozenset[str]) -> Iterator[str]:
    """image_ids of the scenes that were made from the person or the pictures, now or in an earlier run."""
    short = {image_id[:16] for image_id in image_ids}
    earlier = WORK.glob(f"synthesise/*/{products.LAYOUT_TABLE}")
    for path in (*products.SYNTHESISED.rglob(products.LAYOUT_TABLE), *earlier):
        columns = ["image_id", "person_id", "source_image_id", "guide_face_id"]
        for row in pq.read_table(path, columns=columns, partitioning=None).to_pylist():
            guide = (row["guide_face_id"] or "").split("-")[0]
            theirs = person_id is not None and row["person_id"] == person_id
            if theirs or row["source_image_id"] in image_ids or guide in short:
                yield row["image_id"]


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
        BadInput: the file is no picture, shows nobody, several people, somebody unknown, or somebody who is not
            clearly one of those known.
    """
    found, min_cosine = _faces_in(path, model, min_score, min_side, pad), model.same_person_cosine
    names, centres = other_centres(None)
    matches = [_candidates(names, centres, embedding, min_cosine) for embedding in found]
    if len(found) != 1:
        listed = "; ".join(f"face {k}: {_listed(match) or 'nobody known'}" for k, match in enumerate(matches, 1))
        what = f"{len(found)} faces ({listed}): cut it to one of them, or name the person" if found else "no face"
        raise BadInput(f"{path}: {what}")
    match = matches[0]
    if len(match) > 1:
        raise BadInput(f"{path}: not clearly one person: {_listed(match)}; name the person")
    if match and match[0][1] < min_sure:
        raise BadInput(f"{path}: perhaps {_listed(match)}, which is too little to be sure of: name the person if it is")
    if match:
        return of_person(match[0][0], min_cosine, pad)
    traces = _traces(None, found[0], min_cosine, pad)
    if not traces.n_faces:
        best = _listed(_candidates(names, centres, found[0], -1)[:1])
        nearest = f"; nearest {best}" if best else ""
        raise BadInput(f"{path}: nobody known (a match needs {min_cosine:.2f}{nearest})")
    return traces


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
