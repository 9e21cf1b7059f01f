"""Parquet and Arrow files (streams, files, Feather 2; also a Hugging Face data set on disk), with encoded pictures.

Which of them a file is, is read from its bytes.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.core.sources import SOURCES, Source
from pipelines.ingest.readers import forms
from pipelines.ingest.readers.base import Container, Limits, Member, over_limit, reason, shut
from umo.errors import BadInput

ARROW_MAGIC = b"ARROW1\0\0"
ROWS = 16  # at a time: as many encoded pictures are in memory
PAGE_BYTES = 1 << 20


class _Streams:
    """The batches of Arrow streams that lie one behind the other, as cat leaves them."""

    def __init__(self, file: pa.MemoryMappedFile) -> None:
        self._file = file
        self._first = pa.ipc.open_stream(file)
        self.schema = self._first.schema

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        yield from self._first
        while self._file.tell() < self._file.size():
            following = pa.ipc.open_stream(self._file)
            if not following.schema.equals(self.schema):
                raise pa.ArrowInvalid("a stream of other columns follows")
            yield from following


Table: TypeAlias = pq.ParquetFile | _Streams | pa.RecordBatchFileReader


class _FormError(pa.ArrowException):
    """It may be whole, and is no table that we read."""


def check(container: Container, source: Source) -> None:
    """BadInput where a column that the source names is missing, or the picture's is of another type.

    A file that cannot be read gets a row later.
    """
    try:
        with _open(container) as table:
            schema = table.schema_arrow if isinstance(table, pq.ParquetFile) else table.schema
    except (pa.ArrowException, OSError):
        return
    where = f"{SOURCES}: source '{container.source}': {container.path}"
    present = ", ".join(schema.names)
    for key, column in {"image_column": source.image_column, **source.columns}.items():
        if column not in schema.names:
            raise BadInput(f"{where} has no column '{column}' (it has: {present}); name the right one as {key}")
        if schema.names.count(column) > 1:
            raise BadInput(f"{where} has several columns '{column}' (it has: {present}); give each its own name")
        if key != "image_column" and not _is_plain(kind := schema.field(column).type):
            raise BadInput(f"{where}: column '{column}' is {kind}, neither text nor numbers; write it as text")
    kind = schema.field(source.image_column).type
    if not _is_picture(kind):
        fault = f"column '{source.image_column}' is {kind}, not encoded pictures (binary, or a struct with bytes)"
        if pa.types.is_struct(kind) and kind.get_field_index("path") >= 0:
            fault = f"column '{source.image_column}' has paths and no bytes: embed the pictures"
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


def _groups(table: Table, names: list[str]) -> Iterator[tuple[int, Iterable[pa.RecordBatch]]]:
    """Rank of the first row, and the rows, of each part that can be read by itself."""
    if isinstance(table, pa.RecordBatchFileReader):
        yield 0, (_sound(table.get_batch(k).select(names)) for k in range(table.num_record_batches))
        return
    if isinstance(table, _Streams):
        yield 0, (_sound(batch.select(names)) for batch in table)
        return
    first = 0
    for group in range(table.num_row_groups):
        yield first, table.iter_batches(ROWS, row_groups=[group], columns=names)
        first += table.metadata.row_group(group).num_rows


def _sound(batch: pa.RecordBatch) -> pa.RecordBatch:
    """An Arrow file is taken as it lies, and offsets that lead out of it would be followed; Parquet is decoded."""
    batch.validate()  # or it could not be taken apart
    for column in batch.columns:
        for part in _parts(column):
            part.validate(full=True)
    return batch


def _parts(column: pa.Array) -> list[pa.Array]:
    """A column's arrays, text as bytes: text that is none costs its row alone (see _member)."""
    if pa.types.is_struct(column.type):
        return [part for child in column.flatten() for part in _parts(child)]
    if pa.types.is_string(column.type):
        return [column.view(pa.binary())]
    return [column.view(pa.large_binary()) if pa.types.is_large_string(column.type) else column]


def _rows(
    container: Container, limits: Limits, rank: int, batches: Iterable[pa.RecordBatch], names: list[str]
) -> Iterator[Member]:
    """Rows of a part, from the rank on; damage ends it with an error."""
    try:
        for batch in batches:
            for k in range(batch.num_rows):
                yield _member(f"{container.path}#{rank}", limits, batch.slice(k, 1), names[0])
                rank += 1
    except (pa.ArrowException, OSError) as error:
        yield _damage(container, rank, error)


def _damage(container: Container, rank: int, error: Exception) -> Member:
    said = reason(error)
    if closed := shut(error):
        fault = closed
    elif isinstance(error, _FormError):
        fault = f"{said}: write it again as Parquet"
    elif isinstance(error, pa.ArrowNotImplementedError) or "crypt" in said:
        fault = f"in a form that is not read, from row {rank} on ({said}): write it again as plain Parquet"
    else:
        fault = f"cut short or damaged from row {rank} on ({said}): copy it again from its origin"
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
def _open(container: Container) -> Iterator[Table]:
    """A row group is read page by page, and an Arrow file mapped: neither is loaded whole."""
    found = forms.form(forms.head(container.file))
    name = found.name if found else ""
    if name == "Parquet" or (not name and container.file.suffix.lower() == ".parquet"):
        with pq.ParquetFile(container.file, buffer_size=PAGE_BYTES, pre_buffer=False) as table:
            yield table
    elif name in ("an Arrow file", "an Arrow stream", ""):
        with pa.memory_map(str(container.file)) as file:
            yield _arrow(file, is_file=name == "an Arrow file")
    else:
        raise _FormError(f"this is {name}, which is not read as a table")


def _arrow(file: pa.MemoryMappedFile, is_file: bool) -> "_Streams | pa.RecordBatchFileReader":
    """A file is a stream with an index behind it; of one cut short the stream is left."""
    if is_file:
        try:
            return pa.ipc.open_file(file)
        except pa.ArrowInvalid:
            file.seek(len(ARROW_MAGIC))
    return _Streams(file)


def _is_plain(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_plain(kind.value_type)
    tests = ("string", "large_string", "string_view", "integer", "floating", "boolean", "null")
    return any(getattr(pa.types, f"is_{name}")(kind) for name in tests)


def _is_picture(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return _is_picture(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return _is_picture(kind.value_type)
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_picture(kind.field("bytes").type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
