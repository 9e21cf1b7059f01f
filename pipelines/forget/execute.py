"""Carrying a forget out: tombstones, removal, products made anew, the proof, and what the user has to do."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

from pipelines.core.ledger import LEDGER
from pipelines.core.params import load
from pipelines.core.products import TRAINED
from pipelines.core.shards import file_digest
from pipelines.core.sources import PHOTOS
from pipelines.core.tombstones import TOMBSTONES, Tombstone, Tombstones, encoded, hashes
from pipelines.forget import elsewhere, traces
from pipelines.forget.note import NOTE, Note
from pipelines.forget.places import ROOTS, Clear, found
from pipelines.forget.purge import purge
from pipelines.forget.scan import Scan, Seen, Wanted, summary
from umo.errors import WorkFailed


def finish(note: Note) -> str:
    """Do what the note says, from wherever it stopped; returns the proof and what is left to do.

    Raises:
        WorkFailed: another run is at work, the products could not be made anew, or something was found.
    """
    _bury(note)
    for path in note.originals if note.delete_originals else ():
        if path.is_relative_to(PHOTOS) and _is_picture(path, note):
            path.unlink()
    print(f"removed: {purge(Scan(wanted(note)), note)}", flush=True)
    failed = bool(note.rebuild) and subprocess.run(["dvc", "repro", *note.rebuild], check=False).returncode != 0
    seen, models = prove(note)
    print("\n".join(summary(seen)), flush=True)
    if left := [str(path) for part in seen.values() for path in part.found]:
        some = ", ".join(left[:5])
        raise WorkFailed(f"the scan found them in {len(left)} files ({some}): remove those and run forget again")
    rest = "\n".join(["nothing of them was found", *left_to_do(note), *models])
    NOTE.unlink(missing_ok=True)
    if failed:
        print(rest, flush=True)
        raise WorkFailed("they are gone, but not all could be made anew (see the stage's message above): run dvc repro")
    return rest


def wanted(note: Note) -> Wanted:
    """What the scan of a note looks for."""
    pad = load("ingest").model_dump()["tight_crop_pad"]
    _, others = traces.other_centres(note.person_id)
    looks = hashes(filter(None, note.phashes.values()))
    image_ids = frozenset([*note.image_ids, *note.derived])
    return Wanted(note.person_id, image_ids, looks, pad, note.vector(), others, note.min_cosine)


def _bury(note: Note) -> None:
    """Write the tombstones; from here on the pictures are refused."""
    rows = [Tombstone(image_id, note.phashes[image_id]) for image_id in note.image_ids]
    centre = note.vector()
    if load("forget").model_dump()["keep_embedding"] and centre is not None and rows:
        rows[0] = rows[0]._replace(embedder=load("measure").model_dump()["faces"], embedding=encoded(centre))
    tombstones = Tombstones.read()
    tombstones.extend(rows)
    tombstones.write()


def prove(note: Note) -> tuple[dict[str, Seen], list[str]]:
    """Scan every product and cache; what is found in a LoRA that saw them is named, not counted as left over."""
    scan = Scan(wanted(note))
    leave = found(Clear.KEPT)
    seen = {str(root): scan.walk(root, leave) for root in ROOTS if root.exists()}
    own = {path for path in seen.get("runs", Seen()).found if path.is_relative_to(TRAINED)}
    copies = {file_digest(path) for path in own}  # in DVC's cache
    for part in seen.values():
        part.found = {path: kinds for path, kinds in part.found.items() if file_digest(path) not in copies}
    return seen, [f"its record of who was seen is kept: {path}" for path in sorted(own)]


def _is_picture(path: Path, note: Note) -> bool:
    """Whether a file is one of their photographs, and not a tar, a table or a video that holds others too."""
    return path.is_file() and file_digest(path) in note.image_ids


def left_to_do(note: Note) -> Iterator[str]:
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
    for ref in elsewhere.refs(frozenset(note.image_ids), note.ingested):
        yield f"version that still has them: {ref}: delete it or let it be known as withdrawn"
    yield from elsewhere.remotes()
