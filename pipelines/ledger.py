"""datasets/splits.csv: which split each face was drawn into. In git, appended to, never rewritten (but by forget)."""

import csv
import io
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import polars as pl

from pipelines.shards import digest
from umo.errors import BadInput

LEDGER = Path("datasets/splits.csv")
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
COLUMNS = ("face_id", "image_id", "person_id", "split")


class Ledger:
    """The rows of the ledger in the order they were written, by face."""

    def __init__(self, rows: Sequence[tuple[str, str, str, str]] = ()) -> None:
        self._rows = {row[0]: row for row in rows}

    @classmethod
    def read(cls, path: Path = LEDGER) -> "Ledger":
        """The ledger of a file; an absent file is an empty ledger.

        Raises:
            BadInput: a row does not fit.
        """
        if not path.exists():
            return cls()
        lines = list(csv.reader(io.StringIO(path.read_text())))
        if not lines or tuple(lines[0]) != COLUMNS:
            raise BadInput(f"{path}: first line must be {','.join(COLUMNS)}; restore it from git")
        for number, line in enumerate(lines[1:], 2):
            if len(line) != len(COLUMNS) or line[3] not in SPLITS:
                raise BadInput(f"{path}:{number}: not a row of {','.join(COLUMNS)}; restore it from git")
        return cls([(face, image, person, split) for face, image, person, split in lines[1:]])

    def rows(self) -> list[tuple[str, str, str, str]]:
        """All rows, oldest first."""
        return list(self._rows.values())

    def name(self, face_ids: Sequence[str], taken: Container[str]) -> str:
        """The id of the person with these faces: the commonest in the ledger that is not taken, else a new one."""
        known = Counter(self._rows[face_id][2] for face_id in face_ids if face_id in self._rows)
        for person_id, _ in sorted(known.items(), key=lambda item: (-item[1], item[0])):
            if person_id not in taken:
                return person_id
        parts: tuple[str, ...] = (min(face_ids),)
        while (fresh := f"p{digest(*parts)[:12]}") in taken:
            parts += ("again",)
        return fresh

    def split_of(self, face_ids: Sequence[str]) -> str | None:
        """The split that most of these faces were drawn into; None where none is known."""
        known = Counter(self._rows[face_id][3] for face_id in face_ids if face_id in self._rows)
        return min(known, key=lambda split: (-known[split], SPLITS.index(split))) if known else None

    def draw(
        self,
        people: Mapping[str, Sequence[str]],
        component: Mapping[str, str],
        fractions: Mapping[str, float],
        seed: int,
    ) -> dict[str, str]:
        """A split a person.

        A component with a known face stays where most of its known faces are; the others, in an order drawn by the
        seed, go where most people are still wanting.

        Args:
            people: person -> ids of its faces.
            component: person -> component.
            fractions: wanted part of the people, by split.
        """
        members: dict[str, list[str]] = {}
        for person_id in people:
            members.setdefault(component[person_id], []).append(person_id)
        split: dict[str, str] = {}
        fresh = []
        for name, names in sorted(members.items()):
            known = self.split_of([face_id for person_id in names for face_id in people[person_id]])
            if known is None:
                fresh.append(name)
            else:
                split |= dict.fromkeys(names, known)
        for name in sorted(fresh, key=lambda name: digest(seed, name)):
            counts = Counter(split.values())
            wanting = {key: fractions[key] * len(people) - counts[key] for key in SPLITS}
            split |= dict.fromkeys(members[name], max(SPLITS, key=lambda key: wanting[key]))
        return split

    def extend(self, faces: pl.DataFrame) -> None:
        """Add faces that are not in it yet; columns face_id, image_id, person_id, split."""
        for row in faces.select(COLUMNS).sort("face_id").iter_rows():
            self._rows.setdefault(row[0], row)

    def drop(self, image_ids: Container[str], person_id: str | None) -> int:
        """Take out the faces of some pictures and of a person who is to be forgotten; returns how many there were.

        The one exception to "only appended to". What git's history holds of them are hashes of files.
        """
        before = len(self._rows)
        self._rows = {face: row for face, row in self._rows.items() if row[1] not in image_ids and row[2] != person_id}
        return before - len(self._rows)

    def write(self, path: Path = LEDGER) -> None:
        """Replace the file whole."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([COLUMNS, *self._rows.values()])
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(text.getvalue())
        temporary.replace(path)
