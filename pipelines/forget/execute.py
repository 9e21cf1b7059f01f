"""Carrying a forget out: tombstones, removal, products made anew, the proof, and what the user has to do."""

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipelines.core.executors import Machine
from pipelines.core.ledger import LEDGER
from pipelines.core.params import load
from pipelines.core.products import TRAINED
from pipelines.core.shards import file_digest
from pipelines.core.sources import PHOTOS
from pipelines.core.tombstones import TOMBSTONES, Tombstone, Tombstones, encoded, hashes
from pipelines.forget import elsewhere, objects
from pipelines.forget.kept import look
from pipelines.forget.note import NOTE, Note
from pipelines.forget.places import CACHE, ROOTS, Clear, found
from pipelines.forget.purge import purge
from pipelines.forget.scan import Seen, Wanted, summary
from pipelines.forget.search import FOLDER, OTHERS, Search
from pipelines.service.privacy import CopiesRemain
from umo.errors import WorkFailed


def finish(note: Note) -> str:
    """Do what the note says, from wherever it stopped; returns the proof and what is left to do.

    Raises:
        WorkFailed: another run is at work, the products could not be made anew, or something was found.
        CopiesRemain: all was done, and something that forget leaves where it is still has them, or may.
    """
    _bury(note)
    for path in note.originals if note.delete_originals else ():
        if path.is_relative_to(PHOTOS) and _is_picture(path, note):
            path.unlink()
    search = searching(note)
    print(f"removed: {purge(search, note)}", flush=True)
    failed = not rebuild(note.rebuild)
    versions = objects.all_versions()
    seen, kept = prove(search)
    had, of_umo = elsewhere.has_them(frozenset(note.image_ids), note.ingested), look(search, note)
    copies = elsewhere.copies(search, versions, had, note.also)
    copies.unseen += [*elsewhere.not_whole(seen), *of_umo.untold]
    kept += of_umo.models
    print("\n".join(summary(seen | copies.seen)), flush=True)
    theirs = [path for part in seen.values() for path in part.found]
    if left := [str(path) for path in (*theirs, *of_umo.goes, *of_umo.lists)]:
        some = ", ".join(left[:5])
        raise WorkFailed(f"the scan found them in {len(left)} files ({some}): remove those and run forget again")
    records = [f"its record of who was seen is kept: {path}" for path in kept]
    rest = "\n".join(["nothing of them was found", *left_to_do(note, versions), *records])
    NOTE.unlink(missing_ok=True)
    shutil.rmtree(FOLDER, ignore_errors=True)  # not before: without it a killed one could not go on
    if failed:
        print(rest, flush=True)
        raise WorkFailed("they are gone, but not all could be made anew (see the stage's message above): run dvc repro")
    if remain := copies.remain(str(path) for path in kept):
        print(rest, flush=True)
        raise CopiesRemain(f"done here; {remain}")
    return rest


def rebuild(stages: list[str]) -> bool:
    """Make products anew; whether that went well."""
    return not stages or subprocess.run(["dvc", "repro", *stages], check=False).returncode == 0


def searching(note: Note) -> Search:
    """The scan of a note, by the workers of params.yaml."""
    return Search(wanted(note), Machine.model_validate(load("machine").model_dump()))


def wanted(note: Note) -> Wanted:
    """What the scan of a note looks for."""
    pad = load("ingest").model_dump()["tight_crop_pad"]
    looks = hashes(filter(None, note.phashes.values()))
    image_ids = frozenset([*note.image_ids, *note.derived])
    others = OTHERS if note.centres and OTHERS.exists() else None
    return Wanted(frozenset(note.person_ids), image_ids, looks, pad, note.vectors(), others, note.min_cosine)


def _bury(note: Note) -> None:
    """Write the tombstones; from here on the pictures are refused."""
    rows = [Tombstone(image_id, note.phashes[image_id]) for image_id in note.image_ids]
    if load("forget").model_dump()["keep_embedding"]:
        embedder = load("measure").model_dump()["faces"]
        pairs = zip(rows, note.vectors(), strict=False)  # a person has more pictures than ids
        kept = [row._replace(embedder=embedder, embedding=encoded(centre)) for row, centre in pairs]
        rows[: len(kept)] = kept
    tombstones = Tombstones.read()
    tombstones.extend(rows)
    tombstones.write()


def prove(search: Search) -> tuple[dict[str, Seen], list[Path]]:
    """Scan every product and cache. A LoRA that saw them stays, and so does its record of whom it saw: these are
    returned beside what was seen.
    """
    leave = found(Clear.KEPT)
    seen = {str(root): search.walk(root, leave) for root in ROOTS if root.exists() and root != CACHE}
    store = objects.look(CACHE, search, False, objects.all_versions())
    theirs = {path: store.kinds.get(path, frozenset()) for paths in store.theirs.values() for path in paths}
    seen[str(CACHE)] = Seen(store.files, store.pictures, theirs, store.unread)
    runs = seen.get("runs", Seen())
    kept = [path for path in runs.found if path.is_relative_to(TRAINED)]
    runs.found = {path: kinds for path, kinds in runs.found.items() if path not in kept}
    return seen, [*kept, *(path for paths in store.models.values() for path in paths)]


def _is_picture(path: Path, note: Note) -> bool:
    """Whether a file is one of their photographs, and not a tar, a table or a video that holds others too."""
    return path.is_file() and file_digest(path) in note.image_ids


def left_to_do(note: Note, versions: Mapping[str, objects.Version]) -> Iterator[str]:
    """What nobody but the user can do, a line each."""
    yield f"commit {TOMBSTONES}, {LEDGER} and dvc.lock; git's history still holds hashes of the files, no pictures"
    for path in filter(Path.is_file, note.originals):
        remedy = "delete it" if _is_picture(path, note) else "take their pictures out of it"
        yield f"original, refused by ingest from now on: {path}: {remedy}"
    for folder in filter(Path.exists, note.models):
        remedy = "train it anew (make pretrain) and withdraw this one"
        if folder.is_relative_to(TRAINED):
            remedy = "dvc repro trains it anew without them; --drop-models removes it"
        yield f"model that saw them: {folder}: {remedy}"
    losses = elsewhere.versions_with_losses(frozenset(note.image_ids), note.ingested, set(note.lost), versions)
    for version in losses:
        yield f"version that still has them: {version}: delete it or let it be known as withdrawn"
    yield from elsewhere.remotes()
