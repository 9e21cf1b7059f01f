"""Reference sets as they are exported: their columns, and who may be in them."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from umo.errors import BadInput
from umo.rows import Rows
from umo.texts import read_json

if TYPE_CHECKING:
    from umo.training.samples import Sample

Row = dict[str, Any]
SPLITS = ("train", "validation", "test")
PEOPLE, TRAINING = "people.json", "training.json"  # whom a base was trained on, in its folder; whom a LoRA, beside it
COLUMNS = {
    "set_id": "text",
    "prompt": "text",
    "references": "list of picture",
    "target": "picture",
    "person_ids": "list of text",
    "target_landmarks": "list of list of number",
    "pool": "list of list of picture",
    "licence": "text",
}


def refuse_shared(source: str | Path, people: Mapping[str, Sequence[str] | set[str]], remedy: str) -> None:
    """Nobody may be in the sets of two splits: BadInput where somebody is."""
    for one, other in itertools.combinations(people, 2):
        if both := sorted(set(people[one]) & set(people[other])):
            where = f"in the {one} and in the {other} sets (first {both[0]})"
            raise BadInput(f"{source}: {len(both)} people are {where}: {remedy}")


def refuse_seen(test: Collection[str], base: Path, lora: Path | None = None) -> None:
    """Nobody of a test split may be known to the base, or the LoRA, that a training begins with.

    Raises BadInput where `people.json` in the base's folder, or `training.json` beside the LoRA, lists somebody.
    """
    paths = [base / PEOPLE]
    if lora is not None:
        paths.append((lora if lora.is_dir() else lora.parent) / TRAINING)
    for path in filter(Path.is_file, paths):
        listed = read_json(path)
        people = listed.get("people", []) if path.name == TRAINING else listed
        if both := sorted(set(people) & set(test)):
            raise BadInput(
                f"{path.parent}: {len(both)} people of the test split were trained on there (first {both[0]}, see "
                f"{path}): leave their sets out, or start from another"
            )


def people_of(rows: Rows) -> set[str]:
    """Everybody who is in some exported sets."""
    return set(pc.unique(pc.list_flatten(rows.table("person_ids")["person_ids"])).to_pylist())


def sample(row: Mapping[str, Any]) -> "Sample":
    """A row of the exported sets."""
    from umo.training.samples import Sample  # with torch: sets are checked where nothing is trained

    return Sample(
        name=row["set_id"],
        prompt=row["prompt"],
        references=tuple(_bytes(image) for image in row["references"]),
        target=_bytes(row["target"]),
        people=tuple(row["person_ids"]),
        target_landmarks=tuple(np.reshape(points, (5, 2)) for points in row["target_landmarks"]),
        pool=tuple(tuple(_bytes(image) for image in person) for person in row["pool"]),
    )


def _bytes(image: Mapping[str, Any]) -> bytes:
    """Of a picture that is in its row, or a file beside the data set."""
    return image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
