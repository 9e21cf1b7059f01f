"""Where every product lies and how it is read: the one place where stages meet, so that none needs to know another."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from umo import records
from umo.errors import BadInput
from umo.rows import ParquetSource, Rows

DATASETS = Path("datasets")
INGESTED = Path("datasets/ingested")
SYNTHESISED = Path("datasets/synthesised")
MEASURED = Path("datasets/measured")
MEASURED_PHOTOS = MEASURED / "ingested"
MEASURED_SCENES = MEASURED / "synthesised"
PEOPLE = Path("datasets/people")
CURATED = Path("datasets/curated")
CAPTIONED = Path("datasets/captioned")
VALIDATED = Path("datasets/validated")
EXPORTED = Path("datasets/exported")
SOURCES_OF_SETS = (INGESTED, MEASURED_PHOTOS, PEOPLE, SYNTHESISED, MEASURED_SCENES)
CASES = Path("runs/cases")
TRAINED = Path("runs/train")
GENERATED = Path("runs/generate")
EVALUATED = Path("runs/evaluate")
COMPARISONS = EVALUATED / "compare.json"
SUMMARY = EVALUATED / "summary.json"
REPORT = Path("runs/report")

IMAGES_TABLE, PICTURES = "images.parquet", "images.tar"
MEASURED_IMAGES_TABLE, FACES_TABLE = "measured.parquet", "faces.parquet"
PEOPLE_TABLE, PEOPLE_FACES_TABLE, PEOPLE_CHECK = "people.parquet", "people_faces.parquet", "identify.json"
LAYOUT_TABLE, SCENES_TABLE = "layout.parquet", "scenes.parquet"
SETS_TABLE, FUNNEL = "sets.parquet", "funnel.json"
CAPTIONS_TABLE = "captions.parquet"
VALIDATION, DATA_DOCS = "results.json", "data_docs"
CASES_FILE = "CASES.jsonl"
LORA, TRAINING, LIVE = "pytorch_lora_weights.safetensors", "training.json", "live"
VARIETY, LOSSES_TABLE = "variety", "losses.parquet"
METRICS, SCORES_TABLE = "metrics.json", "scores.parquet"
SIDE_EFFECTS, SIDE_EFFECTS_TABLE = "side_effects.json", "side_effects.parquet"

TRAINED_METHODS = ("sft", "sir", "mimr", "ours")


def shard_folders(product: Path, table: str) -> list[Path]:
    """The folders of a product that hold `table`, in order; raises BadInput where there are none."""
    folders = sorted(path.parent for path in product.glob(f"*/{table}"))
    if not folders:
        raise BadInput(f"{product}: no {table} below it; run the stage that makes it (dvc repro)")
    return folders


def _all_shards(product: Path, table: str, schema: pa.Schema, columns: list[str] | None = None) -> pl.DataFrame:
    parts = shard_folders(product, table)
    return pl.DataFrame(pa.concat_tables(records.read(part / table, schema, columns) for part in parts))


def scan(product: Path, table: str, schema: pa.Schema) -> pl.LazyFrame:
    """A product's shards in order, read as far as a query needs them; for products larger than a stage's memory.

    Raises BadInput where a shard is missing, cut short, or of another record or version.
    """
    files = [part / table for part in shard_folders(product, table)]
    for file in files:
        records.check(file, schema)
    return pl.scan_parquet(files, glob=False)


def scan_file(path: Path, schema: pa.Schema) -> pl.LazyFrame:
    """`scan` of a product that is one file."""
    records.check(path, schema)
    return pl.scan_parquet(path, glob=False)


def images(product: Path) -> pl.DataFrame:
    """records.IMAGES of a product's shards."""
    return _all_shards(product, IMAGES_TABLE, records.IMAGES)


def measured_images(product: Path) -> pl.DataFrame:
    """records.MEASURED_IMAGES of a product's shards."""
    return _all_shards(product, MEASURED_IMAGES_TABLE, records.MEASURED_IMAGES)


def faces(product: Path, columns: list[str] | None = None) -> pl.DataFrame:
    """records.measured_faces of a product's shards, or some of its columns; the embedding's length is the file's."""
    return _all_shards(product, FACES_TABLE, records.measured_faces(1), columns)


def layout() -> pl.DataFrame:
    """records.LAYOUT of the synthesised scenes."""
    return _all_shards(SYNTHESISED, LAYOUT_TABLE, records.LAYOUT)


def scenes() -> pl.DataFrame:
    """records.SCENES of the synthesised scenes."""
    return _all_shards(SYNTHESISED, SCENES_TABLE, records.SCENES)


def people() -> pl.DataFrame:
    """records.PEOPLE."""
    return pl.DataFrame(records.read(PEOPLE / PEOPLE_TABLE, records.PEOPLE))


def people_faces() -> pl.DataFrame:
    """records.PEOPLE_FACES, by face_id."""
    return pl.DataFrame(records.read(PEOPLE / PEOPLE_FACES_TABLE, records.PEOPLE_FACES)).sort("face_id")


def faces_of(people: Collection[str]) -> pl.DataFrame:
    """records.PEOPLE_FACES of some people, by person_id and face_id: the table lies in that order, so that little more
    than their rows is read.
    """
    found = scan_file(PEOPLE / PEOPLE_FACES_TABLE, records.PEOPLE_FACES)
    return found.filter(pl.col("person_id").is_in(sorted(people))).collect()


def sets() -> pl.DataFrame:
    """records.SETS, kept or not."""
    return pl.DataFrame(records.read(CURATED / SETS_TABLE, records.SETS))


def captions() -> pl.DataFrame:
    """records.CAPTIONS of the kept sets."""
    return _all_shards(CAPTIONED, CAPTIONS_TABLE, records.CAPTIONS)


def captioned_sets() -> pl.DataFrame:
    """records.SETS that are kept, each with its caption for its prompt; raises BadInput where one has no caption."""
    found = captions().select("set_id", caption="prompt")
    kept = sets().filter("keep").join(found, on="set_id", how="left", maintain_order="left")
    if lacking := kept["caption"].null_count():
        raise BadInput(f"{CAPTIONED}: {lacking} kept sets have no caption; run dvc repro caption")
    return kept.with_columns(prompt="caption").drop("caption")


def exported_files(split: str) -> list[Path]:
    """The Parquet files of an exported split; none where it has no sets."""
    return sorted(EXPORTED.glob(f"{split}-*.parquet"))


def exported(split: str, columns: Sequence[str] = ()) -> Rows[dict[str, Any]]:
    """Rows of an exported split, in order, each read when it is asked for; pictures are {"bytes", "path"}.

    Raises BadInput where the split is not there.
    """
    if not (files := exported_files(split)):
        raise BadInput(f"{EXPORTED}: no split '{split}'; make more scenes of it (synthesise.scenes) and run dvc repro")
    return Rows([ParquetSource(file) for file in files], columns, dict)
