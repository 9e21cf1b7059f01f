"""Clusters of faces as people: outliers out, components joined, splits drawn, ids that stay. No loop over faces."""

from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from pipelines.core.ledger import SPLITS, Ledger, numbers
from pipelines.identify.corrected import Corrected
from umo import records
from umo.people import neighbours
from umo.people.clustering import sums_of

ALIKE = 16  # neighbours of a person that are looked at where there are too many people to compare all


@dataclass(frozen=True)
class Bounds:
    """What `identify`'s params say of people (pipelines/identify/stage.py)."""

    min_face_cosine: float
    min_faces: int
    max_person_cosine: float
    max_component: int


class Reasons:
    """Why rows are turned away: the first reason of each stays."""

    def __init__(self, count: int) -> None:
        self._codes: dict[str, int] = {}  # from 1
        self._code = np.zeros(count, np.int32)

    @property
    def none(self) -> np.ndarray:
        """(n,) bool: nothing speaks against the row."""
        return self._code == 0

    def give(self, rows: np.ndarray, text: str) -> None:
        """Give a reason to rows, by a mask (n,) or by indices."""
        chosen = np.flatnonzero(rows) if rows.dtype == bool else rows
        code = self._codes.setdefault(text, len(self._codes) + 1)
        self._code[chosen[self._code[chosen] == 0]] = code

    def texts(self) -> pl.Series:
        """(n,) strings, null for none."""
        return pl.Series([None, *self._codes], dtype=pl.String)[self._code]

    def counts(self) -> dict[str, int]:
        """Rows by reason."""
        counts = np.bincount(self._code, minlength=len(self._codes) + 1)[1:].tolist()
        return {text: count for text, count in zip(self._codes, counts, strict=True) if count}


class People:
    """
    Attributes:
        names: ids of the people, sorted; a person's number is the rank in it.
        person: (n,) number of each face's person; -1 where it is nobody's.
        reasons, person_reasons: of the faces and of the people.
        centre, cosine: (p, d) of the people; (n,) of the faces to them, NaN where a face is nobody's.
        nearest, nearest_cosine: (p,) number of and cosine to the most alike other person; -1 where there is none.
        component: (p,) the least number in each person's component.
        split: (p,) in SPLITS; -1 where the person was not kept until the drawing.
    """

    def __init__(
        self,
        bounds: Bounds,
        faces: pl.DataFrame,
        vectors: np.ndarray,
        found: Corrected,
        reasons: Reasons,
        ledger: Ledger,
    ) -> None:
        """
        Args:
            faces: face_id, image_id (n,), by face_id.
            vectors: (n, d) unit vectors.
            found: clusters of the faces.
        """
        self.bounds, self.faces, self.reasons, self.elsewhere = bounds, faces, reasons, found.elsewhere
        self.names, self.person = self._named(found, ledger)
        self.person_reasons = Reasons(len(self.names))
        self._obey(found)
        self.centre, self.cosine = self._settle(vectors, found)
        self._drop_people_of_few_faces()
        self.nearest, self.nearest_cosine, alike = self._nearest()
        self.joined = self.person_reasons.none
        self.component = self._weld(alike)
        self._drop_people_of_few_faces()
        self.split = np.full(len(self.names), -1)

    def _named(self, found: Corrected, ledger: Ledger) -> tuple[pl.Series, np.ndarray]:
        given = np.flatnonzero(found.cluster >= 0)
        dense = np.unique(found.cluster[given], return_inverse=True)[1]
        here = found.naming[given]
        names = ledger.names(self.faces["face_id"][given[here]], dense[here])
        rank = names.rank("ordinal").to_numpy().astype(np.int64) - 1
        person = np.full(len(found.cluster), -1)
        person[given] = rank[dense]
        return names.sort(), person

    def _obey(self, found: Corrected) -> None:
        """Give the reasons of corrections."""
        for person_id, faces, text in found.dropped:
            if len(known := (self.names == person_id).arg_true()):
                self.person_reasons.give(known.to_numpy(), text)
            else:  # whoever has their faces now has others too
                self.reasons.give(faces, text)
        gone = np.flatnonzero(found.elsewhere)
        for label, row in found.joined.items():
            theirs = gone[found.cluster[gone] == label]
            self.reasons.give(theirs, f"{row.action} by {row.where}: the person keeps another split")

    def _settle(self, vectors: np.ndarray, found: Corrected) -> tuple[np.ndarray, np.ndarray]:
        """Centres (p, d) of the faces that are near them, and the cosines (n,) to them; the others become outliers.

        Of joined clusters, the faces need only be near their own: who says that two unlike faces are one knows more.
        """
        centre, cosine = self._centres(vectors, self.person, len(self.names))
        far = cosine < self.bounds.min_face_cosine
        if joined := list(found.joined):
            part = np.where(np.isin(found.cluster, joined), found.part, -1)
            far = np.where(part >= 0, self._centres(vectors, part)[1] < self.bounds.min_face_cosine, far)
            near = np.where((part >= 0) & ~far & self.reasons.none, self.person, -1)
            again = np.unique(near[near >= 0])
            centre[again] = unit(sums_of(vectors, near, len(self.names))[again])
            given = np.flatnonzero(part >= 0)
            cosine[given] = neighbours.products(vectors, centre, given, self.person[given])
        self.reasons.give(far, f"cosine to the person's centre below {self.bounds.min_face_cosine}")
        return centre, cosine

    def _centres(
        self, vectors: np.ndarray, label: np.ndarray, count: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of labels (n,), -1 for none: centres (p, d) of the faces that are near them; cosines (n,), NaN for none."""
        given = np.flatnonzero(label >= 0)
        sums = sums_of(vectors, label, count)
        centre = unit(sums)
        near = neighbours.products(vectors, centre, given, label[given]) >= self.bounds.min_face_cosine
        close = np.full(len(label), -1)
        close[given[near]] = label[given[near]]
        some = np.bincount(close[close >= 0], minlength=len(sums)) > 0
        centre[some] = unit(sums_of(vectors, close, len(sums))[some])
        cosine = np.full(len(label), np.nan, np.float32)
        cosine[given] = neighbours.products(vectors, centre, given, label[given])
        return centre, cosine

    def kept(self) -> np.ndarray:
        """Indices of the faces that are somebody's and against which nothing speaks."""
        return np.flatnonzero((self.person >= 0) & self.reasons.none)

    def kept_of_kept(self) -> np.ndarray:
        """Indices of the faces of people who are kept."""
        kept = self.kept()
        return kept[self.person_reasons.none[self.person[kept]]]

    def _drop_people_of_few_faces(self) -> None:
        counts = np.bincount(self.person[self.kept()], minlength=len(self.names))
        self.person_reasons.give(counts < self.bounds.min_faces, f"fewer than {self.bounds.min_faces} faces")

    def _nearest(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The most alike other person who is kept: number (p,), cosine (p,); and pairs (m, 2) of people too alike."""
        count, kept = len(self.names), np.flatnonzero(self.person_reasons.none)
        if len(kept) < 2:
            return np.full(count, -1), np.full(count, np.nan, np.float32), np.zeros((0, 2), np.int64)
        cosines, other = self._others(kept, np.arange(count), ALIKE)
        nearest, nearest_cosine = other[:, 0], cosines[:, 0]
        rows, k, pairs = np.arange(count), ALIKE, []
        while True:
            alike = cosines > self.bounds.max_person_cosine
            pairs.append(np.stack([np.repeat(rows, alike.sum(1)), other[alike]], 1))
            rows = rows[alike.all(1)]
            if not len(rows) or k >= len(kept):
                break
            k *= 4  # all who were looked at are too alike: there may be more
            cosines, other = self._others(kept, rows, k)
        found = np.concatenate(pairs)
        return nearest, nearest_cosine, found[self.person_reasons.none[found[:, 0]]]

    def _others(self, kept: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Cosines (r, k) and numbers (r, k) of the most alike others who are kept, of people `rows`; -inf for none."""
        cosines, found = neighbours.nearest(self.centre[kept], self.centre[rows], min(k + 1, len(kept)))
        other = np.where(found >= 0, kept[found], -1)
        cosines = np.where((other == rows[:, None]) | (found < 0), -np.inf, cosines)
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(cosines, order, 1), np.take_along_axis(other, order, 1)

    def _weld(self, alike: np.ndarray) -> np.ndarray:
        """Component (p,) of each person: the least number in it; alike people first, then shared pictures.

        A picture that would make a component of more than `max_component` people is dropped.
        """
        from scipy.cluster.hierarchy import DisjointSet

        kept = self.kept_of_kept()
        shown = pl.DataFrame({"image_id": self.faces["image_id"][kept], "person": self.person[kept]}).unique()
        shown = shown.sort("image_id", "person").with_columns(first=pl.col("person").min().over("image_id"))
        shared = shown.filter(pl.col("person") != pl.col("first")).select("image_id", "first", "person")
        pairs = shared.select("first", "person").to_numpy()
        component = _components(np.concatenate([alike, pairs]), len(self.names))
        # One picture after the other only where it matters: what is small enough with all of them in, is so anyway.
        large = np.bincount(component, minlength=len(component))[component] > self.bounds.max_component
        if not large.any():
            return component
        sets = DisjointSet(np.flatnonzero(large).tolist())
        for one, other in alike[large[alike[:, 0]]].tolist():
            sets.merge(one, other)
        too_large = []
        doubtful = shared.filter(large[pairs[:, 0]]).group_by("image_id", "first", maintain_order=True).agg("person")
        for image_id, first, others in doubtful.iter_rows():
            roots = {sets[person] for person in (first, *others)}
            if len(roots) > 1 and sum(map(sets.subset_size, roots)) > self.bounds.max_component:
                too_large.append(image_id)
            else:
                for person in others:
                    sets.merge(first, person)
        dropped = kept[self.faces["image_id"][kept].is_in(too_large).to_numpy()]
        self.reasons.give(dropped, f"its picture would weld more than {self.bounds.max_component} people")
        for subset in sets.subsets():
            component[list(subset)] = min(subset)
        return component

    def draw(self, ledger: Ledger, fractions: dict[str, float], seed: int) -> None:
        """Splits; where the ledger says otherwise of a face or a person, they are dropped: nobody moves."""
        shown, kept = np.flatnonzero(self.person_reasons.none), self.kept_of_kept()
        if len(shown):
            people = pl.DataFrame({"person_id": self.names[shown], "component": self.names[self.component[shown]]})
            faces = pl.DataFrame({"face_id": self.faces["face_id"][kept], "person_id": self.names[self.person[kept]]})
            self.split[shown] = numbers(ledger.draw(people, faces, fractions, seed)["split"])
        known = np.where(self.elsewhere, -1, numbers(ledger.find(self.faces["face_id"])["split"]))
        mine = np.append(self.split, -1)[self.person]
        told = np.flatnonzero((known >= 0) & (mine >= 0))
        votes = np.zeros((len(self.names), len(SPLITS)), np.int64)
        np.add.at(votes, (self.person[told], known[told]), 1)
        other = (votes.sum(1) > 0) & (votes.argmax(1) != self.split) & (self.split >= 0)
        self.person_reasons.give(other, "its component is in another split of the ledger")
        self.reasons.give(told[known[told] != mine[told]], "the face is in another split of the ledger")
        self._drop_people_of_few_faces()

    def table(self) -> pa.Table:
        """records.PEOPLE."""
        kept = self.kept()
        counts = np.bincount(self.person[kept], minlength=len(self.names))
        sums = np.bincount(self.person[kept], self.cosine[kept].astype(np.float64), len(self.names))
        values = {
            "person_id": self.names.to_arrow(),
            "n": pa.array(counts),
            "centre": pa.FixedSizeListArray.from_arrays(pa.array(self.centre.ravel()), self.centre.shape[1]),
            "spread": pa.array(sums / np.maximum(counts, 1), mask=counts == 0),
            "nearest_person": self._name(self.nearest, self.nearest >= 0),
            "nearest_cosine": pa.array(self.nearest_cosine, mask=self.nearest < 0),
            "alike": pa.array((self.nearest >= 0) & (self.nearest_cosine > self.bounds.max_person_cosine)),
            "component": self._name(self.component, self.joined),
            "split": pl.Series([*SPLITS, None], dtype=pl.String)[self.split % (len(SPLITS) + 1)].to_arrow(),
            "keep": pa.array(self.person_reasons.none),
            "reason": self.person_reasons.texts().to_arrow(),
        }
        return pa.table({name: values[name] for name in records.PEOPLE.names}).cast(records.PEOPLE)

    def _name(self, people: np.ndarray, given: np.ndarray) -> pa.Array:
        """Ids (m,) of people by number, null where none is given."""
        names = pl.concat([self.names, pl.Series([None], dtype=pl.String)])
        return names[np.where(given, people, len(self.names))].to_arrow()

    def faces_table(self) -> pa.Table:
        """records.PEOPLE_FACES, by person_id and face_id; those of nobody last."""
        values = {
            "face_id": self.faces["face_id"].to_arrow(),
            "image_id": self.faces["image_id"].to_arrow(),
            "person_id": self._name(self.person, self.person >= 0),
            "cosine": pa.array(self.cosine, mask=np.isnan(self.cosine)),
            "keep": pa.array(self.reasons.none),
            "reason": self.reasons.texts().to_arrow(),
        }
        found = pa.table({name: values[name] for name in records.PEOPLE_FACES.names}).cast(records.PEOPLE_FACES)
        return found.take(np.argsort(np.where(self.person < 0, len(self.names), self.person), kind="stable"))


def _components(pairs: np.ndarray, count: int) -> np.ndarray:
    """(count,) the least number that each is connected with by pairs (m, 2)."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    label = connected_components(graph, directed=False)[1]
    return np.unique(label, return_index=True)[1][label]


def unit(vectors: np.ndarray) -> np.ndarray:
    """The same directions (..., d), of length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)
