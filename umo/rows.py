"""Rows of tables that are larger than memory, each read when it is asked for."""

import itertools
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, overload

import pyarrow as pa
import pyarrow.parquet as pq

from umo.errors import BadInput

T = TypeVar("T")
AT_ONCE = 8  # rows that are held, beside the page of their file; a writer makes it no longer than a row group
PAGE_BYTES = 1 << 20


class Source(Protocol):
    """A table, or a part of one."""

    @property
    def schema(self) -> pa.Schema: ...

    @property
    def groups(self) -> Sequence[int]:
        """How many rows each part has that can be read by itself."""

    def batches(self, group: int, columns: list[str]) -> Iterator[pa.RecordBatch | pa.Table]:
        """The rows of a part, `AT_ONCE` at most each."""

    def table(self, columns: list[str]) -> pa.Table:
        """Some columns of all rows."""


class ParquetSource:
    """A Parquet file, read page by page; raises BadInput where it is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open() as file:
            self.schema = file.schema_arrow
            self.groups = [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)]

    def batches(self, group: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        with self._open() as file:
            yield from file.iter_batches(AT_ONCE, row_groups=[group], columns=columns)

    def table(self, columns: list[str]) -> pa.Table:
        with self._open() as file:
            return file.read(columns)

    @contextmanager
    def _open(self) -> Iterator[pq.ParquetFile]:
        try:
            with pq.ParquetFile(self.path, buffer_size=PAGE_BYTES, pre_buffer=False) as file:
                yield file
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise BadInput(f"{self.path}: not a whole Parquet file ({reason}); copy or export it again") from error


class Rows(Sequence[T], Generic[T]):
    """The rows of some tables, one after the other.

    Reading on is quick; going back begins the part that the row is in anew.
    """

    def __init__(self, sources: Sequence[Source], columns: Sequence[str], make: Callable[[dict[str, Any]], T]) -> None:
        """
        Args:
            make: what a row is given out as; may raise, where the row is unfit.
        """
        self.sources, self.columns, self.make = sources, list(columns), make
        self._parts = [(source, group) for source in sources for group in range(len(source.groups))]
        self._ends = list(itertools.accumulate(count for source in sources for count in source.groups))
        self._part, self._first, self._held = -1, 0, pa.table({})  # the rows that are held, and the first one's number
        self._next: Iterator[pa.RecordBatch | pa.Table] = iter(())

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        number = range(len(self))[index]  # counts a negative one from the end, or raises IndexError
        part = bisect_right(self._ends, number)
        if part != self._part or number < self._first:
            source, group = self._parts[part]
            self._part, self._first = part, self._ends[part] - source.groups[group]
            self._next, self._held = source.batches(group, self.columns), pa.table({})
        while number >= self._first + self._held.num_rows:
            self._first += self._held.num_rows
            self._held = next(self._next)
        return self.make(self._held.slice(number - self._first, 1).to_pylist()[0])

    def table(self, *columns: str) -> pa.Table:
        """Some columns of all rows: those that hold no pictures."""
        return pa.concat_tables([source.table(list(columns)) for source in self.sources], promote_options="permissive")
