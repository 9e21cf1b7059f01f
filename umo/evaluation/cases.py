"""CASES.jsonl: what is to be drawn and what was drawn, one JSON object a line; how it is read, checked and written."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from umo.errors import BadInput
from umo.files import write_text
from umo.scenes.prompts import read_places
from umo.texts import fault, parse_json, path_fault, read_text

_REQUIRED = {"case_id", "prompt", "references", "images"}
_OPTIONAL = {"target", "people", "places", "tags", "groups"}
_PATHS = {"references", "images", "target"}


@dataclass(frozen=True, slots=True)
class Case:
    """What was asked for and what was drawn; paths are as written, relative to the file of cases.

    Attributes:
        references: for each of n people, one or several photographs.
        images: drawn with seeds 0, 1, ...; each is scored. Empty in a case that is not drawn yet.
        target: another real picture of these people.
        people: n ids, in the order of the references.
        places: where each of the n people was asked to stand, as a rank or an x from left to right; None: not said.
        tags: what kinds of case it is.
        groups: the group of each of `people`.
    """

    case_id: str
    prompt: str
    references: tuple[tuple[str, ...], ...]
    images: tuple[str, ...]
    target: str | None
    people: tuple[str, ...] | None
    places: tuple[float | None, ...] | None = None
    tags: tuple[str, ...] | None = None
    groups: tuple[str, ...] | None = None

    @property
    def paths(self) -> list[str]:
        """Every picture of the case."""
        target = [self.target] if self.target else []
        return [photo for person in self.references for photo in person] + list(self.images) + target

    @property
    def asked_places(self) -> Sequence[float | None] | None:
        """`places`, or else what the prompt says of them; None where it says nothing that can be read."""
        return self.places or read_places(self.prompt, len(self.references))

    def line(self) -> str:
        """The case as `parse_case` reads it; a person of one photograph is a plain path."""
        row: dict[str, Any] = {
            "case_id": self.case_id,
            "prompt": self.prompt,
            "references": [photos[0] if len(photos) == 1 else photos for photos in self.references],
            "images": self.images,
        }
        optional = {name: getattr(self, name) for name in ("target", "people", "places", "tags", "groups")}
        return json.dumps(row | {name: value for name, value in optional.items() if value is not None})


def read_cases(path: Path, drawn: bool = True) -> list[Case]:
    """Read CASES.jsonl whole; blank lines are passed over.

    Args:
        drawn: as in `parse_case`.

    Raises:
        BadInput: the file cannot be read or is empty, or a line is not a case; names the file, the line and the reason.
    """
    try:
        lines = read_text(path).split("\n")  # splitlines() would break a prompt at U+2028
    except OSError as error:
        raise BadInput(f"{path}: not a readable file of cases ({error.strerror}); check the path") from error
    cases: dict[str, Case] = {}
    groups: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            case = parse_case(line, drawn)
            _require(case.case_id not in cases, f"case_id {case.case_id!r} is already taken by an earlier line")
            for person, group in zip(case.people or (), case.groups or (), strict=False):
                known = groups.setdefault(person, group)
                _require(known == group, f"{person!r} is of group {group!r} here and of {known!r} in an earlier line")
        except ValueError as error:
            nothing = f"nothing was {'scored' if drawn else 'drawn'}"
            raise BadInput(f"{path}:{number}: {error}; correct the line, {nothing}") from error
        cases[case.case_id] = case
    if not cases:
        raise BadInput(f"{path}: holds no case; give one JSON object a line")
    return list(cases.values())


def relocated(case: Case, source: Path, to: Path) -> Case:
    """The case with the paths that are relative to `source` made relative to `to`."""

    def moved(path: str) -> str:
        return os.path.relpath((source / path).resolve(), to.resolve())

    return replace(
        case,
        references=tuple(tuple(moved(path) for path in person) for person in case.references),
        images=tuple(moved(path) for path in case.images),
        target=moved(case.target) if case.target else None,
    )


def write_cases(path: Path, cases: Sequence[Case]) -> None:
    """Write CASES.jsonl, whole or not at all."""
    write_text(path, "".join(case.line() + "\n" for case in cases))


def parse_case(line: str, drawn: bool = True) -> Case:
    """One line of CASES.jsonl; null is as good as absent for what is optional.

    Args:
        drawn: the case must name its images; otherwise it need not, and those that it names are ignored.

    Raises:
        ValueError: not a case; the message is the reason.
    """
    row = parse_json(line)
    _require(isinstance(row, dict), "not a JSON object")
    missing = (_REQUIRED if drawn else _REQUIRED - {"images"}) - row.keys()
    _require(not missing, f"missing {sorted(missing)}")
    unknown = row.keys() - _REQUIRED - _OPTIONAL
    _require(not unknown, f"unknown {sorted(unknown)} (known: {sorted(_REQUIRED | _OPTIONAL)})")
    _require(_is_text(row["case_id"]), "case_id must be a text that is not empty")
    _require(isinstance(row["prompt"], str), "prompt must be a text")
    _refuse_unfit(row)
    _require(isinstance(row["references"], list) and row["references"], "references must be a list that is not empty")
    people = [[person] if isinstance(person, str) else person for person in row["references"]]
    for person in people:
        _require(_is_texts(person), "a reference must be a path or a list of paths, none empty")
    _require(not drawn or _is_texts(row["images"]), "images must be a list of paths that is not empty")
    target, names = row.get("target"), row.get("people")
    _require(target is None or _is_text(target), "target must be a path")
    if names is not None:
        _require(_is_texts(names), "people must be a list of texts")
        _require(len(names) == len(people), f"{len(names)} people for {len(people)} references")
        _require(len(set(names)) == len(names), "people names a person twice")
    places, tags, groups = row.get("places"), row.get("tags"), row.get("groups")
    if places is not None:
        _require(
            isinstance(places, list) and all(place is None or _is_number(place) for place in places),
            "places must be a list of numbers or nulls",
        )
        _require(len(places) == len(people), f"{len(places)} places for {len(people)} references")
    _require(tags is None or _is_texts(tags), "tags must be a list of texts")
    if groups is not None:
        _require(names is not None, "groups need people: whose group is it")
        _require(_is_texts(groups), "groups must be a list of texts")
        _require(len(groups) == len(people), f"{len(groups)} groups for {len(people)} references")
    return Case(
        case_id=row["case_id"],
        prompt=row["prompt"],
        references=tuple(tuple(person) for person in people),
        images=tuple(row["images"]) if drawn else (),
        target=target,
        people=tuple(names) if names else None,
        places=tuple(places) if places else None,
        tags=tuple(tags) if tags else None,
        groups=tuple(groups) if groups else None,
    )


def _require(holds: object, reason: str) -> None:
    if not holds:
        raise ValueError(reason)


def _refuse_unfit(row: dict[str, Any]) -> None:
    """Every text is printed and stored, most of them in a line: said before anything is drawn or scored with them."""
    for key, value in row.items():
        texts = [value]
        while texts:
            text = texts.pop()
            if isinstance(text, list):
                texts += text
            elif isinstance(text, str):
                bad = path_fault(text) if key in _PATHS else fault(text, name=key != "prompt")
                _require(bad is None, f"{key}: {bad}")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(_is_text(part) for part in value)
