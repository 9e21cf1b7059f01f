"""Rows that are read when they are asked for: the same as those of the whole table, without holding it."""

import random
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from umo.errors import BadInput
from umo.rows import AT_ONCE, ParquetSource, Rows

PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
POOLS: list[pa.MemoryPool] = []  # what was allocated from one is given back to it, however late
SCHEMA = pa.schema([("name", pa.string()), ("target", PICTURE), ("references", pa.list_(PICTURE))])


@contextmanager
def memory() -> Iterator[Callable[[], int]]:
    """Gives the most bytes that Python's objects and Arrow's buffers took together since its beginning."""
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    POOLS.append(pool)
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[1] + pool.max_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)


def write(folder: Path, counts: list[int], group: int, size: int) -> tuple[list[Path], pa.Table]:
    """Files of so many rows, and all of them together; `size`: bytes of a picture."""
    draw, paths, tables, number = np.random.default_rng(0), [], [], 0
    for k, count in enumerate(counts):
        rows = []
        for _ in range(count):
            pictures = [{"bytes": draw.bytes(size), "path": None} for _ in range(1 + number % 3)]
            rows.append({"name": f"s{number}", "target": pictures[0], "references": pictures[1:]})
            number += 1
        tables.append(pa.Table.from_pylist(rows, SCHEMA))
        paths.append(folder / f"{k}.parquet")
        pq.write_table(tables[-1], paths[-1], row_group_size=group)
    return paths, pa.concat_tables(tables)


def open_rows(paths: list[Path], columns: tuple[str, ...] = tuple(SCHEMA.names)) -> Rows[dict]:
    return Rows([ParquetSource(path) for path in paths], columns, dict)


def test_in_any_order_they_are_those_of_the_whole_table(tmp_path: Path) -> None:
    paths, whole = write(tmp_path, [30, 0, 1, 2 * AT_ONCE + 1], group=20, size=10)
    rows, expected = open_rows(paths), whole.to_pylist()
    assert list(rows) == expected and len(rows) == len(expected)
    order = random.Random(0).choices(range(-len(expected), len(expected)), k=40)
    assert [rows[k] for k in order] == [expected[k] for k in order]
    assert rows[40:2:-7] == expected[40:2:-7]
    for outside in (len(expected), -len(expected) - 1):
        with pytest.raises(IndexError):
            rows[outside]
    assert rows.table("name").to_pylist() == whole.select(["name"]).to_pylist()
    assert open_rows(paths, ("name",))[7] == {"name": "s7"}


def test_of_pictures_a_few_are_held(tmp_path: Path) -> None:
    """Two row groups of twenty at most."""
    paths, whole = write(tmp_path, [100, 100], group=10, size=20_000)
    with memory() as peak:
        assert sum(len(row["target"]["bytes"]) for row in open_rows(paths)) == 200 * 20_000
        assert peak() < whole.nbytes / 5


@pytest.mark.parametrize("cut", [slice(-100), slice(60), slice(0)])
def test_a_damaged_file_is_named(tmp_path: Path, cut: slice) -> None:
    (path,), _ = write(tmp_path, [5], 5, 10)
    path.write_bytes(path.read_bytes()[cut])
    with pytest.raises(BadInput, match=rf"{path}: not a whole Parquet file"):
        open_rows([path])


def test_damage_inside_is_named_when_it_is_met(tmp_path: Path) -> None:
    (path,), _ = write(tmp_path, [50], 10, 1000)
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2 : len(whole) // 2 + 3000] = bytes(3000)
    path.write_bytes(whole)
    rows = open_rows([path])
    assert rows[0]["name"] == "s0"
    with pytest.raises(BadInput, match=rf"{path}: not a whole Parquet file"):
        list(rows)
