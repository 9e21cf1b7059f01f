"""Parquet that `datasets` opens: the canonical form, which the rest of the graph reads too."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

_TEXT, _TEXTS = pa.string(), pa.list_(pa.string())
_NUMBERS = pa.list_(pa.float32())
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_IMAGES = pa.list_(_IMAGE)
# Small row groups: a reader that streams holds a few pictures, not a file of them; and so does the writer.
ROW_GROUP = 50

COLUMNS: dict[str, pa.DataType] = {
    "set_id": _TEXT,
    "n": pa.int32(),
    "prompt": _TEXT,
    "background": _TEXT,
    "target": _IMAGE,
    "references": _IMAGES,  # one a person
    "pool": pa.list_(_IMAGES),  # further photographs of each person
    "person_ids": _TEXTS,
    "target_boxes": pa.list_(_NUMBERS),
    "target_landmarks": pa.list_(_NUMBERS),
    "reference_landmarks": pa.list_(_NUMBERS),  # in the reference's pixels
    "pool_landmarks": pa.list_(pa.list_(_NUMBERS)),
    "reference_cosine": _NUMBERS,
    "cross_cosine": pa.float32(),
    "reference_recall": _TEXTS,  # group: from the target's own album or video; corpus: from another one
    "pool_recall": pa.list_(_TEXTS),
    "split": _TEXT,
    "source": _TEXT,
    "sources": _TEXTS,  # of the target, of the photographs that it was made from, and of the references
    "licence": _TEXT,  # of all of them
    "consent": _TEXT,  # the weakest
}


def schema() -> pa.Schema:
    """The columns, with the metadata from which `datasets` knows which of them are pictures."""
    features = {name: _feature(kind) for name, kind in COLUMNS.items()}
    return pa.schema(COLUMNS, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def _feature(kind: pa.DataType) -> dict:
    """A column as `datasets` describes it; written here, for importing `datasets` takes longer than a small export."""
    if kind == _IMAGE:
        return {"_type": "Image"}
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    return {"dtype": {"float": "float32"}.get(str(kind), str(kind)), "_type": "Value"}


@contextmanager
def writing(folder: Path, name: str) -> Iterator[Callable[[Sequence[dict]], None]]:
    """A part of a split as FOLDER/NAME.parquet; what is yielded writes sets as a row group."""
    with pq.ParquetWriter(folder / f"{name}.parquet", schema(), compression="zstd") as file:
        yield lambda sets: file.write_table(pa.Table.from_pylist(list(sets), schema=file.schema))
