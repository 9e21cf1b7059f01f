"""A released data set laid down for others, in a folder or below an S3 prefix: whole and checked, or not there.

SHA256SUMS is written last. A folder is filled under another name and then renamed; below a prefix, what has no
SHA256SUMS is not whole. What an interrupted copy finished is kept by the next. Nothing that is there is overwritten.
"""

import hashlib
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from botocore import exceptions as aws

from pipelines.core.digests import read_digest
from pipelines.release import stores
from umo.errors import BadInput, WorkFailed

SUMS, RELEASE = "SHA256SUMS", "RELEASE.json"
AT_ONCE = 8
SHA256 = "sha256"  # the metadata of an object that says what is in it


@dataclass(frozen=True)
class Contents:
    """What a copy holds.

    Attributes:
        folder: where the files are.
        listing: the bytes of SHA256SUMS, as they were when the release began.
        release: the bytes of RELEASE.json, which is beside them in a copy alone.
    """

    folder: Path
    listing: bytes
    release: bytes

    @property
    def sums(self) -> dict[str, str]:
        """File -> its sha256, as SHA256SUMS says."""
        parts = (line.partition("  ") for line in self.listing.decode().splitlines())
        return {name: value for value, _, name in parts}

    @property
    def texts(self) -> dict[str, bytes]:
        """Files that are written after all others, in their order."""
        return {RELEASE: self.release, SUMS: self.listing}

    @property
    def all_sums(self) -> dict[str, str]:
        """Every file of a copy -> its sha256."""
        return self.sums | {name: hashlib.sha256(text).hexdigest() for name, text in self.texts.items()}


class Destination(Protocol):
    """Where a copy goes."""

    def is_whole(self, contents: Contents) -> bool:
        """Whether exactly this is there already.

        Raises:
            BadInput: something else is, or nothing can be written there.
            WorkFailed: it cannot be reached.
        """
        ...

    def copy(self, contents: Contents) -> None:
        """Lay it down.

        Raises:
            WorkFailed: a file is not what SHA256SUMS says, or the place failed; nothing there passes for whole.
        """
        ...


def read_listing(folder: Path) -> bytes:
    """SHA256SUMS of an exported data set.

    Raises:
        BadInput: there is none.
    """
    if not (folder / SUMS).is_file():
        raise BadInput(f"{folder / SUMS}: missing; run dvc repro export")
    return (folder / SUMS).read_bytes()


def place_of(text: str) -> Destination:
    """A folder, or s3://BUCKET/PREFIX.

    Raises:
        BadInput: it is neither.
    """
    if text.startswith("s3://"):
        if not text.removeprefix("s3://").strip("/").partition("/")[2]:
            raise BadInput(f"{text}: name a prefix in the bucket, as in s3://BUCKET/PREFIX")
        return Prefix(text.rstrip("/"))
    if "://" in text:
        raise BadInput(f"{text}: a release goes to a folder or to s3://BUCKET/PREFIX")
    return Folder(Path(text).resolve())


def _others(label: str, found: dict[str, str | None], contents: Contents) -> None:
    """Refuse what is not of this release. `found`: file -> sha256, None where it is not known."""
    wanted = contents.all_sums
    for name, value in sorted(found.items()):
        if wanted.get(name) != value:
            raise BadInput(f"{label}: {name} is there and is not of this release; choose another place, or empty it")


@dataclass(frozen=True)
class Folder:
    """A folder, by its absolute path, that becomes the copy."""

    path: Path

    @property
    def partial(self) -> Path:
        """What it is called until it is whole."""
        return self.path.with_name(f".{self.path.name}.partial")

    def __str__(self) -> str:
        return str(self.path)

    def is_whole(self, contents: Contents) -> bool:
        label = f"destination {self.path}"
        if self.path.is_relative_to(Path.cwd()):
            raise BadInput(
                f"{label}: inside the repository, where pictures could get into git; choose a folder outside"
            )
        if self.path.exists() and not self.path.is_dir():
            raise BadInput(f"{label}: a file is there; choose another place")
        stores.check_folder(label, self.path.parent)
        files = {str(file.relative_to(self.path)): file for file in self.path.rglob("*") if not file.is_dir()}
        # Other files are refused before any is read.
        unknown: dict[str, str | None] = {name: None for name in files if name not in contents.all_sums}
        _others(label, unknown, contents)
        _others(label, {name: read_digest(file) for name, file in files.items()}, contents)
        if files and len(files) < len(contents.all_sums):
            raise BadInput(f"{label}: holds a part of this release, which no release leaves; empty it")
        return bool(files)

    def copy(self, contents: Contents) -> None:
        try:
            self._copy(contents)
        except OSError as error:
            raise WorkFailed(f"destination {self.path}: {error}; run again, {self.partial} is gone on with") from error

    def _copy(self, contents: Contents) -> None:
        self.partial.mkdir(parents=True, exist_ok=True)
        for file in self.partial.rglob("*"):
            if file.is_file() and str(file.relative_to(self.partial)) not in contents.sums:
                file.unlink()
        for name, value in contents.sums.items():
            target = self.partial / name
            if not (target.is_file() and read_digest(target) == value):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(contents.folder / name, target)
                _expect(contents.folder / name, read_digest(target), value)
        for name, text in contents.texts.items():
            (self.partial / name).write_bytes(text)
        self.partial.replace(self.path)


@dataclass(frozen=True)
class Prefix:
    """A prefix in an S3 bucket; endpoint and credentials are those of the environment, as for the AWS tools."""

    url: str

    def __str__(self) -> str:
        return self.url

    def is_whole(self, contents: Contents) -> bool:
        stores.check_bucket(self.url)
        try:
            found = self._found()
        except (OSError, aws.BotoCoreError, aws.ClientError) as error:
            raise WorkFailed(f"destination {self.url}: cannot be read ({error})") from error
        _others(f"destination {self.url}", found, contents)
        return set(found) == set(contents.all_sums)

    def copy(self, contents: Contents) -> None:
        store, there = _s3(), self._found()

        def upload(name: str) -> None:
            source, value = contents.folder / name, contents.sums[name]
            _expect(source, read_digest(source), value)
            store.put_file(str(source), f"{self.url}/{name}", Metadata={SHA256: value})

        try:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(upload, [name for name in contents.sums if name not in there]))
            for name, text in contents.texts.items():
                store.pipe_file(f"{self.url}/{name}", text, Metadata={SHA256: contents.all_sums[name]})
        except (OSError, aws.BotoCoreError, aws.ClientError) as error:
            raise WorkFailed(f"destination {self.url}: {error}; run again, what is there is kept") from error

    def _found(self) -> dict[str, str | None]:
        """File -> sha256 of what lies below the prefix; None for what no release put there."""
        store = _s3()
        paths = store.find(self.url)
        root = self.url.removeprefix("s3://")
        with ThreadPoolExecutor(AT_ONCE) as pool:
            values = pool.map(lambda path: store.metadata(path).get(SHA256), paths)
            return {path.removeprefix(f"{root}/"): value for path, value in zip(paths, values, strict=True)}


def _s3() -> Any:
    import s3fs

    patience = {"connect_timeout": stores.CONNECT_SECONDS}
    return s3fs.S3FileSystem(config_kwargs=patience, skip_instance_cache=True, use_listings_cache=False)


def _expect(file: Path, found: str, value: str) -> None:
    if found != value:
        raise WorkFailed(f"{file}: not what {SUMS} says; was it changed meanwhile? run dvc repro export")
