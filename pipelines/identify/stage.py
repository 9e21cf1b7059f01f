"""Faces -> people, from the faces alone; near duplicates dropped; people split into train, validation and test.

A component is a group of people who share a picture or are too alike; it goes into one split, drawn once and written
to the ledger. What contradicts the ledger later is dropped (keep = false), never moved.
"""

import json
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from pipelines.core import products
from pipelines.core.corrections import CORRECTIONS, read_corrections
from pipelines.core.ledger import LEDGER, SPLITS, Ledger
from pipelines.core.params import Section
from pipelines.core.publish import writing
from pipelines.core.seen import models_that_saw
from pipelines.core.shards import Counts, Machine, Shard, digest, file_digest, tree_digest
from pipelines.core.shards import run as run_shards
from pipelines.core.tombstones import FORGOTTEN, Tombstones, hashes
from pipelines.identify.corrected import Corrected, Resolved, correct, dropped_faces, resolve
from pipelines.identify.people import Bounds, People, Reasons, unit
from umo import records
from umo.people import clustering, duplicates
from umo.people.agreement import agreement
from umo.people.thresholds import BINS, fit, histogram, pairs_within

ROWS = 65_536  # of a group in the tables, whose least and greatest person_id a reader looks at


class Params(Section):
    """
    min_score, min_side, min_sharpness: a face below any of them joins nobody.
    max_duplicate_bits: pictures whose perceptual hashes differ in at most so many of 64 bits are one picture.
    min_cosine: two clusters of faces of one group (album or long video) are one person where the mean cosine between
        them is at least this.
    min_cosine_across: the same for clusters of different groups, or of one larger than max_group. Stricter, for among
        many people some strangers are as alike as min_cosine.
    max_group: faces up to which a group is taken for an album whose few people may be told apart by min_cosine.
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
    min_cosine_across: float = Field(ge=-1, le=1)
    max_group: int = Field(ge=1, le=10_000)
    min_face_cosine: float = Field(ge=-1, le=1)
    min_faces: int = Field(ge=1)
    max_person_cosine: float = Field(ge=-1, le=1)
    max_component: int = Field(ge=1)
    fractions: dict[str, Annotated[float, Field(ge=0, le=1)]]
    seed: int

    @model_validator(mode="after")
    def _values_fit(self) -> "Params":
        if self.min_cosine_across < self.min_cosine:
            raise ValueError("min_cosine_across must not be below min_cosine")
        if set(self.fractions) != set(SPLITS) or abs(sum(self.fractions.values()) - 1) > 1e-6:
            raise ValueError(f"fractions must be given for {', '.join(SPLITS)} and add up to 1")
        return self


def run(params: Params, machine: Machine) -> None:
    """Find the people of datasets/ingested and extend the ledger."""
    with writing("identify"):
        ledger, rows = Ledger.read(), read_corrections()
        corrected = resolve(rows, ledger, _measured()) if rows else []
        inputs = {str(product): tree_digest(product) for product in (products.INGESTED, products.MEASURED_PHOTOS)}
        forgotten = digest([row for row in Tombstones.read().rows() if row.embedding])
        told = {"forgotten": forgotten, "corrections": digest(corrected)}
        shard = Shard("", inputs | told | {"ledger": file_digest(LEDGER) if LEDGER.exists() else ""})
        work = partial(_identify, params, ledger, corrected)
        run_shards("identify", work, [shard], products.PEOPLE, params=params, machine=machine)
        check = json.loads((products.PEOPLE / products.PEOPLE_CHECK).read_text())
        shown = {key: value for key, value in check.items() if key not in ("histograms", "corrections")}
        print(f"identify: {json.dumps(shown)}")
        for line in _said(check["corrections"]):
            print(f"identify: {line}", flush=True)
        # The ledger comes after the people: a run that is killed between the two finds the same people again.
        people = products.people().filter("keep").select("person_id", "split")
        ledger.extend(products.people_faces().filter("keep").join(people, on="person_id"))
        ledger.write()


def _measured() -> pl.Series:
    return products.faces(products.MEASURED_PHOTOS, ["face_id"])["face_id"]


def _identify(params: Params, ledger: Ledger, corrected: list[Resolved], shard: Shard, folder: Path) -> Counts:
    images, measured = products.images(products.INGESTED), products.measured_images(products.MEASURED_PHOTOS)
    columns = ["face_id", "image_id", "score", "side_px", "sharpness", "embedding", "embedder"]
    faces = products.faces(products.MEASURED_PHOTOS, columns).sort("face_id")
    vectors = unit(faces["embedding"].to_numpy().astype(np.float32))
    # Those of people whose tombstones carry an embedding (forget.keep_embedding) join nobody.
    centres = Tombstones.read().centres(faces["embedder"][0]) if len(faces) else np.zeros((0, 0))
    gone = (vectors @ centres.T).max(1) >= params.min_cosine if len(centres) else np.zeros(len(faces), bool)
    # A group's name is its source's own; a picture without one is alone.
    named = pl.coalesce(pl.concat_str("source", "group", separator="/"), "image_id")
    albums = images.select("image_id", album=named).unique("image_id", keep="first")
    faces = faces.drop("embedding", "embedder").join(albums, on="image_id", how="left", maintain_order="left")
    reasons = Reasons(len(faces))
    for row, text in dropped_faces(corrected, faces["face_id"]):
        reasons.give(np.array([row]), text)
    _give_face_reasons(reasons, params, faces, repeated_images(measured, params.max_duplicate_bits))
    reasons.give(gone, FORGOTTEN)
    good, cluster = reasons.none, np.full(len(faces), -1)
    album = faces.filter(good)["album"].rank("dense").to_numpy()
    within = clustering.within_groups(vectors[good], album, params.min_cosine, params.max_group)
    cluster[good] = clustering.link(vectors[good], within, params.min_cosine_across)
    bounds = Bounds(**{name: getattr(params, name) for name in Bounds.__dataclass_fields__})
    found = correct(corrected, faces["face_id"], vectors, cluster, ledger)
    people = People(bounds, faces, vectors, found, reasons, ledger)
    people.draw(ledger, params.fractions, params.seed)
    records.write(folder / products.PEOPLE_TABLE, people.table(), records.PEOPLE, ROWS)
    records.write(folder / products.PEOPLE_FACES_TABLE, people.faces_table(), records.PEOPLE_FACES, ROWS)
    # Who is shown, for checking: the label of a picture with one face, else null.
    alone = measured.filter(n_faces=1).select("image_id")
    labels = images.drop_nulls("label").select("image_id", "label").join(alone, on="image_id").unique("image_id")
    label = faces.join(labels, on="image_id", how="left", maintain_order="left")["label"]
    check = _check(people, vectors, faces["album"], label) | {"corrections": _effects(found, people, ledger)}
    (folder / products.PEOPLE_CHECK).write_text(json.dumps(check) + "\n")
    rejects = Counter(people.reasons.counts()) + Counter(people.person_reasons.counts())
    return Counts({"people": check["people"], "faces": check["faces"]}, dict(rejects))


def _effects(found: Corrected, people: People, ledger: Ledger) -> dict[str, list]:
    """What has to be said of corrections: those that joined people of several splits, and those that change nothing."""
    across, elsewhere = [], np.flatnonzero(found.elsewhere)
    for label, row in found.joined.items():
        gone = elsewhere[found.cluster[elsewhere] == label]
        if len(gone):
            person = people.person[gone[0]]
            face_ids = people.faces["face_id"][gone]
            known = ledger.find(face_ids)
            across.append(
                {
                    "line": row.line,
                    "person_id": people.names[int(person)],
                    "split": (*SPLITS, None)[people.split[person]],
                    "people": known["person_id"].unique().sort().to_list(),
                    "splits": known["split"].cast(pl.String).unique().sort().to_list(),
                    "faces": face_ids.to_list(),
                }
            )
    return {"across_splits": across, "idle": found.idle}


def _said(effects: dict[str, list]) -> Iterator[str]:
    """`_effects` in words, with the models that saw those who are now in another split."""
    for line in effects["idle"]:
        yield f"{CORRECTIONS}:{line}: changes nothing: one side has no face that may be used (see people_faces.parquet)"
    for one in effects["across_splits"]:
        saw = models_that_saw(one["people"], one["faces"])
        models = f"models that saw them: {', '.join(map(str, saw))}" if saw else "no model here saw them"
        yield (
            f"{CORRECTIONS}:{one['line']}: {one['person_id']} stays in {one['split']}; {len(one['faces'])} faces of "
            f"{', '.join(one['people'])} in {' and '.join(one['splits'])} are dropped; {models}"
        )


def repeated_images(measured: pl.DataFrame, max_bits: int) -> pl.Series:
    """image_ids of near duplicates over the whole corpus, the sharpest copy of each excepted."""
    ordered = measured.filter(pl.col("phash").is_not_null()).sort(["sharpness", "image_id"], descending=[True, False])
    return ordered["image_id"].filter(duplicates.repeated(hashes(ordered["phash"]), max_bits))


def _give_face_reasons(reasons: Reasons, params: Params, faces: pl.DataFrame, repeated: pl.Series) -> None:
    if len(repeated):
        reasons.give(faces["image_id"].is_in(repeated.implode()).to_numpy(), "near duplicate of another picture")
    for key, bound in (("score", params.min_score), ("side_px", params.min_side), ("sharpness", params.min_sharpness)):
        reasons.give((faces[key] < bound).to_numpy(), f"{key} below {bound}")


def _check(people: People, vectors: np.ndarray, album: pl.Series, label: pl.Series) -> dict:
    """Figures for the log and the report; labels are read here and nowhere else.

    `clusters` compares all faces that were given to somebody; `kept` all labelled ones, of whom those that are not
    kept are each alone: its precision is that of the data set, its recall what is lost on the way.
    """
    known, kept = label.is_not_null().to_numpy(), people.kept_of_kept()
    given = np.flatnonzero(known & (people.person >= 0))
    alone = -1 - np.arange(len(album))
    alone[kept] = people.person[kept]
    found = {}
    if len(given):
        found["clusters"] = agreement(label[given].to_numpy(), people.person[given]).rounded()
        found["kept"] = agreement(label.filter(known).to_numpy(), alone[known]).rounded()
    owner = label.rank("dense").fill_null(0).to_numpy().astype(np.int64) - 1 if len(given) else people.person
    usable = np.flatnonzero((people.person >= 0) & (owner >= 0))
    same, different = pairs_within(vectors, album.rank("dense").to_numpy(), owner, usable)
    nearest = people.nearest_cosine[people.person_reasons.none & (people.nearest >= 0)]
    shown = people.split[people.person_reasons.none]
    histograms = {
        "edges": BINS.tolist(),
        "same person, one group": histogram(same),
        "different people, one group": histogram(different),
        "most alike other person": histogram(nearest),
    }
    return {
        "people": len(shown),
        "faces": int(people.reasons.none.sum()),
        "adjusted_rand_index": round(found["clusters"]["adjusted_rand_index"], 4) if found else None,
        "labelled_faces": len(given),
        **{split: int((shown == number).sum()) for number, split in enumerate(SPLITS)},
        "agreement": found,
        "thresholds": {"from": "labels" if found else "found people"} | fit(same, different),
        "histograms": histograms,
    }
