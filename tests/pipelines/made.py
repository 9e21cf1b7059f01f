"""Hand-made products for tests of curate and of what reads sets: no picture, no model, vectors at known angles."""

import hashlib
from pathlib import Path

import numpy as np

from pipelines.core import products
from pipelines.core.shards import Machine
from pipelines.curate.stage import Params, run
from umo import records

DIMENSION = 32
PARAMS = {
    "min_people": 1,
    "max_people": 4,
    "min_people_ingested": 2,
    "min_side": 36,
    "min_overlap": 0.3,
    "min_cosine": 0.5,
    "max_cosine": 0.95,
    "min_person_cosine": 0.5,
    "max_source_cosine": 0.96,
    "max_cross_cosine": 0.4,
    "max_candidates": 64,
    "pose_bin": {"ingested": 20, "synthesised": 0},
    "pool": 4,
    "max_sets_per_person": 80,
    "max_share_of_n": 1,
    "seed": 7,
}


def image_id(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def face_id(name: str, rank: int = 0) -> str:
    return f"{image_id(name)[:16]}-{rank}"


def near(person: int, angle: float, side: int = 20) -> np.ndarray:
    """A unit vector `angle` degrees from a person's own, towards direction `side`."""
    vector = np.zeros(DIMENSION)
    vector[person], vector[side] = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    return vector


class Made:
    """Products under construction; what is left out gets the value of a good photograph."""

    def __init__(self) -> None:
        self.images: dict[str, list[dict]] = {"ingested": [], "synthesised": []}
        self.faces: dict[str, list[dict]] = {"ingested": [], "synthesised": []}
        self.people: dict[str, dict] = {}
        self.owners: list[dict] = []
        self.layout: list[dict] = []
        self.scenes: list[dict] = []

    def person(self, name: str, centre: np.ndarray, split: str = "train", keep: bool = True) -> None:
        self.people[name] = dict.fromkeys(records.PEOPLE.names) | {
            "person_id": name,
            "centre": list(centre),
            "split": split if keep else None,
            "keep": keep,
        }

    def picture(self, name: str, faces: list[tuple], kind: str = "ingested", **changes: object) -> None:
        """Faces: (person or None, vector) and, if wanted, a dict of changes; from left to right, 100 px each."""
        self.images[kind].append(
            dict.fromkeys(records.IMAGES.names)
            | {"image_id": image_id(name), "shard": "0000", "key": name, "width": 400, "height": 200}
            | {"source": "mine", "path": name, "licence": "CC0", "consent": "given", "status": "ok"}
            | changes
        )
        for rank, (person, vector, *more) in enumerate(faces):
            left = 100.0 * rank
            self.faces[kind].append(
                dict.fromkeys(records.measured_faces(DIMENSION).names)
                | {"face_id": face_id(name, rank), "image_id": image_id(name), "landmarks": [left] * 10}
                | {"box": [left, 10, left + 80, 90], "side_px": 80, "pose": [0, 0, 0]}
                | {"embedding": vector.astype(np.float16)}
                | (more[0] if more else {})
            )
            if person and kind == "ingested":
                row = {"face_id": face_id(name, rank), "image_id": image_id(name), "person_id": person, "keep": True}
                self.owners.append(dict.fromkeys(records.PEOPLE_FACES.names) | row)

    def placed(self, name: str, person: str, rank: int, **changes: object) -> None:
        """A row of the layout where `picture` has the face of that rank."""
        self.layout.append(
            dict.fromkeys(records.LAYOUT.names)
            | {"image_id": image_id(name), "position": rank, "person_id": person, "role": "target"}
            | {"box": [100.0 * rank, 10, 100.0 * rank + 80, 90]}
            | changes
        )

    def scene(self, name: str, n: int, split: str = "train") -> None:
        row = {"image_id": image_id(name), "n": n, "split": split, "background": "plain blue", "prompt": "as asked"}
        self.scenes.append(row | {"generator": "made"})

    def write(self) -> None:
        for kind, measured in (("ingested", products.MEASURED_PHOTOS), ("synthesised", products.MEASURED_SCENES)):
            _write(Path(f"datasets/{kind}/0000") / products.IMAGES_TABLE, self.images[kind], records.IMAGES)
            _write(measured / "0000" / products.FACES_TABLE, self.faces[kind], records.measured_faces(DIMENSION))
        _write(products.SYNTHESISED / "0000" / products.LAYOUT_TABLE, self.layout, records.LAYOUT)
        _write(products.SYNTHESISED / "0000" / products.SCENES_TABLE, self.scenes, records.SCENES)
        _write(products.PEOPLE / products.PEOPLE_TABLE, list(self.people.values()), records.PEOPLE)
        _write(products.PEOPLE / products.PEOPLE_FACES_TABLE, self.owners, records.PEOPLE_FACES)


def _write(path: Path, rows: list[dict], schema) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    records.write(path, rows, schema)


def curate(made: Made, **changes: object) -> dict[str, dict]:
    """Rows of the sets by the name that their picture was made under."""
    made.write()
    run(Params.model_validate(PARAMS | changes), Machine())
    names = {row["image_id"]: row["path"] for kind in made.images.values() for row in kind}
    rows = records.read(products.CURATED / products.SETS_TABLE, records.SETS).to_pylist()
    assert [row["set_id"] for row in rows] == sorted(row["set_id"] for row in rows)
    return {names[row["target_image_id"]]: row for row in rows}


def references(row: dict, person: int = 0) -> list[tuple[str, str]]:
    return [(entry["face_id"], entry["recall"]) for entry in row["pool"][person] or ()]


def diptych(made: Made, name: str = "drawn", split: str = "test", angle: float = 40) -> None:
    """Two people whom nobody photographed: a target half and a reference half a person."""
    made.picture(name, [(None, near(10, 10)), (None, near(11, 10))], "synthesised", group=f"diffusion/{split}/{name}")
    made.scene(name, 2, split)
    for rank in (0, 1):
        half = f"{name} half {rank}"
        face = [(None, near(10 + rank, 10 - angle))]
        made.picture(half, face, "synthesised", group=f"diffusion/{split}/{name}", consent="unknown")
        made.placed(name, f"g{name}{rank}", rank)
        made.placed(half, f"g{name}{rank}", 0, role="reference")
