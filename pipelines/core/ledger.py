"""datasets/splits.csv: which split each face was drawn into. Appended to, never rewritten (but by forget).

A row is a person's faces that were new in one run: person_id, split, and the ids of the faces with spaces between, the
first face of a picture without its "-0". That is 19 bytes a face at ten faces a row, 10 once git has packed them; it is
still read and searched as text, and a run's diff is its new rows.
"""

import shutil
from collections import Counter
from collections.abc import Collection, Mapping
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
COLUMNS = ("person_id", "split", "faces")
OLD_COLUMNS = ("face_id", "image_id", "person_id", "split")  # a row a face
RESTORE = "restore it from git, or from DVC if that keeps it"
_SPLIT = pl.Enum(SPLITS)
_SCHEMA = pl.Schema({"person_id": pl.String(), "split": _SPLIT, "face": pl.String()})
_FIRST = "-0"


class Ledger:
    """Faces in the order they were written, each once, with their people and splits."""

    def __init__(self, rows: pl.DataFrame | None = None) -> None:
        """
        Args:
            rows: face_id, person_id, split.
        """
        self._rows = pl.DataFrame(schema=_SCHEMA)  # face: its id as the file has it
        self._file: Path | None = None  # that has the first of the rows already
        self._in_file = 0  # how many
        if rows is not None:
            self.extend(rows)

    @classmethod
    def read(cls, path: Path = LEDGER) -> "Ledger":
        """The ledger of a file, empty where there is none; raises BadInput where a row does not fit."""
        ledger = cls()
        if not path.exists():
            _refuse_missing(path)
            return ledger
        columns, rows = _read(path)
        by_face = columns == OLD_COLUMNS
        faces = _short("face_id").alias("face") if by_face else pl.col("faces").str.split(" ").alias("face")
        rows = rows.select("person_id", pl.col("split").cast(_SPLIT), faces)
        found = rows if by_face else rows.explode("face")
        # By hash, for that is several times as fast; two faces of one hash only cost the time that it spares.
        twice = found["face"].hash().n_unique() < len(found)
        ledger._rows = found.unique("face", keep="first", maintain_order=True) if twice else found
        if not (by_face or twice):
            ledger._file, ledger._in_file = path, len(found)
        return ledger

    def rows(self, people: Collection[str] | None = None) -> pl.DataFrame:
        """face_id, person_id, split of all faces or of some people's, oldest first."""
        rows = self._rows if people is None else self._rows.filter(pl.col("person_id").is_in(list(people)))
        first = ~pl.col("face").str.contains("-", literal=True)
        face_id = pl.when(first).then(pl.col("face") + _FIRST).otherwise("face")
        return rows.select(face_id.alias("face_id"), "person_id", "split")

    def find(self, face_ids: pl.Series) -> pl.DataFrame:
        """(n,) person_id and split of each face, null where it is not known."""
        faces = pl.DataFrame({"face_id": face_ids}).select(face=_short("face_id"))
        return faces.join(self._rows, on="face", how="left", maintain_order="left").select("person_id", "split")

    def names(self, face_ids: pl.Series, cluster: np.ndarray) -> pl.Series:
        """The ids of the people that clusters 0, 1, ... (n,) are, each once.

        A cluster is the person that most of its faces have in the ledger; where two would be the same one, that with
        the more of them, the other its next. A person who is new is named after the first face.
        """
        frame = pl.DataFrame({"face_id": face_ids, "cluster": cluster})
        known = frame.select("cluster", face=_short("face_id")).join(self._rows, on="face")
        known = known.group_by("cluster", "person_id").len()
        known = known.sort("len", "person_id", "cluster", descending=[True, False, False])
        found = [known.clear()]
        while len(known):
            best = known.filter(pl.col("cluster").is_first_distinct() & pl.col("person_id").is_first_distinct())
            found.append(best)
            known = known.join(best, on="cluster", how="anti", maintain_order="left")
            known = known.join(best, on="person_id", how="anti", maintain_order="left")
        old = pl.concat(found).select("cluster", "person_id")
        new = frame.join(old, on="cluster", how="anti").group_by("cluster").agg(pl.col("face_id").min()).sort("cluster")
        taken, fresh = set(old["person_id"]), []
        for first in new["face_id"]:
            again: tuple[str, ...] = ()
            while (name := named_after(first, *again)) in taken:
                again += ("again",)
            taken.add(name)
            fresh.append(name)
        named = new.select("cluster", person_id=pl.Series(fresh, dtype=pl.String))
        return pl.concat([old, named]).sort("cluster")["person_id"]

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
            faces.select("person_id", face=_short("face_id"))
            .join(self._rows.select("face", "split"), on="face")
            .join(people, on="person_id")
            .group_by("component", "split")
            .len()
            .sort("component", "len", "split", descending=[False, True, False])
            .unique("component", keep="first", maintain_order=True)
        )
        sizes = people.group_by("component").agg(people=pl.len())
        counts: Counter[str] = Counter()
        for name, count in sizes.join(known, on="component").group_by("split").agg(pl.sum("people")).iter_rows():
            counts[name] = count
        new = dict(sizes.join(known, on="component", how="anti").iter_rows())
        split = {}
        for component in sorted(new, key=lambda name: digest(seed, name)):
            wanting = {key: fractions[key] * people.height - counts[key] for key in SPLITS}
            split[component] = max(SPLITS, key=lambda key: wanting[key])
            counts[split[component]] += new[component]
        old = known.select("component", "split")
        drawn = pl.concat([old, pl.DataFrame([list(split), list(split.values())], old.schema)])
        return people.join(drawn, on="component", maintain_order="left").select("person_id", "split")

    def extend(self, faces: pl.DataFrame) -> None:
        """Add faces that are not in it yet, by person; columns face_id, person_id, split."""
        new = faces.select("person_id", pl.col("split").cast(_SPLIT), face=_short("face_id")).sort("person_id", "face")
        new = new.unique("face", keep="first", maintain_order=True)
        # The other way round, an index of all that is known would be built for a few new faces.
        known = self._rows.join(new, on="face", how="semi")
        self._rows = pl.concat([self._rows, new.join(known, on="face", how="anti", maintain_order="left")])

    def drop(self, image_ids: Collection[str], person_id: str | None) -> int:
        """Take out the faces of some pictures and of a person who is to be forgotten; returns how many there were.

        The one exception to "only appended to". What git's history holds of them are hashes of files.
        """
        before = len(self._rows)
        picture = pl.col("face").str.split("-").list.first()
        theirs = picture.is_in([image_id[:16] for image_id in image_ids]) | pl.col("person_id").eq_missing(person_id)
        self._rows = self._rows.filter(~theirs)
        if gone := before - len(self._rows):
            self._file, self._in_file = None, 0
        return gone

    def write(self, path: Path = LEDGER) -> None:
        """Add to the file what is new; where something was taken out, or the file is of the old form, replace it."""
        there = self._in_file if self._file == path else 0
        if there and there == len(self._rows):
            return
        with replacing(path) as temporary:
            if there:
                shutil.copyfile(path, temporary)
            else:
                temporary.write_text(",".join(COLUMNS) + "\n")
            with temporary.open("ab") as file:
                _by_person(self._rows[there:]).write_csv(file, include_header=False)
        self._file, self._in_file = path, len(self._rows)


def named_after(face_id: str, *again: str) -> str:
    """The id of a person who is in no ledger, by the least of their face_ids."""
    return f"p{digest(face_id, *again)[:12]}"


def numbers(splits: pl.Series) -> np.ndarray:
    """(n,) numbers in SPLITS of splits by name; -1 for null."""
    return splits.cast(_SPLIT).to_physical().cast(pl.Int64).fill_null(-1).to_numpy()


def _short(column: str) -> pl.Expr:
    return pl.col(column).str.strip_suffix(_FIRST)


def _by_person(rows: pl.DataFrame) -> pl.DataFrame:
    """COLUMNS of faces, a row a person and split."""
    return rows.group_by("person_id", "split", maintain_order=True).agg(faces=pl.col("face").str.join(" "))


def _read(path: Path) -> tuple[tuple[str, ...], pl.DataFrame]:
    """The columns of a file's form, and its rows; raises BadInput."""
    header = ",".join(COLUMNS)
    with path.open("rb") as file:
        first = file.readline().decode(errors="replace").rstrip("\r\n")
        file.seek(-1 if first else 0, 2)
        whole = file.read() == b"\n"
    columns = next((form for form in (COLUMNS, OLD_COLUMNS) if first == ",".join(form)), None)
    if columns is None:
        raise BadInput(f"{path}: first line must be {header}; {RESTORE}")
    if not whole:
        raise BadInput(f"{path}: its last line is cut short; {RESTORE}")
    try:
        rows = pl.read_csv(path, schema=dict.fromkeys(columns, pl.String))
    except pl.exceptions.PolarsError as error:
        raise BadInput(f"{path}: not rows of {','.join(columns)}; {RESTORE}") from error
    fits = pl.all_horizontal(pl.all().is_not_null()) & pl.col("split").is_in(SPLITS)
    if columns == COLUMNS:
        fits &= ~pl.col("faces").str.contains(r"^ | $|  ")
    for number in rows.select((~fits.fill_null(False)).arg_true()).to_series().head(1):
        raise BadInput(f"{path}:{number + 2}: not a row of {','.join(columns)}; {RESTORE}")
    return columns, rows


def _refuse_missing(path: Path) -> None:
    """A ledger that DVC keeps and nobody pulled would be drawn anew, and people of the test split trained on."""
    ignored = path.with_name(".gitignore")
    if ignored.exists() and f"/{path.name}" in ignored.read_text().splitlines():
        raise BadInput(f"{path}: missing, and DVC keeps it: dvc pull {path}, or everybody's split would be drawn anew")
