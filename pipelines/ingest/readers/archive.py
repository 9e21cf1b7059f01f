"""WebDataset tars, read as a stream from front to back: nothing is ever unpacked to a file."""

import json
import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import IO, cast

from pipelines.core.sources import text
from pipelines.ingest.readers import forms, tars
from pipelines.ingest.readers.base import Container, Limits, Member, over_limit, reason, shut

MAX_JSON_BYTES = 1 << 20
MAX_NOTES = 16  # .json files that may wait for the first picture of their sample
MAX_LINKS = 40  # from one to the next


@dataclass(frozen=True)
class _Link(Member):
    """A picture's other name."""

    name: str = ""  # both from the archive's root on
    target: str = ""


def read(container: Container, limits: Limits, columns: tuple[str, ...], others: Counter[str]) -> Iterator[Member]:
    """The pictures in their order; what is no usable member, and where the archive breaks off, as errors.

    Pictures that are links to others come last, for which the archive is read again.

    Args:
        columns: keys of each sample's .json that are wanted. A sample is what has one name up to the first dot; its
            pictures follow each other, and are held in memory until it ends.
        others: members that are not read are counted here, by what they are.
    """
    found = _members(container, limits, bool(columns), others)
    links: list[_Link] = []
    for member in _with_fields(found, limits, columns, others) if columns else (member for _, member in found):
        if isinstance(member, _Link) and not member.error and len(links) < limits.max_members:
            links.append(member)
        else:
            yield member
    if links:
        yield from _linked(container, limits, links)


def _with_fields(
    found: Iterable[tuple[str | None, Member]], limits: Limits, columns: tuple[str, ...], others: Counter[str]
) -> Iterator[Member]:
    """Pictures with what their sample's .json says; where it cannot be read, nobody knows their terms: refused.

    Between a sample's members may lie those of no sample, and .json files that belong to no picture.
    """
    notes: dict[str | None, dict[str, object] | str] = {}  # by sample, what its .json says, or what is wrong with it
    pictures: list[Member] = []
    present, size = None, 0
    for sample, member in chain(found, [(None, None)]):
        if member and sample is not None and member.path.lower().endswith(".json"):
            if not isinstance(notes.get(sample), str):
                notes[sample] = _note(member, columns)
            if len(notes) > MAX_NOTES:
                del notes[next(other for other in notes if other != present)]
                others[".json without a picture"] += 1
            continue
        if sample != present or member is None:
            note = notes.pop(present, {}) if pictures else {}
            for picture in pictures:
                if isinstance(note, str):
                    yield picture if picture.error else Member(picture.path, error=note)
                else:
                    yield replace(picture, fields=note)
            pictures, present, size = [], sample, 0
        if member:
            size += len(member.data)
            if size > limits.max_bytes:
                large = f"its sample is over the limit of {limits.max_bytes} bytes: raise ingest.max_bytes"
                member = replace(member, data=b"", error=large)
            pictures.append(member)
    if notes:
        others[".json without a picture"] += len(notes)


def _note(member: Member, columns: tuple[str, ...]) -> dict[str, object] | str:
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


def _members(
    container: Container, limits: Limits, with_json: bool, others: Counter[str]
) -> Iterator[tuple[str | None, Member]]:
    """Pictures (and .json, and links) with the name of their sample: folder and name up to the first dot."""
    n, archive = 0, None
    try:
        with tars.opened(container.file) as archive:
            while header := archive.next():
                archive.members.clear()  # type: ignore[attr-defined]  # or they all stay in memory
                n += 1
                if member := _member(container, archive, header, limits, with_json, others):
                    folder, _, base = header.name.rpartition("/")
                    yield f"{folder}/{base.split('.')[0]}", member
    except tars.LimitError as error:
        yield None, Member(container.path, error=f"{error} ({n} members are read)")
    except tars.DAMAGE as error:
        ended = archive is not None and archive.ended
        yield None, Member(container.path, error=shut(error) or _broken(n, reason(error), ended))


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
    with_json: bool,
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

        is_json = with_json and forms.belongs("uno", header.name, head)
        if not is_json and not forms.belongs("folder", header.name, head):
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
    for _, member in _members(container, limits, False, Counter()):
        for link in wanted.pop(posixpath.normpath(member.path[inside:]), ()) if not isinstance(member, _Link) else ():
            yield replace(member, path=link.path, fields=link.fields)
    for link in chain.from_iterable(wanted.values()):
        fault = f"a link to {text(link.target)}, which is no picture in the archive: put the picture itself there"
        yield Member(link.path, error=fault, fields=link.fields)
