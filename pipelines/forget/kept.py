"""What commands of umo keep in folders that their user chose: drawn pictures, copies of photographs, scaled ones,
embeddings, latents, LoRAs, lists of people.

It is known by the files that they write, anywhere in the repository and below the folders that forget is given with
--also. What they wrote of somebody goes, as `FILES` says; what they did not write stays, and is named where the scan
finds them.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pipelines.core.params import STAGES
from pipelines.core.shards import WORK
from pipelines.forget.note import Note
from pipelines.forget.places import Clear, found
from pipelines.forget.scan import Found
from pipelines.forget.search import Search
from pipelines.service.repository import git
from umo.drawing.files import digest, read_key
from umo.errors import BadInput

LIST = "their lines go, with the pictures that were drawn of those cases"
FILES: dict[str, dict[str, str]] = {  # by the command: what it keeps, and how that is cleared
    "umo generate": {"CASES.jsonl": LIST, "images": LIST},
    "umo benchmark run": {".drawn": LIST},  # asked-1.jsonl, images, references; what is laid out goes with a case of it
    "umo benchmark score": {"CASES.jsonl": LIST, "pictures": LIST, "references": Clear.PIECE, ".partial": Clear.WHOLE},
    "umo evaluate": {
        "metrics.json": Clear.OUT,
        "scores.parquet": Clear.OUT,
        "judges.parquet": Clear.OUT,
        "agreement.parquet": Clear.OUT,
        "CASES.jsonl": LIST,
        ".partial": Clear.WHOLE,
    },
    "umo report": {"*.html": Clear.WHOLE},
    "umo train": {
        "training.json": Clear.MODEL,
        "pytorch_lora_weights.safetensors": Clear.MODEL,
        "README.md": Clear.MODEL,
        "live": Clear.MODEL,
        ".partial": Clear.WHOLE,
    },
}
SCORES = [name for name, clear in FILES["umo evaluate"].items() if clear == Clear.OUT]
LORA = [name for name, clear in FILES["umo train"].items() if clear == Clear.MODEL]
ASKED, DRAWN, PARTIAL, IMAGES, PICTURES = "asked-*.jsonl", ".drawn", ".partial", "images", "pictures"
DRAWN_NAME = re.compile(r"\.?(.+)-\d+\.png(?:\.tmp)?")
PAGE = re.compile(rb'<p class="soft">umo [^<]+</p>\s*</main></body>\s*</html>\s*\Z')
SIGNED = 256  # bytes at a page's end
LOCK = "lock"  # of a training, in its .partial


class Case(NamedTuple):
    """A line of a list of cases."""

    text: bytes
    photos: tuple[Path, ...] = ()  # of the people in it
    images: tuple[Path, ...] = ()  # that umo wrote of it


@dataclass
class Kept:
    """What holds the person, or may."""

    goes: list[Path] = field(default_factory=list)  # files and folders
    lists: dict[Path, bytes] = field(default_factory=dict)  # lists of cases, without theirs
    models: list[Path] = field(default_factory=list)  # folders of LoRAs that saw them, and stay
    untold: list[str] = field(default_factory=list)  # pictures of which nothing says whom they show


def refuse_unfit(folders: Iterable[Path]) -> list[Path]:
    """Absolute paths of the folders that a user names; BadInput for one that forget had better not clear."""
    here, chosen = Path.cwd().resolve(), []
    for folder in folders:
        there = folder.resolve()
        if not folder.is_dir() or folder.is_symlink():
            raise BadInput(f"--also {folder}: {'a link' if folder.is_symlink() else 'no such folder'}; name the folder")
        if there in (here, *here.parents, Path.home(), *Path.home().parents):
            raise BadInput(f"--also {folder}: too much: name the folder that a command of umo wrote to")
        if here in there.parents:
            raise BadInput(f"--also {folder}: it lies in the repository, where forget looks by itself; leave it out")
        if (there / ".git").exists():
            raise BadInput(f"--also {folder}: a repository of its own; run forget there, or name a folder in it")
        chosen.append(there)
    return chosen


def look(search: Search, note: Note) -> Kept:
    """What is there now of what commands of umo wrote."""
    kept = Kept()
    lists: dict[Path, list[Case]] = {}
    scores: dict[Path, list[Path]] = {}
    loras: dict[Path, list[Path]] = {}
    drawn: dict[Path, list[Path]] = {}
    for folder, files, inside in _folders(note.also):
        names = {file.name for file in files}
        kept.goes += [folder / PARTIAL] if PARTIAL in inside and _is_partial(folder / PARTIAL) else []
        kept.goes += [file for file in files if file.suffix == ".html" and _is_page(file)]
        if {"metrics.json", "scores.parquet"} <= names and b'"judge"' in (folder / "metrics.json").read_bytes():
            scores[folder] = [folder / name for name in SCORES if name in names]
        if {*LORA} <= {*names, *inside}:
            loras[folder] = [folder / name for name in LORA]
        if signed := [file for file in files if file.suffix == ".png" and read_key(file)]:
            drawn[folder] = signed
        if "CASES.jsonl" in names and (folder in scores or _has_drawn(folder)):
            lists[folder / "CASES.jsonl"] = _cases(folder / "CASES.jsonl")
        lists |= {file: _cases(file) for file in files if folder.name == DRAWN and file.match(ASKED)}
    pictures = (path for cases in lists.values() for case in cases for path in (*case.photos, *case.images))
    asked = {*pictures, *(file for files in (*scores.values(), *loras.values()) for file in files)}
    holding = search.files(sorted(filter(Path.is_file, asked)))
    theirs = {folder for file, cases in lists.items() for folder in _sort(file, cases, search, holding, note, kept)}
    for folder, files in scores.items():
        of_one = {folder} if (folder / "CASES.jsonl").exists() else {folder, folder.parent}  # of several judges
        kept.goes += files if theirs & of_one or any(holding.get(file) for file in files) else []
    for folder, files in loras.items():
        if any(holding.get(file) for file in files):
            kept.goes += files if note.drop_models else []
            kept.models += [] if note.drop_models else [folder]
    told = {file.parent / IMAGES for file in lists} | set(kept.goes)
    for folder, files in drawn.items():
        if untold := [file for file in files if not told & {file, *file.parents}]:
            kept.untold.append(f"{folder} ({len(untold)} pictures that umo drew of somebody)")
    kept.untold += [f"{folder} (not there)" for folder in note.also if not folder.is_dir()]
    kept.goes = list(dict.fromkeys(kept.goes))
    return kept


def _sort(
    file: Path, cases: Sequence[Case], search: Search, holding: dict[Path, Found], note: Note, kept: Kept
) -> Iterator[Path]:
    """Put a list's cases where they belong in `kept`; its folder, where some are theirs."""
    originals = {path.resolve() for path in note.originals}
    theirs: list[Case] = []
    others: list[Case] = []
    for case in cases:
        shown = any(holding.get(path) for path in (*case.photos, *case.images))
        shown |= not originals.isdisjoint(path.resolve() for path in case.photos)
        (theirs if shown or search.reader.mentioned(case.text) else others).append(case)
    if lost := [case for case in others if case.images and not all(map(Path.is_file, case.photos))]:
        kept.untold.append(f"{file} ({len(lost)} cases whose photographs are not there)")
    if theirs:
        kept.lists[file] = b"".join(case.text for case in others)
        copies = {photo for case in theirs for photo in case.photos if holding.get(photo)}
        kept.goes += [path for case in theirs for path in case.images]
        kept.goes += sorted(photo for photo in copies if file.parent in photo.parents)
        yield file.parent


def _cases(file: Path) -> list[Case]:
    """The lines of a list; of one that is no case the text is searched all the same."""
    cases, drawn, folder = [], _drawn(file.parent), file.parent
    for text in file.read_bytes().splitlines(keepends=True):
        case = Case(text)
        with suppress(ValueError, TypeError, KeyError, AttributeError):
            row = json.loads(text)
            people = [[one] if isinstance(one, str) else one for one in row["references"]]
            photos = [photo for person in people for photo in person] + [*filter(None, [row.get("target")])]
            cut = [path for path in map(folder.joinpath, row.get("images") or ()) if path.parent == folder / PICTURES]
            names = (row["case_id"], digest(row["case_id"])[:24])  # as drawing/cases.py names them
            images = [path for name in names for path in drawn.get(name, ())] + [*filter(Path.is_file, cut)]
            there = (Path(os.path.normpath(folder / photo)) for photo in photos)
            case = Case(text, tuple(there), tuple(images))
        cases.append(case)
    return cases


def _drawn(folder: Path) -> dict[str, list[Path]]:
    """By the case or item: pictures beside a list, and what is laid out of them as a benchmark is published."""
    pictures: dict[str, list[Path]] = {}
    for path in sorted((folder / IMAGES).glob("*")):
        if (name := DRAWN_NAME.fullmatch(path.name)) and (path.suffix == ".tmp" or read_key(path)):
            pictures.setdefault(name[1], []).append(path)
    for path in sorted(folder.parent.rglob("*")) if folder.name == DRAWN else ():
        first, *rest = path.relative_to(folder.parent).parts
        if path.is_file() and first != DRAWN:
            number = first.partition("_")[0]  # XVerse's: 12_A_prompt.png
            names = {path.stem, first} if rest else {path.stem, number} if number.isdigit() else {path.stem}
            for one in names:
                pictures.setdefault(one, []).append(path)
    return pictures


def _folders(also: Iterable[Path]) -> Iterator[tuple[Path, list[Path], list[str]]]:
    """Every folder that may be one of umo's, its files, its folders; but registered places and what git tracks."""
    here = Path.cwd()
    places = found(*(clear for clear in Clear if clear not in (Clear.PIECE, Clear.PARTS)))
    stages = (WORK / stage for stage in STAGES)
    skip = {here / path for path in (*places, *stages, *map(Path, (".git", ".venv", ".dvc")))}
    skip |= {here / name for name in git("ls-files", "-z", missing="").split("\0") if name}
    for root in (here, *also):
        for where, folders, names in os.walk(root):
            inside = [path for name in sorted(folders) if (path := Path(where, name)) not in skip]
            folders[:] = [path.name for path in inside if path.name != PARTIAL and not (path / ".git").exists()]
            files = [path for name in sorted(names) if (path := Path(where, name)) not in skip and path.is_file()]
            yield Path(where), files, [path.name for path in inside if not path.is_symlink()]


def _is_partial(folder: Path) -> bool:
    """Of `umo train`, or of what a judge or a model of whole pictures saw, in folders named by a checksum."""
    seen = re.compile("(agreement-)?[0-9a-f]{16}")
    return any(path.name in (LOCK, "run.json") or seen.fullmatch(path.name) for path in folder.iterdir())


def _has_drawn(folder: Path) -> bool:
    return any(read_key(path) for path in (folder / IMAGES).glob("*.png"))


def _is_page(file: Path) -> bool:
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - SIGNED))
        return PAGE.search(opened.read()) is not None
