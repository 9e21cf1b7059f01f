"""Pictures as files of their own: those below a folder, or those that UNO's JSON names.

UNO's is a list of {"prompt", "image_paths", "image_tgt_path"}, the paths relative to the file. The pictures are taken,
each once; the prompts are not, for sets and captions are made anew from what is measured.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pipelines.core.shards import digest, file_digest
from pipelines.core.sources import SOURCES, SUFFIXES, Kind, Source, text
from pipelines.ingest.readers.base import Found, reason
from umo.errors import BadInput


def below(name: str, source: Source, kind: Kind, root: Path) -> list[Path]:
    """The files of a source that its kind reads, in order; `root` itself, if it is one. BadInput if there is none."""
    if root.is_file():
        return [root]
    suffixes = SUFFIXES[kind]
    found = sorted((path for path in root.glob(source.include) if path.is_file()), key=lambda path: path.parts)
    files = [path for path in found if path.suffix.lower() in suffixes]
    others = Counter(path.suffix.lower() for path in found if path.suffix.lower() not in {*suffixes, "", ".md"})
    if others and kind == "folder":
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
        remedy = "convert pictures among them to JPEG, PNG or WebP; tars, tables and videos want a source of their kind"
        print(f"ingest: {name}: passed over {kinds}: {remedy}")
    if not files:
        what = "picture" if kind == "folder" else kind
        kinds = ", ".join(sorted(suffixes))
        raise BadInput(f"{SOURCES}: source '{name}': no {what} in {root} fits '{source.include}' ({kinds})")
    return files


def of_folder(name: str, source: Source, root: Path) -> Iterator[Found]:
    """The source's pictures in order; BadInput where there are none."""
    for path in below(name, source, "folder", root):
        yield _found(name, text(str(path.relative_to(root))), path)


def _found(name: str, path: str, file: Path) -> Found:
    """A file with its digest; an unreadable one still gets a row, by the digest of its path."""
    try:
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
