"""What all generators share."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from pipelines.core import products, store
from pipelines.core.ledger import SPLITS, Split
from pipelines.core.shards import Shard
from pipelines.core.sources import CONSENT_WEAKEST_FIRST
from pipelines.core.store import PLACE
from pipelines.synthesise.params import Params
from umo import records
from umo.errors import BadInput


@dataclass
class Scenes:
    """What came of a shard: rows of records.IMAGES, LAYOUT and SCENES, pictures by key, rejects by reason; and the
    pieces that a later shard may take over (pipelines/core/shards.py).
    """

    images: list[dict] = field(default_factory=list)
    layout: list[dict] = field(default_factory=list)
    scenes: list[dict] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)
    rejects: dict[str, int] = field(default_factory=dict)
    pieces: Mapping[str, str] = field(default_factory=dict)

    def add(self, shard: str, data: bytes, size: Sequence[int], **row: object) -> str:
        """Take a picture of height and width `size`, described by `row`; returns its image_id."""
        image_id = hashlib.sha256(data).hexdigest()
        key = f"{image_id}.png"
        self.pictures[key] = data
        self.images.append(image_row(image_id, shard, key, size, row))
        return image_id

    def reject(self, shard: str, image_id: str, reason: str, **row: object) -> None:
        """Keep a row of a drawing that was turned away, and count the reason."""
        rejected = {"status": "rejected", "error": reason, **row}
        self.images.append(image_row(image_id, shard, None, (None, None), rejected))
        self.rejects[reason] = self.rejects.get(reason, 0) + 1


class Taken(NamedTuple):
    """What a shard made of a case before: rows of records.IMAGES, pictures by key, rows of the other tables."""

    images: list[dict]
    pictures: dict[str, bytes]
    rows: dict[str, list[dict]]


class Earlier:
    """What a shard made before of those cases (pieces, by name) that would come out the same.

    Args:
        pieces: as of `Shard.kept_pieces`; the path of a case's pictures is its name, or begins with it and a slash.
        tables: the shard's other tables, whose rows have an image_id.
    """

    def __init__(self, shard: Shard, pieces: Mapping[str, str], tables: Mapping[str, pa.Schema]) -> None:
        self._kept = shard.kept_pieces(pieces)
        if self._kept and shard.before:
            self._images = records.read(shard.before / products.IMAGES_TABLE, records.IMAGES).to_pylist()
            self._pictures, self._place = store.Pictures(shard.before.parent), {"shard": shard.before.name}
            self._rows = {name: records.read(shard.before / name, tables[name]).to_pylist() for name in tables}

    def of(self, name: str) -> Taken | None:
        """What was made of a case; None where it is to be made anew."""
        if name not in self._kept:
            return None
        images = [row for row in self._images if row["path"] == name or row["path"].startswith(f"{name}/")]
        ids = {row["image_id"] for row in images}
        stored = {row["key"]: self._pictures.bytes(row | self._place) for row in images if row["key"]}
        return Taken(
            images, stored, {of: [row for row in self._rows[of] if row["image_id"] in ids] for of in self._rows}
        )


def image_row(
    image_id: str, shard: str, key: str | None, size: Sequence[int | None], row: Mapping[str, object]
) -> dict[str, object]:
    """A row of records.IMAGES: of a good picture of height and width `size`, unless `row` says otherwise."""
    own = {"image_id": image_id, "shard": shard, "key": key, "height": size[0], "width": size[1], "status": "ok"}
    return {**dict.fromkeys(records.IMAGES.names), **own, **row}


def layout_row(
    image_id: str,
    position: int,
    person_id: str,
    box: np.ndarray,
    role: str = "target",
    source: Mapping | None = None,
    guide: Mapping | None = None,
) -> dict[str, object]:
    """A row of records.LAYOUT.

    Args:
        source, guide: photographs (face_id, image_id) of the person that was shown; none of somebody invented.
    """
    source, guide = source or {}, guide or {}
    made_from = {"source_face_id": source.get("face_id"), "source_image_id": source.get("image_id")}
    place = {"image_id": image_id, "position": position, "person_id": person_id, "role": role, "box": box}
    return {**place, **made_from, "guide_face_id": guide.get("face_id")}


def numbers(params: Params) -> Iterator[tuple[str, Split, range]]:
    """The shards of each split: name, split, numbers of its scenes. Where none are asked for, one without any.

    Whoever has photographs of several people needs no scenes, and the stages after need their tables all the same.
    """
    if not any(params.scenes.values()):
        yield f"{SPLITS[0]}-0000", SPLITS[0], range(0)
    for split in SPLITS:
        count, size = params.scenes.get(split, 0), params.shard_size
        for shard, start in enumerate(range(0, count, size)):
            yield f"{split}-{shard:04d}", split, range(start, min(start + size, count))


def scene_of(params: Params, split: Split, number: int) -> tuple[int, np.random.Generator]:
    """How many people a scene shows, and the dice for the rest of it."""
    n = params.people[number % len(params.people)]
    return n, np.random.default_rng([params.seed, SPLITS.index(split), number])


def photos() -> pl.DataFrame:
    """A row a usable face: whose, where, and in which stored picture."""
    people = products.people().lazy().filter("keep").select("person_id", "split")
    faces = products.people_faces().lazy().filter("keep").select("face_id", "image_id", "person_id")
    measured = products.scan(products.MEASURED_PHOTOS, products.FACES_TABLE, records.measured_faces(1))
    landmarks = measured.select("face_id", "box", "landmarks")
    images = products.scan(products.INGESTED, products.IMAGES_TABLE, records.IMAGES).filter(status="ok")
    wanted = images.select("image_id", *PLACE, "sha256", "licence", "consent")
    return faces.join(people, on="person_id").join(landmarks, on="face_id").join(wanted, on="image_id").collect()


class Photographs:
    """The people of a split, of whom some are drawn so that a new photograph changes few of the scenes.

    Args:
        rows: `photos` of the split, with any further columns.
    """

    def __init__(self, rows: pl.DataFrame) -> None:
        self._rows = rows.sort("person_id", "face_id")
        count = self._rows.group_by("person_id", maintain_order=True).len()
        self.people = count["person_id"].to_list()
        self._ends = np.cumsum(count["len"].to_numpy())
        self._numbers = np.array([_number(person) for person in self.people], np.uint64)

    def choose(self, n: int, scene: str) -> list[list[dict]]:
        """n people, those with the smallest hash of scene and person; of each all photographs, by that of scene and
        face.
        """
        ranks = _mixed(self._numbers ^ np.uint64(_number(scene)))
        least = np.argpartition(ranks, n - 1)[:n]
        chosen = []
        for k in least[np.argsort(ranks[least])].tolist():
            theirs = self._rows[int(self._ends[k - 1]) if k else 0 : int(self._ends[k])].to_dicts()
            chosen.append(sorted(theirs, key=lambda face: _number(scene + face["face_id"])))
        return chosen


def _number(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:16], 16)


def _mixed(values: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser: uint64 -> uint64, every bit of the input moves every bit of the output."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
    return values ^ (values >> np.uint64(31))


def require_people(params: Params, split: Split, n_people: int) -> None:
    """Raises BadInput where a split has fewer people than its largest scenes show."""
    if params.scenes.get(split, 0) and n_people < max(params.people):
        raise BadInput(
            f"{split} has {n_people} people and synthesise.people asks for {max(params.people)}: add photographs "
            "of more people, or ask for fewer"
        )


def terms(chosen: Sequence[Mapping]) -> dict[str, str | None]:
    """The licences and the weakest consent of the photographs that a scene was made from."""
    return {
        "licence": " + ".join(sorted({face["licence"] or "none stated" for face in chosen})),
        "consent": min((face["consent"] for face in chosen), key=CONSENT_WEAKEST_FIRST.index),
    }
