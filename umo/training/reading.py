"""Reference sets read from wherever they lie, and what unfit ones are refused for."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from umo.errors import BadInput
from umo.rows import AT_ONCE, ParquetSource, Rows, Source
from umo.training.sets import COLUMNS, SPLITS, Row, sample

if TYPE_CHECKING:
    import datasets
    from umo.training.samples import Sample


def open_sets(source: str) -> dict[str, "Rows[Sample]"]:
    """The splits of a data set: samples in order, each read, and checked, when it is asked for.

    It is a folder with SPLIT-*.parquet, as exported; one of `datasets`' `save_to_disk`; or whatever else its
    `load_dataset` takes, a name on the Hub included. BadInput if it cannot be opened, or a column is not as in COLUMNS;
    later, of a row with something missing.
    """
    folder = Path(source)
    files = {split: sorted(folder.glob(f"{split}-*.parquet")) for split in SPLITS}
    found: dict[str, Sequence[Source]]
    if any(files.values()):
        found = {split: [ParquetSource(path) for path in paths] for split, paths in files.items() if paths}
    else:
        found = _by_datasets(source)
    if "train" not in found:
        raise BadInput(f"{source}: no split 'train'; give a data set with one, as export makes it")
    for split, tables in found.items():
        for table in tables:
            _check(f"{source}: split '{split}'", table.schema)
    return {
        split: Rows(tables, list(COLUMNS), partial(_sample, f"{source}: split '{split}'"))
        for split, tables in found.items()
    }


def _check(where: str, schema: pa.Schema) -> None:
    kinds = {field.name: _kind(field.type) for field in schema}
    for column, kind in COLUMNS.items():
        if kinds.get(column) != kind:
            state = f"holds {kinds[column]}" if column in kinds else "is missing"
            raise BadInput(f"{where}: column '{column}' {state}; it must hold {kind}")


class _Loaded:
    """A `Source` of a split that `datasets` has opened; it maps its files into memory."""

    def __init__(self, table: "datasets.Dataset") -> None:
        self.rows = table.with_format("arrow")
        self.schema = table.features.arrow_schema
        self.groups = [min(AT_ONCE, len(table) - start) for start in range(0, len(table), AT_ONCE)]

    def batches(self, group: int, columns: list[str]) -> Iterator[pa.Table]:
        start = group * AT_ONCE
        yield self.rows[start : start + AT_ONCE].select(columns)

    def table(self, columns: list[str]) -> pa.Table:
        return self.rows.select_columns(columns)[:]


def _by_datasets(source: str) -> dict[str, Sequence[Source]]:
    import datasets

    folder = Path(source)
    if not folder.exists() and (folder.is_absolute() or source.startswith(".") or len(folder.parts) > 2):
        raise BadInput(f"{source}: no such folder; give exported sets, or what Hugging Face's datasets loads")
    saved = any((folder / name).exists() for name in ("dataset_dict.json", "state.json"))
    try:
        loaded = datasets.load_from_disk(source) if saved else datasets.load_dataset(source)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"{source}: Hugging Face's datasets cannot load it ({reason}); give exported sets") from error
    if not isinstance(loaded, dict):
        raise BadInput(f"{source}: one table without splits; give a data set with a split 'train'")
    return {split: [_Loaded(table)] for split, table in loaded.items() if split in SPLITS}


def _kind(given: pa.DataType) -> str:
    """In words."""
    if pa.types.is_list(given) or pa.types.is_large_list(given) or pa.types.is_fixed_size_list(given):
        return f"list of {_kind(given.value_type)}"
    if pa.types.is_struct(given) and {field.name for field in given} >= {"bytes", "path"}:
        return "picture"
    if pa.types.is_string(given) or pa.types.is_large_string(given):
        return "text"
    return "number" if pa.types.is_floating(given) or pa.types.is_integer(given) else str(given)


def _sample(where: str, row: Row) -> "Sample":
    """Of a row with nothing missing; BadInput names the set."""
    if empty := [column for column in COLUMNS if row[column] is None]:
        raise BadInput(f"{where}: set {row['set_id']} has no {empty[0]}; leave it out")
    if not len(row["references"]) == len(row["person_ids"]) > 0:
        have = f"{len(row['references'])} references of {len(row['person_ids'])} people"
        raise BadInput(f"{where}: set {row['set_id']} has {have}; leave it out")
    return sample(row)
