"""Reference sets as they are exported: their columns, and who may be in them."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from umo.errors import BadInput
from umo.rows import Rows

if TYPE_CHECKING:
    from umo.training.samples import Sample

Row = dict[str, Any]
SPLITS = ("train", "validation", "test")
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
