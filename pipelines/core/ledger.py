"""datasets/splits.csv: which split each face was drawn into. In git, appended to, never rewritten (but by forget)."""

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import polars as pl

from pipelines.core.shards import digest
from umo.errors import BadInput
from umo.files import replacing

LEDGER = Path("datasets/splits.csv")
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
COLUMNS = ("face_id", "image_id", "person_id", "split")
_SCHEMA = dict.fromkeys(COLUMNS, pl.String)


class Ledger:
    """The rows of the ledger in the order they were written, a face once."""

    def __init__(self, rows: pl.DataFrame | Sequence[tuple[str, str, str, str]] = ()) -> None:
        frame = rows if isinstance(rows, pl.DataFrame) else pl.DataFrame(rows, schema=_SCHEMA, orient="row")
        self._rows = frame.unique("face_id", keep="first", maintain_order=True)

    @classmethod
    def read(cls, path: Path = LEDGER) -> "Ledger":
        """The ledger of a file, empty where there is none; raises BadInput where a row does not fit."""
        if not path.exists():
            return cls()
        header = ",".join(COLUMNS)
        with path.open() as file:
            if file.readline().rstrip("\n") != header:
                raise BadInput(f"{path}: first line must be {header}; restore it from git")
        try:
            rows = pl.read_csv(path, schema=_SCHEMA)
        except pl.exceptions.PolarsError as error:
            raise BadInput(f"{path}: not rows of {header}; restore it from git") from error
        fits = pl.all_horizontal(pl.all().is_not_null()) & pl.col("split").is_in(SPLITS)
        for number in rows.select((~fits.fill_null(False)).arg_true()).to_series().head(1):
            raise BadInput(f"{path}:{number + 2}: not a row of {header}; restore it from git")
        return cls(rows)

    def rows(self) -> pl.DataFrame:
        """All rows, oldest first."""
        return self._rows

    def digest(self) -> str:
        """sha256 of what `write` writes."""
        return hashlib.sha256(self._rows.write_csv().encode()).hexdigest()

    def splits_of(self, face_ids: pl.Series) -> np.ndarray:
        """(n,) numbers of the splits that faces were drawn into, in SPLITS; -1 where it is not known."""
        known = face_ids.to_frame("face_id").join(self._rows, on="face_id", how="left", maintain_order="left")
        return numbers(known["split"])

    def names(self, face_ids: pl.Series, cluster: np.ndarray) -> list[str]:
        """The ids of the people that clusters 0, 1, ... (n,) are, each once.

        A cluster is the person that most of its faces have in the ledger; where two would be the same one, that with
        the more of them, the other its next. A person who is new is named after the first face.
        """
        frame = pl.DataFrame({"face_id": face_ids, "cluster": cluster})
        known = frame.join(self._rows, on="face_id").group_by("cluster", "person_id").len()
        known = known.sort("len", "person_id", "cluster", descending=[True, False, False])
        found: dict[int, str] = {}
        taken: set[str] = set()
        for number, person_id, _ in known.iter_rows():
            if number not in found and person_id not in taken:
                found[number] = person_id
                taken.add(person_id)
        for number, first in frame.group_by("cluster").agg(pl.col("face_id").min()).sort("cluster").iter_rows():
            if number not in found:
                parts: tuple[str, ...] = (first,)
                while (name := f"p{digest(*parts)[:12]}") in taken:
                    parts += ("again",)
                found[number] = name
                taken.add(name)
        return [found[number] for number in range(len(found))]

    def draw(
        self, people: pl.DataFrame, faces: pl.DataFrame, fractions: Mapping[str, float], seed: int
    ) -> pl.DataFrame:
        """A split a person: person_id, split.

        A component with a known face stays where most of its known faces are; the others, in an order drawn by the
        seed, go where most people are still wanting.

        Args:
            people: person_id, component.
            faces: face_id, person_id.
            fractions: wanted part of the people, by split.
        """
        known = (
            faces.join(self._rows.select("face_id", "split"), on="face_id")
            .join(people, on="person_id")
            .group_by("component", "split")
            .len()
            .with_columns(rank=pl.col("split").map_batches(lambda split: pl.Series(numbers(split)), pl.Int64))
            .sort("component", "len", "rank", descending=[False, True, False])
            .unique("component", keep="first")
        )
        split = dict(known.select("component", "split").iter_rows())
        sizes = dict(people.group_by("component").len().iter_rows())
        counts: Counter[str] = Counter()
        for component, name in split.items():
            counts[name] += sizes[component]
        for component in sorted(sizes.keys() - split.keys(), key=lambda name: digest(seed, name)):
            wanting = {key: fractions[key] * people.height - counts[key] for key in SPLITS}
            split[component] = max(SPLITS, key=lambda key: wanting[key])
            counts[split[component]] += sizes[component]
        drawn = pl.DataFrame(list(split.items()), schema={"component": pl.String, "split": pl.String}, orient="row")
        return people.join(drawn, on="component", maintain_order="left").select("person_id", "split")

    def extend(self, faces: pl.DataFrame) -> None:
        """Add faces that are not in it yet; columns face_id, image_id, person_id, split."""
        new = faces.select(COLUMNS).sort("face_id").join(self._rows, on="face_id", how="anti", maintain_order="left")
        self._rows = pl.concat([self._rows, new.unique("face_id", keep="first", maintain_order=True)])

    def drop(self, image_ids: Collection[str], person_id: str | None) -> int:
        """Take out the faces of some pictures and of a person who is to be forgotten; returns how many there were.

        The one exception to "only appended to". What git's history holds of them are hashes of files.
        """
        before = len(self._rows)
        theirs = pl.col("image_id").is_in(list(image_ids)) | pl.col("person_id").eq_missing(person_id)
        self._rows = self._rows.filter(~theirs)
        return before - len(self._rows)

    def write(self, path: Path = LEDGER) -> None:
        """Replace the file whole."""
        with replacing(path) as temporary:
            self._rows.write_csv(temporary)


def numbers(splits: pl.Series) -> np.ndarray:
    """(n,) numbers in SPLITS of splits by name; -1 for null."""
    return splits.replace_strict(SPLITS, range(len(SPLITS)), default=-1, return_dtype=pl.Int64).to_numpy()
