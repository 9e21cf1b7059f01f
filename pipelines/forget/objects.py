"""DVC's stores, of which its cache is one and a remote in a folder another: which objects hold somebody, and which
version of the data lists them.

An object is a file named by the md5 of its bytes; a listing (.dir) is one that gives the objects of a folder their
names. What is theirs is an object that the scan finds them in, or that a listing gives a name with an id in it, as
reference crops have; and, where anything else of the same version is theirs, pictures that no scan can tell: contact
sheets and the report.
"""

import json
import re
import subprocess
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import polars as pl
import yaml

from pipelines.core import products
from pipelines.forget.scan import UNREAD
from pipelines.forget.search import Search, files_below
from pipelines.service.repository import LOCK, git

MD5 = re.compile(r"\b[0-9a-f]{32}(?:\.dir)?")
LISTING, SHEETS, PAGE = ".dir", "contact_sheet_*", "report.html"
Version = Mapping[str, str]  # a commit's outputs: path -> md5


@dataclass
class Store:
    """What was found in a store."""

    files: int = 0
    pictures: int = 0
    theirs: dict[str, list[Path]] = field(default_factory=dict)  # md5 -> files
    kinds: dict[Path, frozenset[str]] = field(default_factory=dict)  # of what the scan found in those
    models: dict[str, list[Path]] = field(default_factory=dict)  # md5 of a LoRA that saw them -> its record of that
    unread: list[Path] = field(default_factory=list)


def look(root: Path, search: Search, drop_models: bool, versions: Mapping[str, Version]) -> Store:
    """What a store holds of them; LoRAs that saw them only with `drop_models`, else they are listed apart."""
    runs = root / "runs"  # not objects
    found = search.files(files_below(root, [runs]))
    files: dict[str, list[Path]] = {}
    for path in found:
        files.setdefault(_md5(path), []).append(path)
    store = Store(len(found), sum(one.pictures for one in found.values()))
    store.unread = [path for path, one in found.items() if UNREAD in one.kinds]
    theirs = {_md5(path) for path, one in found.items() if one}
    listings = {md5: names for md5, (path, *_) in files.items() if (names := read_listing(path))}
    for md5, names in listings.items():
        if products.TRAINING not in names:
            theirs |= {member for name, member in names.items() if search.reader.mentioned(name.encode())}
            if not theirs.isdisjoint(names.values()):
                theirs |= {member for name, member in names.items() if fnmatch(name, SHEETS)}
        elif not theirs.isdisjoint({md5, *names.values()}):
            own = {md5, *names.values()}
            store.models[md5] = [path for member in theirs & own for path in files.get(member, ())]
            theirs = theirs | own if drop_models else theirs - own
    broken = losses(theirs, listings)
    outs = [set(version.values()) for version in versions.values()]
    lost_from = set().union(*(out for out in outs if not out.isdisjoint(broken)))
    for md5, names in listings.items():
        if PAGE in names and theirs and (md5 in lost_from or md5 not in set().union(*outs)):
            theirs |= {md5, *names.values()}  # its pictures are scaled, and another output of its version is theirs
    store.theirs = {md5: files[md5] for md5 in sorted(theirs & files.keys())}
    store.kinds = {path: found[path].kinds for paths in store.theirs.values() for path in paths if found[path]}
    return store


def _md5(path: Path) -> str:
    """An object's, of its place ab/cdef...; of anything else, that has no such place, the name."""
    return path.parent.name + path.name if len(path.parent.name) == 2 else path.name


def read_listing(path: Path) -> dict[str, str]:
    """Name -> md5 of a folder's files; empty where it is no listing."""
    if path.suffix != LISTING:
        return {}
    with suppress(ValueError, TypeError, KeyError):
        return {entry["relpath"]: entry["md5"] for entry in json.loads(path.read_bytes())}
    return {}


def losses(gone: set[str], listings: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """What is lost where these objects go: md5 of an output -> how many of its files, in words."""
    counts = {md5: sum(member in gone for member in names.values()) for md5, names in listings.items()}
    parts = {md5: f"{count} of {len(listings[md5])} files" for md5, count in counts.items() if count}
    return parts | dict.fromkeys(gone, "all of it")


def all_versions() -> dict[str, Version]:
    """Of every commit that changed dvc.lock, and of every tag, branch and experiment: full name -> outputs."""
    refs = git("for-each-ref", "--format=%(refname)", missing="").split()
    commits = git("log", "--all", "--format=%H", "--", str(LOCK), missing="").split()
    names = [*refs, *commits]
    asked = "".join(f"{name}:{LOCK}\n" for name in names).encode()
    done = subprocess.run(["git", "cat-file", "--batch"], input=asked, capture_output=True, check=False)
    found: dict[str, Version] = {}
    known: dict[bytes, Version] = {}
    at = 0
    for name in names if done.stdout else ():
        end = done.stdout.index(b"\n", at)
        blob, *kind = done.stdout[at:end].rsplit(b" ", 2)
        at = end + 1
        if len(kind) == 2 and kind[0] == b"blob":  # else "missing"
            text = done.stdout[at : at + int(kind[1])]
            at += len(text) + 1
            if blob not in known:
                known[blob] = outputs(text)
            found[name] = known[blob]
    return found


def outputs(lock: bytes) -> Version:
    """The outputs that a dvc.lock lists; none where it is cut off or of an old form."""
    with suppress(yaml.YAMLError, AttributeError, KeyError, TypeError):
        stages = (yaml.load(lock, getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}).get("stages", {})
        return {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", ()) if "md5" in out}
    return {}


def read_listings(root: Path) -> dict[str, dict[str, str]]:
    """md5 -> names of all listings of a store."""
    return {_md5(path): read_listing(path) for path in files_below(root, [root / "runs"]) if path.suffix == LISTING}


def strangers(root: Path, person_ids: Collection[str], centres: np.ndarray, min_cosine: float) -> np.ndarray:
    """Centres (m, d) of people in any version of a store who are clearly somebody else than these (k, d).

    An experiment may show people whom the workspace does not know, and of many strangers some are as alike as
    `min_cosine`: their faces are nearer to themselves.
    """
    files = {_md5(path): path for path in files_below(root, [root / "runs"])}
    found = [np.zeros((0, centres.shape[1]), np.float32)]
    named = (names.get(products.PEOPLE_TABLE, "") for names in read_listings(root).values())
    for table in {files[md5] for md5 in named if md5 in files}:
        with suppress(OSError, pl.exceptions.PolarsError, ValueError):  # damaged, or of another face model
            rows = pl.read_parquet(table, columns=["person_id", "centre", "keep"], glob=False).filter("keep")
            others = np.array(rows.filter(~pl.col("person_id").is_in(list(person_ids)))["centre"].to_list(), np.float32)
            found.append(others[(others @ centres.T).max(1) < min_cosine])
    return np.unique(np.concatenate(found), axis=0)


def remove(root: Path, gone: set[str]) -> None:
    """Take objects out of a store, and what DVC could not restore without them: its records of runs that name one."""
    names = read_listings(root)
    broken = gone | {md5 for md5, members in names.items() if not gone.isdisjoint(members.values())}
    theirs = [path for path in files_below(root, [root / "runs"]) if _md5(path) in gone]
    for path in sorted(theirs, key=lambda path: path.suffix == LISTING):  # those last, for they name the others
        path.unlink()
    for path in list(files_below(root / "runs")):
        if not broken.isdisjoint(MD5.findall(path.read_text())):
            path.unlink()
            if not any(path.parent.iterdir()):  # DVC stumbles over an empty one
                path.parent.rmdir()
