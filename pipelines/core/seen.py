"""Whom the models here were trained on, by the lists that they carry."""

import json
from collections.abc import Iterable
from pathlib import Path

from pipelines.core import products

PEOPLE = "people.json"  # in a base's folder: its people, each with photographs named after faces


def models_that_saw(people: Iterable[str], faces: Iterable[str]) -> list[Path]:
    """Folders of the models in whose training one of the people, or a picture of one of the face_ids, was seen."""
    named, pictures = set(people), {face_id.split("-")[0] for face_id in faces}
    found = []
    for path in sorted([*products.TRAINED.glob(f"*/{products.TRAINING}"), *Path("models").glob(f"*/{PEOPLE}")]):
        listed = json.loads(path.read_text())
        seen = listed if path.name == PEOPLE else listed["people"]
        photos = (photo for own in seen.values() for photo in own) if isinstance(seen, dict) else ()
        if named & set(seen) or any(photo.split("-")[0] in pictures for photo in photos):
            found.append(path.parent)
    return found
