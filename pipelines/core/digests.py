"""Checksums of files, remembered from run to run, so that one new photo among millions costs one file's reading.

As git and DVC do, a file that has kept its size, its times (changed and written) and its inode is taken for unchanged.
What was written within the last moments is not remembered: within a clock's tick it could change again unseen.
"""

import atexit
import hashlib
import json
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from umo.errors import BadInput

WORK = Path(".work")
MEMORY = WORK / "digests.sqlite"
SETTLED_NS = 2_000_000_000  # coarser than the clock of any file system
AT_ONCE = 256
PATIENCE = 2.0  # seconds


def digest(*parts: object) -> str:
    """sha256 of JSON-serialisable parts, the same for equal parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes; a file that was read before and has not changed since is not read again."""
    memory, before = _memory(), path.stat()
    if (known := memory.get(before)) is not None:
        return known
    found = read_digest(path)
    after = path.stat()
    if _signature(before) == _signature(after) and _settled(max(after.st_mtime_ns, after.st_ctime_ns)):
        memory.put(after, found)
    return found


def read_digest(path: Path) -> str:
    """sha256 of a file's bytes, which are read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_digest(folder: Path) -> str:
    """sha256 over the names and bytes of the files below a folder (or of one file); raises BadInput for neither."""
    if not folder.exists():
        raise BadInput(f"{folder}: missing; run the stage that makes it (dvc repro)")
    files = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file())
    return digest([(str(path.relative_to(folder)), file_digest(path)) for path in files])


def link(source: Path, target: Path) -> None:
    """Give a file a second name, or a copy where it cannot have one; what is known of it stays known, though a link
    moves its time of change.
    """
    known = _memory().get(source.stat())
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    if known:
        remember_digest(target, known)


def remember_digest(path: Path, value: str) -> None:
    """Take the word of somebody who knows a file's bytes. Nothing is remembered where they are too new."""
    status = path.stat()
    if _settled(status.st_mtime_ns):
        _memory().put(status, value)


def _settled(moment: int) -> bool:
    return moment < time.time_ns() - SETTLED_NS


def _identity(status: os.stat_result) -> str:
    """Of a file, whatever its names: hard links are one file."""
    return f"{status.st_dev} {status.st_ino}"


def _signature(status: os.stat_result) -> str:
    """Size, when written, when changed."""
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


class Memory:
    """Checksums of files in SQLite, for any thread. It may be removed, spoilt or shut at any time: then files are read
    again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._new: dict[str, tuple[str, str]] = {}  # identity -> signature, sha256
        self._connection: sqlite3.Connection | None = None
        self._alone = threading.RLock()

    def get(self, status: os.stat_result) -> str | None:
        """The checksum of a file that is still as it was."""
        name, query = _identity(status), "SELECT signature, sha256 FROM files WHERE file = ?"
        known = self._new.get(name) or self._tried(lambda file: file.execute(query, (name,)).fetchone())
        return known[1] if known and known[0] == _signature(status) else None

    def put(self, status: os.stat_result, value: str) -> None:
        """Remember; written to disk now and then, and when the process ends."""
        with self._alone:
            self._new[_identity(status)] = (_signature(status), value)
            if len(self._new) >= AT_ONCE:
                self.flush()

    def flush(self) -> None:
        """Write down what is new."""
        with self._alone:
            rows = [(name, *known) for name, known in self._new.items()]
            if rows:
                self._tried(lambda file: file.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", rows))
            self._new.clear()

    def close(self) -> None:
        """Write down what is new, and let the file go."""
        with self._alone:
            self.flush()
            if self._connection:
                self._connection.close()
                self._connection = None

    def _tried(self, action: Callable[[sqlite3.Connection], Any]) -> Any:
        """A transaction on the file, or None where the file does not allow it; a spoilt file is removed."""
        with self._alone:
            try:
                if self._connection is None or not self.path.exists():
                    self._connection = _opened(self.path)
                with self._connection:
                    return action(self._connection)
            except (sqlite3.OperationalError, sqlite3.ProgrammingError, OSError):  # locked, a full disk, read-only
                return None
            except sqlite3.DatabaseError:
                self._connection = None
                with suppress(OSError):
                    self.path.unlink()
                return None


def _opened(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=PATIENCE, check_same_thread=False)  # one thread at a time
    connection.execute("CREATE TABLE IF NOT EXISTS files (file TEXT PRIMARY KEY, signature TEXT, sha256 TEXT)")
    return connection


_open: dict[str, Memory] = {}
_opening = threading.Lock()


def _memory() -> Memory:
    """Of the workspace that is the current folder; another workspace's is closed."""
    here = os.getcwd()  # noqa: PTH109 - for every file, and a Path would cost more than the rest
    if (found := _open.get(here)) is None:
        with _opening:
            for other in _open.keys() - {here}:
                _open.pop(other).close()
            found = _open.setdefault(here, Memory(Path(here, MEMORY)))
    return found


@atexit.register
def _close() -> None:
    for memory in _open.values():
        memory.close()
