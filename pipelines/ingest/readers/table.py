"""Parquet files, or a Hugging Face data set on disk (its Arrow files), with a column of encoded pictures."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.core.sources import SOURCES, Source
from pipelines.ingest.readers.base import Container, Limits, Member, over_limit, reason
from umo.errors import BadInput

ROWS = 16  # at a time: as many encoded pictures are in memory
PAGE_BYTES = 1 << 20


def check(container: Container, source: Source) -> None:
    """BadInput where a column that the source names is missing, or the picture's is of another type.

    A file that cannot be read gets a row later.
    """
    try:
        with _open(container) as table:
            schema = table.schema if isinstance(table, pa.RecordBatchReader) else table.schema_arrow
    except (pa.ArrowException, OSError):
        return
    where = f"{SOURCES}: source '{container.source}': {container.path}"
    present = ", ".join(schema.names)
    for key, column in {"image_column": source.image_column, **source.columns}.items():
        if column not in schema.names:
            raise BadInput(f"{where} has no column '{column}' (it has: {present}); name the right one as {key}")
    kind = schema.field(source.image_column).type
    if not _is_picture(kind):
        fault = f"column '{source.image_column}' is {kind}, not encoded pictures (binary, or a struct with bytes)"
        raise BadInput(f"{where}: {fault}; name another as image_column (it has: {present})")


def read(container: Container, limits: Limits, image_column: str, columns: tuple[str, ...]) -> Iterator[Member]:
    """The pictures in the order of the rows, each with the wanted columns of its row.

    A damaged row group costs its rows, not those of the others.
    """
    names = list(dict.fromkeys([image_column, *columns]))
    try:
        with _open(container) as table:
            for first, batches in _groups(table, names):
                yield from _rows(container, limits, first, batches, names)
    except (pa.ArrowException, OSError) as error:
        yield _damage(container, 0, error)


def _groups(
    table: pq.ParquetFile | pa.RecordBatchReader, names: list[str]
) -> Iterator[tuple[int, Iterable[pa.RecordBatch]]]:
    """Rank of the first row, and the rows, of each part that can be read by itself."""
    if isinstance(table, pa.RecordBatchReader):
        yield 0, map(_sound, table)
        return
    first = 0
    for group in range(table.num_row_groups):
        yield first, table.iter_batches(ROWS, row_groups=[group], columns=names)
        first += table.metadata.row_group(group).num_rows


def _sound(batch: pa.RecordBatch) -> pa.RecordBatch:
    """An Arrow file is taken as it lies, and offsets that lead out of it would be followed; Parquet is decoded."""
    batch.validate(full=True)
    return batch


def _rows(
    container: Container, limits: Limits, rank: int, batches: Iterable[pa.RecordBatch], names: list[str]
) -> Iterator[Member]:
    """Rows of a part, from the rank on; damage ends it with an error."""
    try:
        for batch in batches:
            for k in range(batch.num_rows):
                yield _member(f"{container.path}#{rank}", limits, batch.select(names).slice(k, 1), names[0])
                rank += 1
    except (pa.ArrowException, OSError) as error:
        yield _damage(container, rank, error)


def _damage(container: Container, rank: int, error: Exception) -> Member:
    fault = f"cut short or damaged from row {rank} on ({reason(error)}): copy it again from its origin"
    return Member(container.path, error=fault)


def _member(path: str, limits: Limits, row: pa.RecordBatch, image_column: str) -> Member:
    try:
        fields = row.to_pylist()[0]
    except UnicodeDecodeError as error:  # text that is no text costs its row alone
        return Member(path, error=f"its text is not UTF-8 ({reason(error)}): write it again")
    value = fields.pop(image_column)
    data, file = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if data is None and file:
        return Member(path, error="the row has a path and no bytes: embed the pictures", fields=fields)
    if data is None:
        return Member(path, error="no picture in the row: remove the row", fields=fields)
    fault = over_limit(len(data), limits.max_bytes)
    return Member(path, b"" if fault else data, fault, fields)


@contextmanager
def _open(container: Container) -> Iterator[pq.ParquetFile | pa.RecordBatchReader]:
    """A row group is read page by page, and an Arrow file mapped: neither is loaded whole."""
    if container.file.suffix.lower() == ".arrow":
        with pa.memory_map(str(container.file)) as file, pa.ipc.open_stream(file) as table:
            yield table
    else:
        with pq.ParquetFile(container.file, buffer_size=PAGE_BYTES, pre_buffer=False) as table:
            yield table


def _is_picture(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_picture(kind.field("bytes").type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
