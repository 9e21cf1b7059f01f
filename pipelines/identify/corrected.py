"""Clusters as datasets/corrections.csv wants them: joined, divided, in one split, and who is dropped."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import polars as pl

from pipelines.core.corrections import CORRECTIONS, JOINING, Correction
from pipelines.core.ledger import Ledger, named_after, numbers
from umo.errors import BadInput

ROUNDS = 2  # in which the faces of a divided cluster are given to the nearer side


class Resolved(NamedTuple):
    """A correction, and the face_ids that stand for those whom it names: a person's in the ledger, or the face's."""

    row: Correction
    first: list[str]
    second: list[str]


@dataclass
class Corrected:
    """
    Attributes:
        cluster: (n,) from 0; -1 for a face that was turned away.
        part: (n,) the clusters before any were joined or divided.
        elsewhere: (n,) of joined clusters, the faces that the ledger has in another split than they are to keep.
        naming: (n,) the faces by which clusters are named: not those elsewhere, and of what was divided off only those
            that the correction names, so that no new face changes the id.
        joined: the correction by which a cluster was joined.
        dropped: people who are dropped: person_id, indices of the faces that stand for them, reason.
        idle: corrections of which a side has no face that may be used.
    """

    cluster: np.ndarray
    part: np.ndarray
    elsewhere: np.ndarray
    naming: np.ndarray
    joined: dict[int, Correction] = field(default_factory=dict)
    dropped: list[tuple[str, np.ndarray, str]] = field(default_factory=list)
    idle: list[int] = field(default_factory=list)

    @classmethod
    def nothing(cls, cluster: np.ndarray) -> "Corrected":
        """Clusters (n,) as they were found."""
        return cls(cluster, cluster, np.zeros(len(cluster), bool), np.ones(len(cluster), bool))


def resolve(rows: Sequence[Correction], ledger: Ledger, face_ids: pl.Series) -> list[Resolved]:
    """Whom the corrections mean.

    Somebody who was never kept is in no ledger, and known by the face that they are named after.

    Args:
        face_ids: of all faces that were measured.

    Raises:
        BadInput: a row names nobody, or splits off everybody.
    """
    named = {one for row in rows for one in row.ids}
    people = {one for one in named if "-" not in one}
    faces = dict(ledger.rows(people).group_by("person_id").agg("face_id").iter_rows()) if people else {}
    given = pl.Series(sorted(named - people), dtype=pl.String)
    known = given.is_in(face_ids.implode()) | ledger.find(given)["person_id"].is_not_null()
    faces |= {face_id: [face_id] for face_id in given.filter(known)}
    if unknown := people - faces.keys():
        names = ((named_after(face_id), face_id) for face_id in face_ids)
        faces |= {name: [face_id] for name, face_id in names if name in unknown}
    for row in rows:
        for one in row.ids:
            if one not in faces:
                raise BadInput(f"{CORRECTIONS}:{row.line}: {one} is nobody: no such person or face is known")
    _refuse_splits_of_all(rows, faces)
    return [Resolved(row, faces[row.first], [face for one in row.second for face in faces[one]]) for row in rows]


def _refuse_splits_of_all(rows: Sequence[Correction], faces: dict[str, list[str]]) -> None:
    """A split of all that there is of a person leaves nobody; of all of a merged one, it says that they are not."""
    merges = [row for row in rows if row.action in JOINING]
    for row in rows:
        alike = [row.first] if row.action == "split" else []
        for person in alike:  # it grows
            alike += [one for merge in merges if person in merge.ids for one in merge.ids if one not in alike]
            if "-" not in person and set(faces[person]) <= set(row.second) and len(faces[person]) > 1:
                merge = next((merge for merge in merges if person in merge.ids), None)
                why = f"contradicts line {merge.line}: remove one of them" if merge else "nobody would be left"
                raise BadInput(f"{CORRECTIONS}:{row.line}: splits off all faces of {person}: {why}")


def dropped_faces(found: Sequence[Resolved], face_ids: pl.Series) -> Iterator[tuple[int, str]]:
    """Which of the faces (n,) are dropped, by index, and why."""
    texts = {row.first: f"dropped by {row.where}" for row, _, _ in found if row.action == "drop" and "-" in row.first}
    rows = face_ids.is_in(pl.Series(list(texts), dtype=pl.String).implode()).arg_true()
    for row, face_id in zip(rows, face_ids[rows], strict=True):
        yield row, texts[face_id]


def correct(
    found: Sequence[Resolved], face_ids: pl.Series, vectors: np.ndarray, cluster: np.ndarray, ledger: Ledger
) -> Corrected:
    """Apply corrections to clusters: first those that join, then those that divide.

    Args:
        face_ids: (n,).
        vectors: (n, d) unit vectors.
        cluster: (n,) from 0; -1 for a face that was turned away.
    """
    if not found:
        return Corrected.nothing(cluster)
    named = {face_id for one in found for face_id in (*one.first, *one.second)}
    rows = pl.DataFrame({"face_id": face_ids}).with_row_index("row").filter(pl.col("face_id").is_in(list(named)))
    place = dict(rows.select("face_id", "row").iter_rows())
    made = replace(Corrected.nothing(cluster), cluster=cluster.copy())
    dividing = []
    for row, *ids in found:
        first, second = (np.array([place[one] for one in side if one in place], np.int64) for side in ids)
        if row.action == "drop":
            made.dropped += [(row.first, first, f"dropped by {row.where}")] if "-" not in row.first else []
        elif min(_home(made.cluster, first), _home(made.cluster, second)) < 0:
            made.idle.append(row.line)
        elif row.action in JOINING:
            _join(made, first, second, row)
        else:
            dividing.append((row, first, second))
    for row, first, second in dividing:
        _divide(made.cluster, vectors, first, second, together=row.action == "split")
    listed = np.concatenate([np.zeros(0, np.int64), *(second for _, _, second in dividing)])
    listed = listed[made.cluster[listed] > cluster.max(initial=-1)]
    made.naming[np.isin(made.cluster, made.cluster[listed])] = False
    made.naming[listed] = True
    theirs = np.flatnonzero(np.isin(made.cluster, list(made.joined)))
    known, label = numbers(ledger.find(face_ids[theirs])["split"]), made.cluster[theirs]
    keeps = np.full(int(made.cluster.max(initial=0)) + 1, -1)
    np.maximum.at(keeps, label, known)  # the splits that judge come after the one that is trained on
    made.elsewhere[theirs] = (known >= 0) & (known < keeps[label])
    made.naming &= ~made.elsewhere
    return made


def _home(cluster: np.ndarray, faces: np.ndarray) -> int:
    """The cluster that most of the faces, by index, are in; -1 where they are in none."""
    labels, counts = np.unique(cluster[faces][cluster[faces] >= 0], return_counts=True)
    return int(labels[counts.argmax()]) if len(labels) else -1


def _join(made: Corrected, first: np.ndarray, second: np.ndarray, row: Correction) -> None:
    into, gone = sorted((_home(made.cluster, first), _home(made.cluster, second)))
    made.cluster[made.cluster == gone] = into
    made.joined.setdefault(into, made.joined.pop(gone, row) if gone != into else row)


def _divide(cluster: np.ndarray, vectors: np.ndarray, first: np.ndarray, second: np.ndarray, *, together: bool) -> None:
    """Give the faces `second`, and those of their clusters that are nearer to them than to the others of `first`, a
    cluster of their own; `together`: with those of theirs that are already elsewhere.
    """
    others = np.setdiff1d(first, second)
    new = int(cluster.max()) + 1
    both = np.intersect1d(cluster[others if len(others) else first], cluster[second])
    for label in both[both >= 0]:
        members = np.flatnonzero(cluster == label)
        cluster[members[_nearer(vectors[members], np.isin(members, others), np.isin(members, second))]] = new
    if together and (cluster[second] == new).any():
        cluster[np.isin(cluster, cluster[second]) & (cluster >= 0)] = new


def _nearer(vectors: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(n,) bool: `other`, and what is neither and nearer to it than to `one`, which are masks (n,) of vectors (n, d).
    Where nothing is `one`, all that is not `other` is.
    """
    free, near = ~(one | other), np.zeros(len(one), bool)
    for _ in range(ROUNDS if one.any() else 0):
        centres = (vectors[side].sum(0) for side in (one | free & ~near, other | near))
        mine, theirs = (np.einsum("ij,j->i", vectors, centre / np.linalg.norm(centre)) for centre in centres)
        near = free & (theirs > mine)
    return other | near
