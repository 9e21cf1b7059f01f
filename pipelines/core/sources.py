"""datasets/sources.yaml: where pictures come from and on what terms."""

import importlib.metadata
import os
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, ValidationError

from pipelines.core.params import Section
from umo import formats
from umo.errors import BadInput
from umo.texts import fault, line_of, path_fault, read_yaml
from umo.texts import printable as text

SOURCES = Path("datasets/sources.yaml")
PHOTOS = Path("datasets/photos")
WITHOUT_PHOTOS = (
    "on a machine without the photographs go on from what was pulled: "
    "dvc repro --allow-missing --downstream train@mimr (docs/versions.md); else correct its path"
)
Consent = Literal["unknown", "public", "research", "given"]
Kind = Literal["folder", "archive", "table", "uno", "video"]
SUFFIXES: dict[Kind, frozenset[str]] = {
    "folder": frozenset(suffix for suffixes in formats.SUFFIXES.values() for suffix in suffixes),
    "archive": frozenset({".tar", ".tgz", ".gz", ".tbz2", ".bz2", ".txz", ".xz", ".tzst", ".zst"}),
    "table": frozenset({".parquet", ".arrow", ".feather", ".ipc"}),
    "uno": frozenset({".json"}),
    "video": frozenset({".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".flv", ".wmv", ".ogv"})
    | {".mpg", ".mpeg", ".vob", ".ts", ".mts", ".m2ts"},
}
DRAWN = "drawn"  # of a synthesised picture made from no photograph: it shows nobody who could be asked
CONSENT_WEAKEST_FIRST: tuple[str, ...] = (*get_args(Consent), DRAWN)


def _can_be_opened(path: object) -> object:
    if path == "":
        raise ValueError("names nothing: give a path")
    if isinstance(path, str) and (bad := path_fault(path)):
        raise ValueError(bad)
    return path


def _is_pattern(include: str) -> str:
    try:
        next(Path(os.devnull).glob(include), None)
    except (ValueError, NotImplementedError) as error:
        raise ValueError(f"is no pattern below a folder ({str(error).lower()}): write one such as **/*.jpg") from error
    return include


class Source(Section):
    """
    path: folder of photographs, from the repository's root or inside `package`; of the other kinds, a file or a folder.
    package: an installed package that carries the photographs.
    kind: folder of pictures, archive (WebDataset tars), table (Parquet, or a Hugging Face data set on disk), uno (UNO's
        JSON) or video; by default what the path's suffix says.
    include: which files below the folder, as a glob pattern.
    image_column: of a table.
    licence_column, consent_column, group_column, label_column: columns of a table, or keys of the .json beside a tar's
        picture, that tell a picture's own; where a row says nothing, `licence`, `consent`, `group` and `label` hold.
    licence: on what terms; without one the pictures are refused.
    consent: of the people shown: given (they agreed to this use), research (they took part in a data set released
        for research), public (public figures, freely licensed), unknown.
    group: what is one album: the whole source, each folder (in a table: the file), or each picture; of videos each one
        is an album, or the whole source.
    label: the folder names a person; kept for checking, never read by identify.
    tight_crop: the pictures end at the face and are padded before anyone looks for it.
    credit: who is to be named.
    note: who is shown and who is not, for the data-set card.
    """

    path: Annotated[Path, BeforeValidator(_can_be_opened)]
    package: str | None = None
    kind: Kind | None = None
    include: Annotated[str, AfterValidator(_is_pattern)] = "**/*"
    image_column: str = "image"
    licence_column: str | None = None
    consent_column: str | None = None
    group_column: str | None = None
    label_column: str | None = None
    licence: str | None = None
    consent: Consent = "unknown"
    group: Literal["source", "folder", "file"] = "folder"
    label: Literal["folder"] | None = None
    tight_crop: bool = False
    credit: str | None = None
    note: str | None = None

    @property
    def columns(self) -> dict[str, str]:
        """What each row tells of itself: key of this entry -> column."""
        keys = ("licence_column", "consent_column", "group_column", "label_column")
        return {key: column for key in keys if (column := getattr(self, key))}

    def digest_input(self) -> str:
        """What the source's rows and pictures depend on: neither whom to thank, nor which files it is asked for."""
        return self.model_dump_json(exclude={"credit", "note", "include"})

    def licence_of(self, fields: Mapping[str, object]) -> str | None:
        """A picture's licence: its row's own, else the source's."""
        return self._own("licence_column", fields) or self.licence

    def consent_of(self, fields: Mapping[str, object]) -> str:
        """A picture's consent: its row's own, else the source's. Another word than ours is no consent: unknown."""
        own = self._own("consent_column", fields)
        if own is None:
            return self.consent
        return own.lower() if own.lower() in get_args(Consent) else "unknown"

    def album(self, name: str, folder: str, path: str, fields: Mapping[str, object]) -> str:
        """The `group` of a picture in `folder` of the source `name`."""
        if own := self._own("group_column", fields):
            return f"{name}/{own}"
        return {"source": name, "folder": f"{name}/{folder}", "file": f"{name}/{path}"}[self.group]

    def label_of(self, name: str, folder: str, fields: Mapping[str, object]) -> str | None:
        """What a picture is labelled as, for checking alone."""
        if own := self._own("label_column", fields):
            return f"{name}/{own}"
        return f"{name}/{folder}" if self.label else None

    def _own(self, key: str, fields: Mapping[str, object]) -> str | None:
        """A row's value as text; None where it says nothing."""
        value = fields.get(self.columns.get(key, ""))
        said = isinstance(value, str | int | float) and value == value
        return (text(str(value)).strip() or None) if said else None

    def locate(self, name: str) -> tuple[Kind, Path]:
        """What the source is and where.

        Raises BadInput where the package is not installed, nothing of the kind is there, or the kind has no columns.
        """
        where, root = f"{SOURCES}: source '{name}'", self.path
        if self.package:
            try:
                root = Path(str(importlib.metadata.distribution(self.package).locate_file(self.path)))
            except importlib.metadata.PackageNotFoundError as error:
                raise BadInput(f"{where}: no package {self.package}; run make install") from error
        kind = self.kind or _kind(root)
        pulled = Path("datasets/ingested").is_dir() and not root.exists()
        remedy = WITHOUT_PHOTOS if pulled else "correct its path"
        if kind == "folder" and not root.is_dir():
            raise BadInput(f"{where}: {root} is not a folder; {remedy}")
        if not root.exists() or (kind == "uno" and not root.is_file()):
            raise BadInput(f"{where}: there is no {root} of kind '{kind}'; {remedy}")
        if self.columns and kind not in ("archive", "table"):
            raise BadInput(f"{where}: {' and '.join(self.columns)} mean nothing for kind '{kind}'; remove them")
        return kind, root


def _kind(root: Path) -> Kind:
    if any((root / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        return "table"
    return next((kind for kind, suffixes in SUFFIXES.items() if root.suffix.lower() in suffixes), "folder")


def read_sources(path: Path = SOURCES) -> dict[str, Source]:
    """The sources by name; raises BadInput where the file is missing, not YAML, or has a wrong key or value."""
    try:
        entries = read_yaml(path)
    except FileNotFoundError as error:
        raise BadInput(f"{path}: missing; describe your photographs there (datasets/README.md)") from error
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if not isinstance(entries, dict) or not entries:
        raise BadInput(f"{path}: not a mapping of names to sources (datasets/README.md shows one)")
    for name in entries:
        if inside := [other for other in entries if other.startswith(f"{name}/")]:
            said = (
                f"sources '{name}' and '{inside[0]}': a path such as {inside[0]}/1.jpg could be of either: rename one"
            )
            raise BadInput(f"{path}:{line_of(path, inside[:1])}: {said}")
    return {name: _source(path, name, entry) for name, entry in entries.items()}


def _source(path: Path, name: str, entry: object) -> Source:
    if bad := fault(name, name=True) or (None if name.strip() else "is empty"):
        raise BadInput(f"{path}:{line_of(path, [name])}: a source's name {bad}: write another")
    try:
        return Source.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        said = first["ctx"]["error"] if first["type"] == "value_error" else first["msg"]
        if first["type"] not in ("value_error", "missing"):
            said = f"{said}, found {first['input']!r}"
        if first["type"] in ("string_type", "path_type") and isinstance(first["input"], int | float | date):
            said = f"{said}: put it in quotes"
        where = f"{path}:{line_of(path, [name, *first['loc']])}: source '{name}'"
        keys = "".join(f": '{key}'" for key in first["loc"])
        raise BadInput(f"{where}{keys}: {said} (datasets/README.md describes the keys)") from error
