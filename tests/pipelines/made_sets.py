"""Products by hand, up to curated sets, from real photographs: four people, groups, scenes, a drawn reference."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from pipelines.core import products, store
from pipelines.core.sources import SOURCES
from umo import records
from umo.images import encode_jpeg, encode_png

BOX = np.array([36.0, 44.0, 102.0, 130.0])  # of the face in a photograph of 138 x 168 px
POINTS = np.array([55.0, 75, 84, 75, 69, 95, 58, 112, 81, 112])
TERMS = {
    "one": ("CC0", "given"),
    "two": ("CC-BY", "public"),
    "composite": ("CC-BY + CC0", "public"),
    "diptych": (None, "drawn"),
}
YAML = """
one: {path: photos/one, licence: CC0, consent: given, credit: "Somebody, 2024"}
two: {path: photos/two, licence: CC-BY, consent: public, note: "only people of one village"}
unused: {path: photos/unused, licence: CC0}
"""
FUNNEL = '{"pictures": 9, "kept": 7, "reasons": {"too few people": 2}}'


class Made:
    """What is written, in plain rows.

    Attributes:
        pictures: image_id -> (product, encoded bytes, source).
        faces: face_id -> (image_id, box, landmarks).
        sets: rows of records.SETS.
    """

    def __init__(self) -> None:
        self.pictures: dict[str, tuple[Path, bytes, str]] = {}
        self.faces: dict[str, tuple[str, np.ndarray, np.ndarray]] = {}
        self.sets: list[dict] = []

    def picture(
        self, product: Path, pixels: np.ndarray, source: str, lossy: bool, n: int = 1, cut: int = 0
    ) -> list[str]:
        """Add a picture of n people side by side, `cut` columns off their left; gives its faces from left to right."""
        encoded = encode_jpeg(pixels) if lossy else encode_png(pixels)
        image_id = hashlib.sha256(encoded).hexdigest()
        self.pictures[image_id] = (product, encoded, source)
        width = pixels.shape[1] / n
        for k in range(n):
            shift = np.array([k * width - cut, 0])
            face = (image_id, BOX + np.tile(shift, 2), POINTS + np.tile(shift, 5))
            self.faces[f"{image_id[:16]}-{k}"] = face
        return [f"{image_id[:16]}-{k}" for k in range(n)]

    def add_set(
        self, split: str, target: list[str], pools: list[list[str]], made_from: list[str], **more: object
    ) -> None:
        """A set whose target shows these faces; `made_from` are faces of the photographs in it."""
        image_id = self.faces[target[0]][0]
        product, _, source = self.pictures[image_id]
        own = [self.faces[face][0] for face in made_from] or [image_id]
        shown = {
            self.pictures[picture][2] for picture in (*own, *(self.faces[face][0] for pool in pools for face in pool))
        }
        licences = sorted({part for name in shown if TERMS[name][0] for part in str(TERMS[name][0]).split(" + ")})
        consent = next(word for word in ("drawn", "public", "given") if word in {TERMS[name][1] for name in shown})
        row = {
            "set_id": f"s{image_id[:16]}",
            "n": len(target),
            "person_ids": [f"p{split}{k}" for k in range(len(target))],
            "target_image_id": image_id,
            "target_kind": product.name,
            "target_face_ids": target,
            "target_boxes": [self.faces[face][1].tolist() for face in target],
            "target_landmarks": [self.faces[face][2].tolist() for face in target],
            "target_sources": sorted(own),
            "pool": [[self._entry(face, k) for k, face in enumerate(pool)] for pool in pools],
            "reference_cosine": [0.8 for _ in pools],
            "cross_cosine": 0.1 if len(target) > 1 else None,
            "background": "plain blue" if made_from else None,
            "prompt": f"A photo of {len(target)} people: they stand.",
            "licence": " + ".join(licences),
            "consent": consent,
            "source": source,
            "split": split,
            "keep": True,
            "reason": None,
        }
        self.sets.append(row | more)

    def _entry(self, face: str, rank: int) -> dict:
        recall = "group" if rank == 0 else "corpus"
        return {"face_id": face, "image_id": self.faces[face][0], "cosine": 0.8 - 0.05 * rank, "recall": recall}

    def write(self) -> None:
        """Write the products below the current folder."""
        SOURCES.parent.mkdir(parents=True, exist_ok=True)
        SOURCES.write_text(YAML)
        places = {image_id: f"{int(image_id[0], 16) % 2:04d}" for image_id in self.pictures}
        for product, measured in (
            (products.INGESTED, products.MEASURED_PHOTOS),
            (products.SYNTHESISED, products.MEASURED_SCENES),
        ):
            for shard in ("0000", "0001"):
                mine = [x for x, (where, *_) in self.pictures.items() if where == product and places[x] == shard]
                self._write_shard(product, measured, shard, sorted(mine))
        products.CURATED.mkdir(parents=True, exist_ok=True)
        records.write(products.CURATED / products.SETS_TABLE, self.sets, records.SETS)
        (products.CURATED / products.FUNNEL).write_text(FUNNEL)
        write_captions(self.sets)

    def _write_shard(self, product: Path, measured: Path, shard: str, image_ids: list[str]) -> None:
        rows, pictures, faces = [], {}, []
        for image_id in image_ids:
            _, encoded, source = self.pictures[image_id]
            key = image_id + (".jpg" if encoded.startswith(b"\xff\xd8") else ".png")
            pictures[key] = encoded
            row = dict.fromkeys(records.IMAGES.names) | {"image_id": image_id, "shard": shard, "key": key}
            licence, consent = TERMS[source]
            rows.append(row | {"source": source, "status": "ok", "licence": licence, "consent": consent})
        for face_id, (image_id, box, landmarks) in self.faces.items():
            if image_id in image_ids:
                row = dict.fromkeys(records.measured_faces(2).names) | {"face_id": face_id, "image_id": image_id}
                row |= {"embedding": np.zeros(2, np.float16), "pose": [0.0, 0.0, 0.0]}
                faces.append(row | {"box": box.tolist(), "landmarks": landmarks.tolist()})
        for folder in (product / shard, measured / shard):
            folder.mkdir(parents=True)
        store.write(product / shard, rows, pictures)
        records.write(measured / shard / products.FACES_TABLE, faces, records.measured_faces(2))


def make(orl: Callable[[int, int], np.ndarray]) -> Made:
    """Seven sets: of one, two and three people; targets photographed and composited.

    One reference was drawn, and one stands close between two people.

    Of two people there are a JPEG and PNGs among the targets; of one person all are JPEGs.
    """
    made = Made()
    photo = {(p, k): orl(p, k)[::3, ::3] for p in (1, 2, 3, 4, 5) for k in (1, 2, 3, 4)}
    face = {
        (p, k): made.picture(products.INGESTED, pixels, "two" if p == 2 else "one", lossy=p == 2)[0]
        for (p, k), pixels in photo.items()
    }
    drawn = made.picture(products.SYNTHESISED, photo[4, 1][:, ::-1], "diptych", lossy=False)[0]

    def scene(*shown: tuple[int, int]) -> list[str]:
        pixels = np.concatenate([photo[one] for one in shown], axis=1)
        return made.picture(products.SYNTHESISED, pixels // 2 + 40, "composite", lossy=False, n=len(shown))

    def group(*shown: tuple[int, int]) -> list[str]:
        pixels = np.concatenate([photo[one] for one in shown], axis=1)
        return made.picture(products.INGESTED, pixels, "two", lossy=True, n=len(shown))

    close = np.concatenate([photo[p, 3][:, 26:112] for p in (1, 3, 5)], axis=1)
    between = made.picture(products.INGESTED, close, "one", lossy=False, n=3, cut=26)[1]

    def pool(p: int, *ks: int) -> list[str]:
        return [face[p, k] for k in ks]

    made.add_set("train", scene((1, 1), (2, 1)), [pool(1, 2, 3), pool(2, 2, 3, 4)], pool(1, 1) + pool(2, 1))
    made.add_set("train", scene((2, 2), (1, 2)), [pool(2, 1), pool(1, 1)], pool(2, 2) + pool(1, 2))
    made.add_set("train", group((1, 3), (2, 3)), [pool(1, 1, 2, 4), pool(2, 1)], [])
    three = [pool(1, 1), pool(2, 1), [*pool(3, 1, 2), between]]
    made.add_set("train", scene((1, 4), (2, 4), (3, 4)), three, pool(3, 4) + pool(1, 4))
    made.add_set("train", group((2, 4)), [pool(2, 1, 3)], [])
    made.add_set("test", scene((4, 1), (5, 1)), [[drawn], pool(5, 2, 3)], pool(4, 1) + pool(2, 1))
    made.add_set("test", group((5, 4)), [pool(5, 1)], [])
    made.add_set("test", scene((4, 2), (5, 2)), [pool(4, 3), pool(5, 3)], [], keep=False, reason="too few people")
    return made


def write_captions(sets: Sequence[Mapping]) -> None:
    """A caption a kept set below the current folder, other than its prompt."""
    captions = [
        {"set_id": row["set_id"], "prompt": f"In a park. {row['prompt']}", "captioner": "a model"}
        for row in sets
        if row["keep"]
    ]
    (products.CAPTIONED / "0000").mkdir(parents=True, exist_ok=True)
    records.write(products.CAPTIONED / "0000" / products.CAPTIONS_TABLE, captions, records.CAPTIONS)
