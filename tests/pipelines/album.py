"""A small album of real photographs as the stages up to `identify` leave it: four people, four photographs each."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml

from pipelines.core import products, store
from pipelines.core.shards import ROOT
from umo import faces, records
from umo.images import encode_png

N_PEOPLE, N_PHOTOS = 4, 4


def write_album(folder: Path, orl: Callable[[int, int], np.ndarray], **changes: dict) -> None:
    """Fill a folder with datasets/ingested, measured/ingested, people and a params.yaml.

    Args:
        changes: of params.yaml, section by section.
    """
    from pipelines.smoke import merged

    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["bases"]["tiny-uno"]["folder"] = str(ROOT / "models/tiny-uno")
    (folder / "params.yaml").write_text(yaml.safe_dump(merged(params, changes), sort_keys=False))
    (folder / "datasets").mkdir()
    (folder / "datasets/sources.yaml").write_text((ROOT / "datasets/sources.yaml").read_text())
    model = faces.load("opencv_zoo")
    images, encoded, measured, owned, people = [], {}, [], [], []
    for person in range(N_PEOPLE):
        vectors = []
        for k in range(N_PHOTOS):
            picture = orl(person + 21, k + 1)
            data = encode_png(picture)
            image_id = f"{person}{k}{hashlib.sha256(data).hexdigest()[2:]}"
            encoded[f"{image_id}.png"] = data
            images.append(_image(image_id, picture, f"anna{person}/{k}.png"))
            (face,) = model.detect([picture])[0]
            (vector,) = model.embed([picture], [[face]])
            vectors.append(vector)
            measured.append(_face(image_id, face, vector))
            owner = {"person_id": f"p{person}", "cosine": 1.0, "keep": True, "reason": None}
            owned.append({"face_id": measured[-1]["face_id"], "image_id": image_id, **owner})
        centre = np.mean(vectors, axis=0)
        people.append(_person(f"p{person}", centre / np.linalg.norm(centre)))
    for product in (products.INGESTED / "0000", products.MEASURED_PHOTOS / "0000", products.PEOPLE):
        (folder / product).mkdir(parents=True)
    store.write(folder / products.INGESTED / "0000", images, encoded)
    schema = records.measured_faces(model.dimension)
    records.write(folder / products.MEASURED_PHOTOS / "0000" / products.FACES_TABLE, measured, schema)
    records.write(folder / products.PEOPLE / products.PEOPLE_TABLE, people, records.PEOPLE)
    records.write(folder / products.PEOPLE / products.PEOPLE_FACES_TABLE, owned, records.PEOPLE_FACES)


def _image(image_id: str, picture: np.ndarray, path: str) -> dict:
    row = dict.fromkeys(records.IMAGES.names) | {"image_id": image_id, "key": f"{image_id}.png", "path": path}
    size = {"height": picture.shape[0], "width": picture.shape[1]}
    terms = {"source": "orl", "licence": "CC0", "consent": "given", "status": "ok"}
    return row | size | terms | {"shard": "0000", "group": path.split("/")[0], "label": path.split("/")[0]}


def _face(image_id: str, face: faces.Face, vector: np.ndarray) -> dict:
    return {
        "face_id": f"{image_id[:16]}-0",
        "image_id": image_id,
        "box": face.box,
        "landmarks": face.landmarks.ravel(),
        "score": face.score,
        "side_px": face.side,
        "pose": [0.0, 0.0, 0.0],
        "sharpness": 0.1,
        "embedding": vector.astype(np.float16),
        "embedder": "opencv_zoo",
    }


def _person(person_id: str, centre: np.ndarray) -> dict:
    row = dict.fromkeys(records.PEOPLE.names) | {"person_id": person_id, "n": N_PHOTOS, "centre": centre, "spread": 0.9}
    return row | {"alike": False, "component": person_id, "split": "train", "keep": True}
