"""WebDataset tars, read as a stream from front to back: nothing is ever unpacked to a file."""

import json
import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import IO, cast

from pipelines.core.sources import Kind, text
from pipelines.ingest.readers import forms, tars
from pipelines.ingest.readers.base import Container, Limits, Member, over_limit, reason, shut

MAX_JSON_BYTES = 1 << 20
KINDS: tuple[Kind, ...] = ("folder", "uno")  # of sources to which pictures belong, and .json
MAX_LINKS = 40  # from one to the next
Note = dict[str, object] | str  # the wanted keys of a .json, or what is wrong with it


@dataclass(frozen=True)
class _Link(Member):
    """A picture's other name."""

    name: str = ""  # both from the archive's root on
    target: str = ""


def read(container: Container, limits: Limits, columns: tuple[str, ...], others: Counter[str]) -> Iterator[Member]:
    """The pictures in their order; what is no usable member, and where the archive breaks off, as errors.

    Pictures that are links to others come last, for which the archive is read again.

    Args:
        columns: keys of a picture's .json that are wanted, for which the archive is read before: a tar of a folder is
            in no order. The .json has its name but for the suffix, else its sample's: the name up to the first dot.
        others: members that are not read are counted here, by what they are.
    """
    notes = _notes(container, limits, columns) if columns else {}
    alone, links = set(notes), list[_Link]()
    for name, member in _members(container, limits, KINDS if columns else ("folder",), others):
        if columns and name and _is_json(member):
            continue
        own, sample = _names(name)
        alone -= {own, sample}
        note = notes.get(own, notes.get(sample, {}))
        if isinstance(note, dict):
            member = replace(member, fields=note)
        elif not member.error:
            member = Member(member.path, error=note)
        if isinstance(member, _Link) and not member.error and len(links) < limits.max_members:
            links.append(member)
        else:
            yield member
    if without := sum("." not in posixpath.basename(sample) for sample in alone):
        others[".json without a picture"] += without
    if links:
        yield from _linked(container, limits, links)


def _notes(container: Container, limits: Limits, columns: tuple[str, ...]) -> dict[str, Note]:
    """What the .json of each name and sample say; where one cannot be read, nobody knows the pictures' terms."""
    notes: dict[str, Note] = {}
    room = limits.max_bytes
    for name, member in _members(container, limits, ("uno",), Counter()):
        if name and _is_json(member):
            note = _note(member, columns)
            room -= len(str(note))
            if room < 0:
                note = f"the .json of its archive say more than {limits.max_bytes} bytes: raise ingest.max_bytes"
            for of in set(_names(name)):
                notes[of] = _together(notes.get(of, {}), note, member)
    return notes


def _names(name: str) -> tuple[str, str]:
    """A member's name without its suffix, and that of its sample, both with the folder."""
    folder, base = posixpath.split(posixpath.normpath(name))
    return f"{folder}/{posixpath.splitext(base)[0]}", f"{folder}/{base.split('.')[0]}"


def _is_json(member: Member) -> bool:
    return member.path.lower().endswith(".json")


def _note(member: Member, columns: tuple[str, ...]) -> Note:
    """The wanted keys, or why there are none."""
    if member.error or isinstance(member, _Link):
        return f"{text(member.path)}: {member.error or 'a link: put the file itself into the archive'}"
    try:
        found = json.loads(member.data)
        note = {column: found.get(column) for column in columns}
    except (ValueError, RecursionError, AttributeError):
        return f"{text(member.path)} is no JSON object: write it again, or remove it"
    if odd := [column for column, value in note.items() if isinstance(value, list | dict)]:
        return f"{text(member.path)}: '{odd[0]}' is neither text nor a number: write it as text"
    return note


def _together(before: Note, note: Note, member: Member) -> Note:
    """What several .json of a sample say, or that they contradict each other."""
    if isinstance(before, str) or isinstance(note, str):
        return before if isinstance(before, str) else note
    said = {column: value for column, value in note.items() if value is not None}
    if odd := [column for column, value in said.items() if before.get(column, value) not in (value, None)]:
        return f"{text(member.path)}: another .json of the sample says another '{odd[0]}': remove one"
    return {**before, **note, **{column: value for column, value in before.items() if value is not None}}


def _members(
    container: Container, limits: Limits, kinds: tuple[Kind, ...], others: Counter[str]
) -> Iterator[tuple[str, Member]]:
    """What is of `kinds`, and links, with their name in the archive; of what is no member it is empty."""
    n, archive = 0, None
    try:
        with tars.opened(container.file) as archive:
            while header := archive.next():
                archive.members.clear()  # type: ignore[attr-defined]  # or they all stay in memory
                n += 1
                if member := _member(container, archive, header, limits, kinds, others):
                    yield header.name, member
    except tars.LimitError as error:
        yield "", Member(container.path, error=f"{error} ({n} members are read)")
    except tars.DAMAGE as error:
        ended = archive is not None and archive.ended
        yield "", Member(container.path, error=shut(error) or _broken(n, reason(error), ended))


def _broken(n: int, said: str, ended: bool) -> str:
    """Where an archive breaks off: after n members, perhaps behind its end mark."""
    if "too much memory" in said:  # zstd's
        return f"packed with a larger window than is read ({said}): pack it again without --long"
    if ended:
        return f"behind the end mark after {n} members it is damaged, or no tar ({said}): see what is there"
    return f"cut short or damaged after {n} members ({said}): copy it again from its origin"


def _member(
    container: Container,
    archive: tarfile.TarFile,
    header: tarfile.TarInfo,
    limits: Limits,
    kinds: tuple[Kind, ...],
    others: Counter[str],
) -> Member | None:
    """None for what is no picture and harms nobody; it is counted."""
    path = f"{container.path}/{text(header.name)}"
    if header.isdir() or header.type == b"V":  # GNU's name for the whole
        return None
    if fault := _fault(header):
        return Member(path, error=fault)
    if header.issym() or header.islnk():
        folder = posixpath.dirname(header.name) if header.issym() else ""
        target = posixpath.normpath(posixpath.join(folder, header.linkname))
        return _Link(path, name=posixpath.normpath(header.name), target=target)
    with cast(IO[bytes], archive.extractfile(header)) as file:
        start = b""

        def head() -> bytes:
            nonlocal start
            start = start or file.read(forms.HEAD_BYTES)
            return start

        is_json = "uno" in kinds and forms.belongs("uno", header.name, head)
        if not is_json and not ("folder" in kinds and forms.belongs("folder", header.name, head)):
            others[forms.label(header.name, head)] += 1
            return None
        if fault := over_limit(header.size, MAX_JSON_BYTES if is_json else limits.max_bytes):
            return Member(path, error=fault)
        return Member(path, start + file.read())


def _fault(header: tarfile.TarInfo) -> str | None:
    parts = header.name.replace("\\", "/").split("/")
    if header.name.startswith("/") or ".." in parts or "\0" in header.name:
        return "a name that leads out of the archive: write it again with plain relative names"
    if not (header.isreg() or header.issparse() or header.issym() or header.islnk()):
        return "a device, a pipe or another special file: put the picture itself into the archive"
    return None


def _linked(container: Container, limits: Limits, links: list[_Link]) -> Iterator[Member]:
    """The pictures that links lead to, which may lie before them or after."""
    targets = {link.name: link.target for link in links}
    wanted: dict[str, list[_Link]] = {}
    for link in links:
        target = link.target
        for _ in range(MAX_LINKS):
            target = targets.get(target, target)
        wanted.setdefault(text(target), []).append(link)
    inside = len(container.path) + 1
    for _, member in _members(container, limits, ("folder",), Counter()):
        for link in wanted.pop(posixpath.normpath(member.path[inside:]), ()) if not isinstance(member, _Link) else ():
            yield replace(member, path=link.path, fields=link.fields)
    for link in chain.from_iterable(wanted.values()):
        fault = f"a link to {text(link.target)}, which is no picture in the archive: put the picture itself there"
        yield Member(link.path, error=fault, fields=link.fields)
