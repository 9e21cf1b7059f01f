"""Addresses of products in their versions: by DVC's hash, so that an old page goes on showing what it spoke of.

An address is OUTPUT/HASH/PATH. The file server (files.py) finds the file in DVC's cache by the hash, or in the
workspace; `forget` reaches both. Only what is meant to be looked at is served.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote

import yaml

from pipelines.core import products
from pipelines.core.shards import WORK

FILES_URL = "UMO_FILES_URL"  # the environment variable that tells a flow where the file server is
VALIDATIONS = WORK / "validate"  # where a failed validation's pages are kept, by the key of the work
SERVED = {
    str(products.VALIDATED): r"data_docs/.+",
    str(VALIDATIONS): r"data_docs/.+",
    str(products.EXPORTED): r"README\.md|contact_sheet_\w+\.jpg",
    str(products.REPORT): r"report\.html",
    str(WORK / "browse"): r"[\w-]+\.html|thumbnails/[\w-]+\.jpg",  # of no version: `now`
}  # output -> which of its files, as a pattern of the whole path
WORKSPACE = "now"  # in place of a hash: as the file lies in the workspace
HASH, KEY = re.compile(r"[0-9a-f]{32}\.dir"), re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Links:
    """Makes addresses."""

    base: str  # of the file server; empty where none runs
    hashes: Mapping[str, str] = field(default_factory=dict)  # output -> its hash in dvc.lock

    @staticmethod
    def read(base: str, root: Path = Path()) -> "Links":
        """The outputs as dvc.lock has them now."""
        lock = root / "dvc.lock"
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        stages = (yaml.load(lock.read_text(), loader) or {}).get("stages", {}) if lock.exists() else {}
        outs = [out for stage in stages.values() for out in stage.get("outs", [])]
        return Links(base.rstrip("/"), {out["path"]: out["md5"] for out in outs if "md5" in out})

    def to(self, output: Path, path: str, version: str = "") -> str:
        """The address of a file in an output, in the version of dvc.lock or another; without a file server its place in
        the workspace.
        """
        if not self.base:
            return str(output / path)
        version = version or self.hashes.get(str(output), WORKSPACE)
        return f"{self.base}/{quote(f'{output}/{version}/{path}')}"


def find(address: str, root: Path, cache: Path) -> Path | None:
    """The file that an address means, here or in DVC's cache; None where there is none or it is not to be seen."""
    address = unquote(address.partition("?")[0]).lstrip("/")
    if ".." in address.split("/"):
        return None
    for output, pattern in SERVED.items():
        version, _, path = address.removeprefix(f"{output}/").partition("/")
        if not address.startswith(f"{output}/") or not re.fullmatch(pattern, path):
            continue
        if version == WORKSPACE:
            return _inside(root / output, path)
        if output == str(VALIDATIONS):
            return _inside(root / output / version, path) if KEY.fullmatch(version) else None
        return _cached(cache, version, path) if HASH.fullmatch(version) else None
    return None


def _inside(folder: Path, path: str) -> Path | None:
    found = (folder / path).resolve()
    return found if found.is_relative_to(folder.resolve()) and found.is_file() else None


def _cached(cache: Path, version: str, path: str) -> Path | None:
    try:
        members = json.loads(_file(cache, version).read_text())
    except (FileNotFoundError, ValueError):
        return None
    files = (_file(cache, member["md5"]) for member in members if member["relpath"] == path)
    return next(filter(Path.is_file, files), None)


def _file(cache: Path, md5: str) -> Path:
    return cache / "files" / "md5" / md5[:2] / md5[2:]
