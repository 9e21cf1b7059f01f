"""The export of reference sets, against writing the same Parquet files with pyarrow alone.

pyarrow is given the finished tables in memory; it writes files that are the export's to the byte. What it need not do
and the export does: read targets and photographs, decode the photographs, cut and encode the references, gather the
rows, take checksums, and write card, contact sheets and Croissant.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import chdir, redirect_stdout
from io import StringIO
from pathlib import Path
from statistics import median

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from bench.result import Result
from bench.setup import SCRATCH, Setup
from bench.timing import Stopwatch
from pipelines.core import products
from pipelines.core.params import load
from pipelines.core.shards import MARKER, WORK, Machine, digest
from pipelines.core.sources import SOURCES
from pipelines.export import stage as export
from pipelines.export.formats import parquet
from umo import records
from umo.errors import BadInput, WorkFailed

NAME = "export"
BAR = 2
Written = dict[str, tuple[bytes, list[pa.Table]]]


def run(setup: Setup, sets: int = 2000, repeats: int = 3) -> Result:
    """Seconds of the whole export, nothing done before / seconds of writing its Parquet files.

    Args:
        sets: to export: the curated ones, over and over under other ids.
        repeats: of each, in turns after one turn that is not measured; their median counts.
    """
    params = load("export")
    assert isinstance(params, export.Params)
    params = params.model_copy(update={"formats": ("parquet", "croissant")})
    workspace(SCRATCH / NAME, sets)
    turns, steps = [], []
    with chdir(SCRATCH / NAME):
        for _ in range(1 + repeats):
            shutil.rmtree(WORK, ignore_errors=True)
            watch = Stopwatch()
            with watch("export"), redirect_stdout(StringIO()):
                export.run(params, Machine())
            steps.append(seconds_by_step())
            forget_parts()
            with watch("export, references cut before"), redirect_stdout(StringIO()):
                export.run(params, Machine())
            written = read_back()
            with watch("pyarrow"):
                write(written)
            check(written)
            turns.append(watch.seconds)
        size = sum(len(data) for data, _ in written.values())
    seconds = {name: median(turn[name] for turn in turns[1:]) for name in turns[0]}
    return Result(
        name=NAME,
        value=seconds["export"] / seconds["pyarrow"],
        unit="seconds of the export / seconds of writing its Parquet files",
        against="pyarrow, writing the same bytes from finished tables in memory",
        bar=BAR,
        lower_is_better=True,
        details={
            "sets": sets,
            "bytes": size,
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
            "ratio_with_references_cut_before": round(seconds["export, references cut before"] / seconds["pyarrow"], 3),
            "seconds_in_shards": {name: round(median(turn[name] for turn in steps[1:]), 3) for name in steps[0]},
        },
    )


def workspace(folder: Path, count: int) -> None:
    """A folder with the products of this one, and so many kept sets.

    Raises:
        BadInput: there are no curated sets.
    """
    kept = products.sets().filter("keep").sort("set_id")
    if not kept.height:
        raise BadInput(f"{products.CURATED}: no sets; run dvc repro first")
    rounds = [kept.with_columns(round=pl.lit(k)) for k in range(-(-count // kept.height))]
    ids = pl.struct("set_id", "round").map_elements(lambda row: f"s{digest(*row.values())[:16]}", pl.String)
    many = pl.concat(rounds)[:count].with_columns(set_id=ids).drop("round")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / products.CURATED).mkdir(parents=True)
    records.write(folder / products.CURATED / products.SETS_TABLE, many.to_arrow(), records.SETS)
    shutil.copy(products.CURATED / products.FUNNEL, folder / products.CURATED / products.FUNNEL)
    captions = many.select("set_id", "prompt", captioner=pl.lit("template")).to_arrow()
    (folder / products.CAPTIONED / "0000").mkdir(parents=True)
    records.write(folder / products.CAPTIONED / "0000" / products.CAPTIONS_TABLE, captions, records.CAPTIONS)
    for path in (products.INGESTED, products.SYNTHESISED, products.MEASURED, SOURCES):
        (folder / path).symlink_to(path.absolute())


def read_back() -> Written:
    """The exported Parquet files: name -> bytes, and a table a row group."""
    found = {}
    for path in sorted(products.EXPORTED.glob("*.parquet")):
        file = pq.ParquetFile(path)
        groups = [file.read_row_group(k).combine_chunks() for k in range(file.num_row_groups)]
        found[path.name] = (path.read_bytes(), groups)
    return found


def write(written: Written) -> None:
    """What any writer must do: the tables, as files of the same form."""
    for name, (_, groups) in written.items():
        with pq.ParquetWriter(name, parquet.schema(), compression="zstd") as file:
            for group in groups:
                file.write_table(group)


def check(written: Written) -> None:
    """Refuse a comparison of unequal work.

    Raises:
        WorkFailed: pyarrow wrote other bytes than the export.
    """
    for name, (data, _) in written.items():
        if Path(name).read_bytes() != data:
            raise WorkFailed(f"{name}: pyarrow wrote other bytes than the export: the comparison is void")


def seconds_by_step() -> dict[str, float]:
    """Seconds in the shards' work, by what they made; keys, checksums for resuming and links are the rest."""
    found = {"references": 0.0, "parts": 0.0, "card and checksums": 0.0}
    for marker in _markers():
        made = marker["counts"]
        step = "references" if "references" in made else "card and checksums" if "files" in made else "parts"
        found[step] += marker["seconds"]
    return found


def forget_parts() -> None:
    """What a new threshold leaves of finished work: the references that were cut."""
    for marker in _markers():
        if "references" not in marker["counts"]:
            shutil.rmtree(WORK / "export" / marker["key"])


def _markers() -> Iterator[dict]:
    for path in sorted((WORK / "export").glob(f"*/{MARKER}")):
        yield json.loads(path.read_text())
