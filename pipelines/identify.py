"""Faces -> people, from the faces alone; near duplicates dropped; people split into train, validation and test.

A component is a group of people who share a picture or are too alike; it goes into one split, drawn once and written
to the ledger datasets/splits.csv, which is only ever appended to. What contradicts the ledger later is dropped
(keep = false), never moved.
"""

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import polars as pl
from pydantic import Field, model_validator
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from pipelines import products
from pipelines.ledger import SPLITS, Ledger
from pipelines.params import Section
from pipelines.shards import Counts, Machine, Shard, digest, tree_digest
from pipelines.shards import run as run_shards
from pipelines.tombstones import FORGOTTEN, Tombstones
from umo import records


class Params(Section):
    """
    min_score, min_side, min_sharpness: a face below any of them joins nobody.
    max_duplicate_bits: pictures whose perceptual hashes differ in at most so many of 64 bits are one picture.
    min_cosine: two clusters of faces are one person where the mean cosine between them is at least this.
    min_face_cosine: a face further from its person's centre is an outlier.
    min_faces: a person needs so many faces.
    max_person_cosine: people whose centres are more alike go into one component.
    max_component: a picture that would weld a larger component (people) is dropped.
    fractions: of the people, for train, validation and test. Only people who are not in the ledger are drawn.
    seed: of the drawing of splits.
    """

    min_score: float = Field(ge=0, le=1)
    min_side: float = Field(ge=1)
    min_sharpness: float = Field(ge=0)
    max_duplicate_bits: int = Field(ge=0, le=16)
    min_cosine: float = Field(ge=-1, le=1)
    min_face_cosine: float = Field(ge=-1, le=1)
    min_faces: int = Field(ge=1)
    max_person_cosine: float = Field(ge=-1, le=1)
    max_component: int = Field(ge=1)
    fractions: dict[str, Annotated[float, Field(ge=0, le=1)]]
    seed: int

    @model_validator(mode="after")
    def _fractions_fit(self) -> "Params":
        if set(self.fractions) != set(SPLITS) or abs(sum(self.fractions.values()) - 1) > 1e-6:
            raise ValueError(f"fractions must be given for {', '.join(SPLITS)} and add up to 1")
        return self


def run(params: Params, machine: Machine) -> None:
    """Find the people of datasets/ingested and extend the ledger."""
    ledger = Ledger.read()
    inputs = {str(product): tree_digest(product) for product in (products.INGESTED, products.MEASURED_PHOTOS)}
    kept = [row for row in Tombstones.read().rows() if row.embedding]
    shard = Shard("", inputs | {"ledger": digest(ledger.rows()), "forgotten": digest(kept)})
    run_shards("identify", partial(_identify, params, ledger), [shard], products.PEOPLE, params=params, machine=machine)
    print(f"identify: {json.dumps(json.loads((products.PEOPLE / products.PEOPLE_CHECK).read_text()))}")
    people = products.people().filter("keep")
    ledger.extend(products.people_faces().filter("keep").join(people, on="person_id"))
    ledger.write()


def _identify(params: Params, ledger: Ledger, shard: Shard, folder: Path) -> Counts:
    measured = products.measured_images(products.MEASURED_PHOTOS)
    faces = products.faces(products.MEASURED_PHOTOS).sort("face_id")
    embeddings = _unit(faces["embedding"].to_numpy().astype(np.float32))
    reasons = _face_reasons(params, faces, duplicates(measured, params.max_duplicate_bits))
    reasons = _without_the_forgotten(params, faces, embeddings, reasons)
    candidate = np.array([reason is None for reason in reasons])
    cluster = np.full(len(faces), -1)
    cluster[candidate] = clusters(embeddings[candidate], params.min_cosine)
    people = _People(params, ledger, faces, embeddings, cluster, reasons)
    records.write(folder / products.PEOPLE_TABLE, people.rows(), records.PEOPLE)
    records.write(folder / products.PEOPLE_FACES_TABLE, people.face_rows(), records.PEOPLE_FACES)
    check = people.check(products.images(products.INGESTED))
    (folder / products.PEOPLE_CHECK).write_text(json.dumps(check, indent=1) + "\n")
    rejects: dict[str, int] = {}
    for reason in [*people.reasons, *(row["reason"] for row in people.rows() if not row["keep"])]:
        if reason:
            rejects[reason] = rejects.get(reason, 0) + 1
    return Counts({"people": check["people"], "faces": check["faces"]}, rejects)


def duplicates(measured: pl.DataFrame, max_bits: int) -> set[str]:
    """image_ids of near duplicates, the sharpest copy of each group excepted.

    Pictures are compared pair by pair on the 64 bits of their perceptual hash, in blocks.
    """
    ordered = measured.filter(pl.col("phash").is_not_null()).sort(["sharpness", "image_id"], descending=[True, False])
    hashes = np.array([int(text, 16) for text in ordered["phash"]], np.uint64)
    dropped = np.zeros(len(hashes), bool)
    for k, value in enumerate(hashes):
        if not dropped[k]:
            near = np.bitwise_count(hashes[k + 1 :] ^ value) <= max_bits
            dropped[k + 1 :] |= near
    return set(ordered["image_id"].to_numpy()[dropped])


def clusters(embeddings: np.ndarray, min_cosine: float) -> np.ndarray:
    """Average-linkage clusters of unit vectors (n, d): (n,) labels; two merge while their mean cosine allows."""
    if len(embeddings) < 2:
        return np.arange(len(embeddings))
    distance = np.clip(1 - embeddings @ embeddings.T, 0, 2).astype(np.float64)
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), "average")
    return fcluster(tree, 1 - min_cosine, "distance") - 1


def adjusted_rand_index(truth: np.ndarray, found: np.ndarray) -> float:
    """Agreement of two labellings (n,), 1 for equal ones and about 0 by chance (Hubert and Arabie, 1985)."""
    table = np.zeros((truth.max() + 1, found.max() + 1))
    np.add.at(table, (truth, found), 1)
    pairs, rows, columns = ((c * (c - 1) / 2).sum() for c in (table, table.sum(1), table.sum(0)))
    expected = rows * columns / (len(truth) * (len(truth) - 1) / 2)
    highest = (rows + columns) / 2
    return 1.0 if highest == expected else float((pairs - expected) / (highest - expected))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)


def _face_reasons(params: Params, faces: pl.DataFrame, duplicate: set[str]) -> list[str | None]:
    def reason(face: dict) -> str | None:
        if face["image_id"] in duplicate:
            return "near duplicate of another picture"
        for key, bound in (
            ("score", params.min_score),
            ("side_px", params.min_side),
            ("sharpness", params.min_sharpness),
        ):
            if face[key] < bound:
                return f"{key} below {bound}"
        return None

    columns = ["image_id", "score", "side_px", "sharpness"]
    return [reason(face) for face in faces.select(columns).iter_rows(named=True)]


def _without_the_forgotten(
    params: Params, faces: pl.DataFrame, embeddings: np.ndarray, reasons: list[str | None]
) -> list[str | None]:
    """Faces of people whose tombstones carry an embedding (forget.keep_embedding) join nobody."""
    centres = Tombstones.read().centres(faces["embedder"][0]) if len(faces) else np.zeros((0, 0))
    if not len(centres):
        return reasons
    forgotten = (embeddings @ centres.T).max(1) >= params.min_cosine
    return [FORGOTTEN if gone else reason for gone, reason in zip(forgotten, reasons, strict=True)]


class _People:
    """Clusters of faces as people: outliers out, components joined, splits drawn, ids that stay.

    A person keeps the id that most of its faces have in the ledger; a new one is named after its first face.
    """

    def __init__(
        self,
        params: Params,
        ledger: Ledger,
        faces: pl.DataFrame,
        embeddings: np.ndarray,
        cluster: np.ndarray,
        reasons: list[str | None],
    ) -> None:
        self.params, self.faces, self.embeddings, self.reasons = params, faces, embeddings, reasons
        self.face_ids = faces["face_id"].to_list()
        self.image_ids = faces["image_id"].to_list()
        self.person: list[str | None] = [None] * len(faces)
        self.members: dict[str, list[int]] = {}
        for label in range(cluster.max(initial=-1) + 1):
            indices = np.flatnonzero(cluster == label).tolist()
            person_id = ledger.name([self.face_ids[k] for k in indices], taken=self.members)
            self.members[person_id] = indices
            for k in indices:
                self.person[k] = person_id
        self.members = dict(sorted(self.members.items()))
        self.cosine = np.full(len(faces), np.nan, np.float32)
        self.centre = {person_id: self._settle(person_id) for person_id in self.members}
        self.reason: dict[str, str | None] = dict.fromkeys(self.members)
        self._drop_people_of_few_faces()
        self.nearest = self._nearest()
        self.component = self._components()
        self._drop_people_of_few_faces()
        self.split = ledger.draw(self._shown(), self.component, params.fractions, params.seed)
        self._drop_what_contradicts(ledger)

    def _drop_people_of_few_faces(self) -> None:
        for person_id in self.members:
            if self.reason[person_id] is None and len(self._kept(person_id)) < self.params.min_faces:
                self.reason[person_id] = f"fewer than {self.params.min_faces} faces"

    def _drop_what_contradicts(self, ledger: Ledger) -> None:
        """A face stays in the split it was drawn into; where its person is now in another one, it is dropped."""
        for person_id, split in self.split.items():
            known = ledger.split_of([self.face_ids[k] for k in self.members[person_id]])
            if known is not None and known != split:
                self.reason[person_id] = "its component is in another split of the ledger"
            for k in self.members[person_id]:
                if self.reasons[k] is None and ledger.split_of([self.face_ids[k]]) not in (None, split):
                    self.reasons[k] = "the face is in another split of the ledger"
        self._drop_people_of_few_faces()

    def _kept(self, person_id: str) -> list[int]:
        return [k for k in self.members[person_id] if self.reasons[k] is None]

    def _settle(self, person_id: str) -> np.ndarray:
        """The centre (d,) of the faces that are near it; the others become outliers."""
        indices = np.array(self.members[person_id])
        centre = _unit(self.embeddings[indices].mean(0))
        near = self.embeddings[indices] @ centre >= self.params.min_face_cosine
        if near.any():
            centre = _unit(self.embeddings[indices[near]].mean(0))
        self.cosine[indices] = self.embeddings[indices] @ centre
        for k in indices:
            if self.cosine[k] < self.params.min_face_cosine:
                self.reasons[k] = f"cosine to the person's centre below {self.params.min_face_cosine}"
        return centre

    def _nearest(self) -> dict[str, tuple[str | None, float | None]]:
        """The most alike of the other people who are kept, with its cosine."""
        names = [name for name in self.members if self.reason[name] is None]
        if len(names) < 2:
            return dict.fromkeys(self.members, (None, None))
        centres = np.stack([self.centre[name] for name in names])
        found: dict[str, tuple[str | None, float | None]] = {}
        for person_id in self.members:
            cosines = centres @ self.centre[person_id]
            cosines[[name == person_id for name in names]] = -2
            best = int(cosines.argmax())
            found[person_id] = (names[best], float(cosines[best]))
        return found

    def _components(self) -> dict[str, str]:
        """person -> component, by union over alike people and then over shared pictures, the latter up to a size."""
        parent = {person_id: person_id for person_id in self._shown()}

        def root(person_id: str) -> str:
            while parent[person_id] != person_id:
                person_id = parent[person_id]
            return person_id

        def size(roots: set[str]) -> int:
            return sum(root(person_id) in roots for person_id in parent)

        names = list(parent)
        centres = np.stack([self.centre[name] for name in names]) if names else np.zeros((0, 1))
        for a, b in np.argwhere(np.triu(centres @ centres.T > self.params.max_person_cosine, 1)):
            first, second = sorted((root(names[a]), root(names[b])))
            parent[second] = first
        pictures: dict[str, list[int]] = {}
        for k, person in enumerate(self.person):
            if person in parent and self.reasons[k] is None:
                pictures.setdefault(self.image_ids[k], []).append(k)
        for _, indices in sorted(pictures.items()):
            roots = {root(self.person[k] or "") for k in indices}
            if len(roots) > 1 and size(roots) > self.params.max_component:
                for k in indices:
                    self.reasons[k] = f"its picture would weld more than {self.params.max_component} people"
                continue
            first = min(roots)
            parent |= dict.fromkeys(roots, first)
        return {person_id: root(person_id) for person_id in parent}

    def _shown(self) -> dict[str, list[str]]:
        """The people who are kept, with the ids of their faces."""
        return {
            person_id: [self.face_ids[k] for k in self._kept(person_id)]
            for person_id in self.members
            if self.reason[person_id] is None
        }

    def rows(self) -> list[dict]:
        """records.PEOPLE."""
        return [
            {
                "person_id": person_id,
                "n": len(self._kept(person_id)),
                "centre": self.centre[person_id],
                "spread": float(np.mean(self.cosine[self._kept(person_id)])) if self._kept(person_id) else None,
                "nearest_person": self.nearest[person_id][0],
                "nearest_cosine": self.nearest[person_id][1],
                "alike": (self.nearest[person_id][1] or 0) > self.params.max_person_cosine,
                "component": self.component.get(person_id),
                "split": self.split.get(person_id),
                "keep": self.reason[person_id] is None,
                "reason": self.reason[person_id],
            }
            for person_id in self.members
        ]

    def face_rows(self) -> list[dict]:
        """records.PEOPLE_FACES."""
        return [
            {
                "face_id": self.face_ids[k],
                "image_id": self.image_ids[k],
                "person_id": self.person[k],
                "cosine": None if np.isnan(self.cosine[k]) else float(self.cosine[k]),
                "keep": self.reasons[k] is None,
                "reason": self.reasons[k],
            }
            for k in range(len(self.face_ids))
        ]

    def check(self, images: pl.DataFrame) -> dict:
        """Figures for the log; labels are read here and nowhere else."""
        labels = dict(images.filter(pl.col("label").is_not_null()).select("image_id", "label").iter_rows())
        pairs = [
            (labels[image_id], person)
            for image_id, person in zip(self.image_ids, self.person, strict=True)
            if image_id in labels and person is not None
        ]
        index = None
        if pairs:
            truth, found = (np.unique(column, return_inverse=True)[1] for column in zip(*pairs, strict=True))
            index = round(adjusted_rand_index(truth, found), 4)
        kept = {person_id for person_id, reason in self.reason.items() if reason is None}
        splits = [self.split[person_id] for person_id in kept]
        return {
            "people": len(kept),
            "faces": sum(reason is None for reason in self.reasons),
            "adjusted_rand_index": index,
            "labelled_faces": len(pairs),
            **{split: splits.count(split) for split in SPLITS},
        }
