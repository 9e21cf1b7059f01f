"""datasets/corrections.csv: what somebody who looked at the people says of them. In git; `identify` obeys it.

A row is an action, who it is about by person_id or face_id, and a note that nobody reads but people:

    merge,P,Q        two people are one
    split,P,F G ...  these faces of P are of another person
    drop,P           a person, or a face, is not used
    same,F,G         two faces are of one person
    different,F,G    two faces are of two people
"""

import csv
import io
import re
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from umo.errors import BadInput

CORRECTIONS = Path("datasets/corrections.csv")
COLUMNS = ("action", "first", "second", "note")
ACTIONS = ("merge", "split", "drop", "same", "different")
JOINING = ("merge", "same")
_PERSON, _FACE = re.compile("p[0-9a-f]{12}"), re.compile("[0-9a-f]{16}-[0-9]+")


class Correction(NamedTuple):
    """A row.

    Attributes:
        line: of the file, from 1.
        first: person_id or face_id.
        second: of merge, same, different: one of them; of split: face_ids; of drop: nothing.
    """

    line: int
    action: str
    first: str
    second: tuple[str, ...]
    note: str = ""

    @property
    def ids(self) -> tuple[str, ...]:
        """Everybody it names."""
        return (self.first, *self.second)

    @property
    def where(self) -> str:
        """For a reason."""
        return f"{CORRECTIONS} line {self.line}"


def read_corrections(path: Path = CORRECTIONS) -> list[Correction]:
    """The rows of a file in its order, none where there is no file.

    Raises:
        BadInput: a row does not fit, or contradicts another.
    """
    if not path.exists():
        return []
    try:
        reader = csv.reader(io.StringIO(path.read_text("utf-8-sig"), newline=""), strict=True)
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 text: save it as UTF-8") from error
    rows, line = [], 1
    try:
        header = [cell.strip() for cell in next(reader, [])]
        if tuple(header) != COLUMNS:
            raise BadInput(f"{path}:1: first line must be {','.join(COLUMNS)}")
        line = reader.line_num + 1
        for cells in reader:
            if any(cells := [cell.strip() for cell in cells]):
                rows.append(_row(cells, line, f"{path}:{line}"))
            line = reader.line_num + 1
    except csv.Error as error:
        raise BadInput(f"{path}:{line}: not a row of {','.join(COLUMNS)} ({error})") from error
    _refuse_contradictions(rows, path)
    return rows


def _row(cells: list[str], line: int, where: str) -> Correction:
    if len(cells) > len(COLUMNS):
        raise BadInput(f"{where}: {len(cells)} columns instead of {len(COLUMNS)}: put a note with commas in quotes")
    action, first, second, note = cells + [""] * (len(COLUMNS) - len(cells))
    if action not in ACTIONS:
        raise BadInput(f"{where}: no action '{action}': choose one of {', '.join(ACTIONS)}")
    row = Correction(line, action, first, tuple(dict.fromkeys(second.split())), note)
    wanted = {"drop": "first alone", "split": "a person in first, face_ids with spaces between in second"}
    fits = len(row.second) == 1
    if action == "drop":
        fits = not row.second
    elif action == "split":
        fits = bool(row.second) and all(map(_FACE.fullmatch, row.second))
    if not first or not fits:
        raise BadInput(f"{where}: {action} takes {wanted.get(action, 'one id in first and one in second')}")
    for one in row.ids:
        if not (_PERSON.fullmatch(one) or _FACE.fullmatch(one)):
            raise BadInput(f"{where}: '{one}' is no person_id and no face_id")
    if first in row.second:
        raise BadInput(f"{where}: names {first} twice")
    return row


def _refuse_contradictions(rows: list[Correction], path: Path) -> None:
    """By the ids as they are written: who is joined, at once or through others, is neither parted nor dropped."""
    group = {one: {one} for row in rows for one in row.ids}
    about = defaultdict(list)
    for row in rows:
        if row.action not in JOINING:
            about[row.first].append(row)
    for row in (row for row in rows if row.action in JOINING):
        joined = group[row.first] | group[row.second[0]]
        group.update(dict.fromkeys(joined, joined))
        for other in (other for one in sorted(joined) for other in about.get(one, ())):
            if other.action == "drop" or joined & set(other.second):
                lines = sorted((row.line, other.line))
                raise BadInput(f"{path}:{lines[1]}: contradicts line {lines[0]}: remove one of them")
