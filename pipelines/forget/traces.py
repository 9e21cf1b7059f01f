"""What there is of a person: their faces, the pictures that show them, the scenes made from those."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from pipelines.core import products
from pipelines.core.shards import WORK
from pipelines.forget.looks import looks, near_copies
from umo.errors import BadInput
from umo.faces.base import FaceModel

BLOCK = 4096


@dataclass(frozen=True)
class Traces:
    """
    Attributes:
        person_id: None for somebody whose faces belong to nobody.
        centre: (d,) float32 unit vector of their faces.
        image_ids: of the photographs that show them, alone or with others, and of near copies.
        phashes: by image_id, of what was photographed, without padding.
        n_faces: of them in those.
        shared: how many of the photographs also show somebody else.
        derived: image_ids of the scenes made from the photographs.
        alike: other people as alike as one person's photographs are, with their cosine: perhaps the same person.
    """

    person_id: str | None
    centre: np.ndarray
    image_ids: frozenset[str]
    phashes: dict[str, str] = field(default_factory=dict)
    n_faces: int = 0
    shared: int = 0
    derived: frozenset[str] = frozenset()
    alike: tuple[tuple[str, float], ...] = field(default=())


def of_person(person_id: str, min_cosine: float, pad: float) -> Traces:
    """The traces of somebody whom identify found.

    Args:
        min_cosine: two faces at or above it are the same person.
        pad: of tight crops, as a part of each side.

    Raises:
        BadInput: nobody has that id, or a product is missing.
    """
    people = products.people()
    row = people.filter(person_id=person_id)
    if row.is_empty():
        known = people["person_id"].to_list()
        nearest = difflib.get_close_matches(person_id, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"{len(known)} people are known"
        raise BadInput(
            f"no person '{person_id}' in {products.PEOPLE}: {hint}; --photo FILE finds somebody by a photograph"
        )
    return _traces(person_id, _unit(np.array(row["centre"][0])), min_cosine, pad)


def of_nobody(centre: np.ndarray, min_cosine: float, pad: float) -> Traces:
    """The traces of somebody whose faces identify gave to nobody, by an embedding (d,) of a face."""
    return _traces(None, centre, min_cosine, pad)


def _traces(person_id: str | None, centre: np.ndarray, min_cosine: float, pad: float) -> Traces:
    faces = products.faces(products.MEASURED_PHOTOS, ["face_id", "image_id", "embedding"])
    owner = products.people_faces().select("face_id", "person_id")
    faces = faces.join(owner, on="face_id", how="left", maintain_order="left")
    names, others = other_centres(person_id)
    own = faces["person_id"].is_in([person_id] if person_id else []).fill_null(False).to_numpy().copy()
    # A face that belongs to somebody else who is kept is theirs, however alike; any other face may be of this person.
    free = ~faces["person_id"].is_in(names).fill_null(False).to_numpy()
    embeddings = _unit(faces["embedding"].to_numpy().astype(np.float32))
    own |= free & nearest_is(embeddings, centre, others, min_cosine)
    showing = set(faces["image_id"].to_numpy()[own])
    showing |= near_copies(looks(showing, pad).values())
    image_ids = frozenset(showing)
    with_others = set(faces["image_id"].to_numpy()[~own]) & image_ids
    alike = sorted(
        ((name, float(other @ centre)) for name, other in zip(names, others, strict=True)), key=lambda x: -x[1]
    )
    return Traces(
        person_id,
        centre,
        image_ids,
        {image_id: look.plain for image_id, look in looks(image_ids, pad).items()},
        n_faces=int(own.sum()),
        shared=len(with_others),
        derived=frozenset(derived_from(person_id, image_ids)),
        alike=tuple((name, cosine) for name, cosine in alike if cosine >= min_cosine),
    )


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
    for path in (
        *products.SYNTHESISED.rglob(products.LAYOUT_TABLE),
        *WORK.glob(f"synthesise/*/{products.LAYOUT_TABLE}"),
    ):
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
    found = _faces_in(path, model, min_score, min_side, pad)
    names, centres = other_centres(None)
    matches = [_candidates(names, centres, embedding, model.same_person_cosine) for embedding in found]
    if len(found) != 1:
        listed = "; ".join(f"face {k}: {_listed(match) or 'nobody known'}" for k, match in enumerate(matches, 1))
        what = f"{len(found)} faces ({listed}): cut it to one of them, or name the person" if found else "no face"
        raise BadInput(f"{path}: {what}")
    match, centre = matches[0], found[0]
    if len(match) > 1:
        raise BadInput(f"{path}: not clearly one person: {_listed(match)}; name the person")
    if match and match[0][1] < min_sure:
        raise BadInput(f"{path}: perhaps {_listed(match)}, which is too little to be sure of: name the person if it is")
    if match:
        return of_person(match[0][0], model.same_person_cosine, pad)
    traces = of_nobody(centre, model.same_person_cosine, pad)
    if not traces.n_faces:
        best = _listed(_candidates(names, centres, centre, -1)[:1])
        raise BadInput(
            f"{path}: nobody known (a match needs {model.same_person_cosine:.2f}{f'; nearest {best}' if best else ''})"
        )
    return traces


def _faces_in(path: Path, model: FaceModel, min_score: float, min_side: float, pad: float) -> list[np.ndarray]:
    """Embeddings (d,) of the faces of a photograph; of a padded one where that is needed to find any."""
    from umo.images import require_image

    picture = require_image(path, str(path))
    margins = [round(side * pad) for side in picture.shape[:2]]
    padded = np.pad(picture, [(margin, margin) for margin in margins] + [(0, 0)], mode="edge")
    for image in (picture, padded):
        faces = [face for face in model.detect([image])[0] if face.score >= min_score and face.side >= min_side]
        if faces:
            return list(_unit(model.embed([image], [faces])))
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


def _unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)).astype(np.float32)
