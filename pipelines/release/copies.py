"""A released data set laid down for others, in a folder or below an S3 prefix: whole and checked, or not there. The
Hugging Face hub has a file of its own (hub.py).

SHA256SUMS is written last, and what has none is not whole; a folder, moreover, is filled under another name and then
renamed. What an interrupted copy finished is kept by the next. Nothing that is there is overwritten.
"""

import hashlib
import json
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import fsspec
from botocore import exceptions as aws

from pipelines.core.digests import read_digest
from pipelines.release import stores
from umo.errors import BadInput, WorkFailed

SUMS, RELEASE = "SHA256SUMS", "RELEASE.json"
AT_ONCE = 8
FAULTS = (OSError, aws.BotoCoreError, aws.ClientError)


@dataclass(frozen=True)
class Contents:
    """What a copy holds."""

    folder: Path  # where the files are
    listing: bytes  # SHA256SUMS, as it was when the release began
    release: bytes  # RELEASE.json, which is beside them in a copy alone

    @property
    def version(self) -> str:
        """Without the v."""
        return json.loads(self.release)["version"]

    @property
    def sums(self) -> dict[str, str]:
        """File -> its sha256, as SHA256SUMS says."""
        lines = self.listing.decode().splitlines()
        return {name: value for value, _, name in (line.partition("  ") for line in lines)}

    @property
    def texts(self) -> dict[str, bytes]:
        """Files that are written after all others, in their order."""
        return {RELEASE: self.release, SUMS: self.listing}

    @property
    def all_sums(self) -> dict[str, str]:
        """Every file of a copy -> its sha256."""
        return self.sums | {name: hashlib.sha256(text).hexdigest() for name, text in self.texts.items()}


def place_of(text: str) -> "Place":
    """A folder, or s3://BUCKET/PREFIX; BadInput where it is neither."""
    if text.startswith("s3://"):
        if not text.removeprefix("s3://").strip("/").partition("/")[2]:
            raise BadInput(f"{text}: name a prefix in the bucket, as in s3://BUCKET/PREFIX")
        return Place(text.rstrip("/"))
    if "://" in text:
        raise BadInput(f"{text}: a release goes to a folder or to s3://BUCKET/PREFIX or hf://datasets/OWNER/NAME")
    return Place(str(Path(text).resolve()))


@dataclass(frozen=True)
class Place:
    """Where a copy goes: a folder by its absolute path, or s3://BUCKET/PREFIX, whose endpoint and credentials are those
    of the environment, as for the AWS tools.
    """

    name: str

    @property
    def folder(self) -> Path | None:
        """None where it is no folder."""
        return None if "://" in self.name else Path(self.name)

    @property
    def filled(self) -> str:
        """What it is called until it is whole."""
        return str(self.folder.with_name(f".{self.folder.name}.partial")) if self.folder else self.name

    @cached_property
    def store(self) -> fsspec.AbstractFileSystem:
        """The files there."""
        if self.folder:
            return fsspec.filesystem("file", auto_mkdir=True)
        return fsspec.filesystem("s3", config_kwargs=stores.patience(), **stores.FRESH)

    def is_whole(self, contents: Contents) -> bool:
        """Whether exactly this is there already. BadInput where something else is, or nothing can be written, and
        WorkFailed where it cannot be reached.
        """
        label, wanted = f"destination {self.name}", contents.all_sums
        if self.folder:
            _check_folder(label, self.folder)
        else:
            stores.check_bucket(self.name, self.name, {})
        try:
            found = self._found(self.name, wanted)
        except FAULTS as error:
            raise WorkFailed(f"{label}: cannot be read ({error})") from error
        if other := sorted(name for name, value in found.items() if wanted.get(name) != value):
            raise BadInput(
                f"{label}: {other[0]} is there and is not of this release; choose another place, or empty it"
            )
        if self.folder and found and len(found) < len(wanted):
            raise BadInput(f"{label}: holds a part of this release, which no release leaves; empty it")
        return found == wanted

    def copy(self, contents: Contents) -> None:
        """Lay it down; WorkFailed where a file is not what SHA256SUMS says, or the place fails, and then nothing there
        passes for whole.
        """
        sums = contents.sums
        try:
            there = self._found(self.filled, sums)
            if self.folder:
                for name in [name for name, value in there.items() if sums.get(name) != value]:
                    self.store.rm_file(f"{self.filled}/{name}")
                    del there[name]
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(lambda name: self._put(name, contents), [name for name in sums if name not in there]))
            for name, text in contents.texts.items():
                self.store.pipe_file(f"{self.filled}/{name}", text)
            if self.folder:
                Path(self.filled).replace(self.folder)
        except FAULTS as error:
            raise WorkFailed(
                f"destination {self.name}: {error}; run again, what is in {self.filled} is kept"
            ) from error

    def _put(self, name: str, contents: Contents) -> None:
        """Read again once it is there: what changed before or meanwhile is taken away."""
        source, target = contents.folder / name, f"{self.filled}/{name}"
        self.store.put_file(str(source), target)
        if read_digest(source) != contents.sums[name]:
            self.store.rm_file(target)
            raise WorkFailed(f"{source}: not what {SUMS} says; was it changed meanwhile? run dvc repro export")

    def _found(self, root: str, known: Collection[str]) -> dict[str, str]:
        """File -> sha256 of what lies there, as it is read; empty, and not read, for a file that is not known."""

        def read(name: str) -> str:
            if name not in known:
                return ""
            with self.store.open(f"{root}/{name}", "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()

        start = f"{self.store._strip_protocol(root)}/"
        names = [path.removeprefix(start) for path in self.store.find(root)]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return dict(zip(names, pool.map(read, names), strict=True))


def _check_folder(label: str, folder: Path) -> None:
    if folder.is_relative_to(Path.cwd()):
        raise BadInput(f"{label}: inside the repository, where pictures could get into git; choose a folder outside")
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{label}: a file is there; choose another place")
    stores.check_folder(label, folder.parent)
