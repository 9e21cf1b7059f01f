"""datasets/sources.yaml: where photographs come from and on what terms."""

import importlib.metadata
from pathlib import Path
from typing import Literal, get_args

import yaml
from pydantic import ValidationError

from pipelines.params import Section
from umo.errors import BadInput

SOURCES = Path("datasets/sources.yaml")
Consent = Literal["unknown", "public", "research", "given"]
DRAWN = "drawn"  # of a synthesised picture made from no photograph: it shows nobody who could be asked
CONSENT_WEAKEST_FIRST: tuple[str, ...] = (*get_args(Consent), DRAWN)


class Source(Section):
    """
    path: folder of photographs, from the repository's root or inside `package`.
    package: an installed package that carries the photographs.
    include: which files below the folder, as a glob pattern.
    licence: on what terms; without one the pictures are refused.
    consent: of the people shown: given (they agreed to this use), research (they took part in a data set released
        for research), public (public figures, freely licensed), unknown.
    group: what is one album: the whole source, each folder, or each file.
    label: the folder names a person; kept for checking, never read by identify.
    tight_crop: the pictures end at the face and are padded before anyone looks for it.
    credit: who is to be named.
    note: who is shown and who is not, for the data-set card.
    """

    path: Path
    package: str | None = None
    include: str = "**/*"
    licence: str | None = None
    consent: Consent = "unknown"
    group: Literal["source", "folder", "file"] = "folder"
    label: Literal["folder"] | None = None
    tight_crop: bool = False
    credit: str | None = None
    note: str | None = None

    def folder(self, name: str) -> Path:
        """Where the photographs are.

        Raises:
            BadInput: the package is not installed, or the folder is not there.
        """
        folder = self.path
        if self.package:
            try:
                folder = Path(str(importlib.metadata.distribution(self.package).locate_file(self.path)))
            except importlib.metadata.PackageNotFoundError as error:
                remedy = "run make install"
                raise BadInput(f"{SOURCES}: source '{name}': no package {self.package}; {remedy}") from error
        if not folder.is_dir():
            raise BadInput(f"{SOURCES}: source '{name}': {folder} is not a folder; correct its path")
        return folder


def read_sources(path: Path = SOURCES) -> dict[str, Source]:
    """The sources by name.

    Raises:
        BadInput: the file is missing, not YAML, or an entry has a wrong key or value.
    """
    try:
        entries = yaml.safe_load(path.read_text())
        return {name: Source(**entry) for name, entry in entries.items()}
    except FileNotFoundError as error:
        raise BadInput(f"{path}: missing; describe your photographs there (datasets/README.md)") from error
    except ValidationError as error:
        faults = "; ".join(f"'{'.'.join(map(str, fault['loc']))}': {fault['msg']}" for fault in error.errors())
        raise BadInput(f"{path}: {faults} (datasets/README.md describes the keys)") from error
    except (yaml.YAMLError, AttributeError, TypeError) as error:
        raise BadInput(f"{path}: not a mapping of names to sources ({' '.join(str(error).split())})") from error
