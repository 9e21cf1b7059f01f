"""Reference sets read from wherever they lie, and what unfit ones are refused for."""

from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pads

from umo.errors import BadInput
from umo.training.sets import COLUMNS, SPLITS, Row


def open_sets(source: str) -> dict[str, pads.Dataset]:
    """The splits of a data set, not read yet.

    It is a folder with SPLIT-*.parquet, as exported; one of `datasets`' `save_to_disk`; or whatever else its
    `load_dataset` takes, a name on the Hub included. BadInput if it cannot be opened, or a column is not as in COLUMNS.
    """
    folder = Path(source)
    files = {split: sorted(folder.glob(f"{split}-*.parquet")) for split in SPLITS}
    if any(files.values()):
        found = {split: pads.dataset(paths) for split, paths in files.items() if paths}
    else:
        found = _by_datasets(source)
    if "train" not in found:
        raise BadInput(f"{source}: no split 'train'; give a data set with one, as export makes it")
    for split, table in found.items():
        kinds = {field.name: _kind(field.type) for field in table.schema}
        for column, kind in COLUMNS.items():
            if kinds.get(column) != kind:
                state = f"holds {kinds[column]}" if column in kinds else "is missing"
                raise BadInput(f"{source}: split '{split}': column '{column}' {state}; it must hold {kind}")
    return found


def _by_datasets(source: str) -> dict[str, pads.Dataset]:
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
    return {split: pads.dataset(table.with_format("arrow")[:]) for split, table in loaded.items() if split in SPLITS}


def _kind(given: pa.DataType) -> str:
    """In words."""
    if pa.types.is_list(given) or pa.types.is_large_list(given) or pa.types.is_fixed_size_list(given):
        return f"list of {_kind(given.value_type)}"
    if pa.types.is_struct(given) and {field.name for field in given} >= {"bytes", "path"}:
        return "picture"
    if pa.types.is_string(given) or pa.types.is_large_string(given):
        return "text"
    return "number" if pa.types.is_floating(given) or pa.types.is_integer(given) else str(given)


def read(source: str, split: str, table: pads.Dataset) -> list[Row]:
    """Rows of a split, in order; pictures as {"bytes", "path"}. A row with something missing raises BadInput."""
    rows = table.to_table(columns=list(COLUMNS)).to_pylist()
    for row in rows:
        if empty := [column for column in COLUMNS if row[column] is None]:
            raise BadInput(f"{source}: split '{split}': set {row['set_id']} has no {empty[0]}; leave it out")
        if not len(row["references"]) == len(row["person_ids"]) > 0:
            have = f"{len(row['references'])} references of {len(row['person_ids'])} people"
            raise BadInput(f"{source}: split '{split}': set {row['set_id']} has {have}; leave it out")
    return rows
