"""Pictures as files of their own: those below a folder, or those that UNO's JSON names.

UNO's is a list of {"prompt", "image_paths", "image_tgt_path"}, the paths relative to the file. The pictures are taken,
each once; the prompts are not, for sets and captions are made anew from what is measured.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipelines.core.shards import digest, file_digest
from pipelines.core.sources import SOURCES, text
from pipelines.ingest.readers.base import Found, reason
from umo.errors import BadInput


def of_folder(name: str, root: Path, files: Iterable[Path]) -> Iterator[Found]:
    """The pictures among the files below a folder, with their digests."""
    for file in files:
        yield _found(name, text(str(file.relative_to(root))), file)


def _found(name: str, path: str, file: Path) -> Found:
    """A file with its digest; an unreadable one still gets a row, by the digest of its path."""
    try:
        if file.exists() and not file.is_file():  # a pipe would be waited for
            return Found(digest(name, str(file)), name, path, file, "no file: put the picture itself there")
        return Found(file_digest(file), name, path, file)
    except OSError:
        return Found(digest(name, str(file)), name, path, file)


def of_uno(name: str, file: Path) -> Iterator[Found]:
    """The pictures that the JSON names, in its order; an entry or a path that is wrong gets a row with the reason.

    BadInput where it is not a JSON list, or names no picture.
    """
    where = f"{SOURCES}: source '{name}': {file}"
    try:
        entries = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{where} is not readable JSON ({reason(error)})") from error
    if not isinstance(entries, list) or not entries:
        raise BadInput(f"{where} is not a list of entries with image_paths, image_tgt_path")
    seen: set[str] = set()
    for rank, entry in enumerate(entries):
        paths = _paths(entry)
        if paths is None:
            at = f"{file.name}#{rank}"
            fault = "no list image_paths and no image_tgt_path: correct the entry or remove it"
            yield Found(digest(name, at), name, at, file, fault)
        for path in paths or ():
            if path not in seen:
                seen.add(path)
                yield _inside(name, file.parent, path)


def _paths(entry: object) -> list[str] | None:
    """References, then the target; None where the entry has not the form."""
    if not isinstance(entry, dict) or not isinstance(entry.get("image_paths"), list):
        return None
    paths = [*entry["image_paths"], entry.get("image_tgt_path")]
    return paths if all(isinstance(path, str) and path for path in paths) else None


def _inside(name: str, folder: Path, path: str) -> Found:
    """A stranger's file must not make us read, and then export, whatever else lies on this machine."""
    try:
        file = (folder / path).resolve()
        inside = file.is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # a NUL in the name, a loop of links
        inside = False
    if not inside:
        fault = "leads out of the JSON's folder: put the picture below it"
        return Found(digest(name, text(path)), name, text(path), folder, fault)
    return _found(name, text(path), file)
