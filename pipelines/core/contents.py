"""What lies in the sources, a digest each: by datasets/sources.json DVC knows whether `ingest` has to look again.

DVC's own look into a folder ends at a broken link (an editor's lock is one), at a name that is not UTF-8, and before
every link to a folder, while `ingest` reads, or has a row for, what is there. So this is asked whenever DVC is
(datasets/dvc.yaml); it follows links, and reads a file's bytes when the file has changed.
"""

import hashlib
import json
import os
from pathlib import Path

from pipelines.core.digests import WORK, file_digest
from pipelines.core.sources import SOURCES, Source, read_sources
from umo.files import write_text

CONTENTS = Path("datasets/sources.json")


def write_contents(root: Path = Path()) -> str:
    """Write the file anew; returns what was done, in a line. Photographs that a package carries are not looked at.

    On a machine that has none of the photographs and never had them (.work/ingest is not there), the file stays as it
    is: what was made of them elsewhere counts. BadInput as `read_sources`.

    Args:
        root: of the workspace.
    """
    sources = read_sources(root / SOURCES)
    places = {name: root / _place(source) for name, source in sorted(sources.items()) if not source.package}
    here = not places or any(place.exists() for place in places.values()) or (root / WORK / "ingest").exists()
    if not here and (root / CONTENTS).exists():
        return f"{CONTENTS}: kept, for the photographs are not on this machine (docs/versions.md)"
    found = {name: contents(place) for name, place in places.items()}
    write_text(root / CONTENTS, json.dumps(found, indent=1) + "\n")
    return f"{CONTENTS}: {len(found)} sources of photographs"


def _place(source: Source) -> Path:
    """What a source is read from: UNO's JSON names pictures beside it."""
    beside = source.kind == "uno" or (source.kind is None and source.path.suffix.lower() == ".json")
    return source.path.parent if beside else source.path


def contents(root: Path) -> str:
    """sha256 over the names and bytes of what lies below a folder or behind its links, or of a file.

    A folder that links lead to twice is entered once. What cannot be read, is no file, or is not there counts as that.
    """
    found = hashlib.sha256(_of_file(root).encode())
    entered: set[tuple[int, int]] = set()

    def unread(error: OSError) -> None:
        found.update(f"unreadable: {error.strerror}".encode())

    for folder, folders, names in os.walk(root, onerror=unread, followlinks=True):
        status = Path(folder).stat()
        place = (status.st_dev, status.st_ino)
        if place in entered:
            folders[:], names = [], []
        entered.add(place)
        folders.sort()
        for name in ["", *sorted(names)]:
            content = _of_file(Path(folder, name)) if name else "folder"
            where = os.fsencode(os.path.relpath(Path(folder, name), root))
            found.update(b"%s\0%s\0" % (where, content.encode()))
    return found.hexdigest()


def _of_file(path: Path) -> str:
    try:
        return file_digest(path) if path.is_file() else "no file"
    except OSError as error:
        return f"unreadable: {error.strerror}"
