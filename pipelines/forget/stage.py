"""`python -m pipelines forget`: removes a person from every product and cache, and proves it. Not a stage.

In this order, and each step can be repeated: a note of what is to go (pipelines/forget/note.py); tombstones, after
which ingest refuses the pictures; the ledger, finished work, products and DVC's cache; the products made anew without
them; a scan of everything (pipelines/forget/scan.py). A killed one is finished by the next.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipelines.core import products
from pipelines.core.params import Section, load
from pipelines.core.shards import WORK
from pipelines.core.sources import PHOTOS
from pipelines.core.tombstones import TOMBSTONES, Tombstones
from pipelines.forget import elsewhere, purge, traces
from pipelines.forget.execute import finish, left_to_do, wanted
from pipelines.forget.note import NOTE, Note
from pipelines.forget.scan import Scan
from pipelines.service import graph
from pipelines.service.leftovers import refuse_others
from pipelines.service.overrides import drop
from pipelines.service.repository import LOCK
from pipelines.service.writer import Run, writing
from umo import faces
from umo.errors import BadInput

FOUND_BY = ("ingest", "measure@ingested", "identify")
REBUILT = (*FOUND_BY, "synthesise", "measure@synthesised", "curate", "caption", "validate", "export", "cases")


class Params(Section):
    """
    keep_embedding: a tombstone keeps the centre of the person's faces, so that identify knows their other photographs
        too and gives them to nobody. Without it only the same pictures are refused: a face kept in order to forget
        somebody is still a face kept.
    """

    keep_embedding: bool


def main(arguments: Sequence[str]) -> str:
    """Forget somebody; returns what was done and what is left to do.

    Raises:
        BadInput: nobody or several people are meant, or the products are not there or not up to date.
        WorkFailed: another run is at work, the products could not be made anew, or the scan found something.
    """
    options = _parser().parse_args(arguments)
    refuse_others()
    with writing(Run("forget")):
        drop()
        purge.refuse_shared_cache()
        said = []
        if pending := Note.read():
            if options.dry_run:
                raise BadInput(f"a forget was interrupted ({NOTE}): finish it first (python -m pipelines forget)")
            said.append(f"finishing what was interrupted\n{finish(pending)}")
            if not options.photo and options.person in (None, pending.person_id):
                return said[0]
        note = _plan(options)
        if options.dry_run:
            return "\n".join([*said, *_preview(note)])
        print(_who(note), flush=True)
        note.write()
        return "\n".join([*said, finish(note)])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines forget",
        description="Remove a person from every product and cache. Without a person: finish what was interrupted, or "
        f"apply {TOMBSTONES} here (after a pull).",
    )
    who = parser.add_mutually_exclusive_group()
    who.add_argument("person", nargs="?", metavar="PERSON_ID", help=f"a person_id of {products.PEOPLE}")
    who.add_argument("--photo", type=Path, metavar="FILE", help="a photograph that shows the person alone")
    parser.add_argument("--dry-run", action="store_true", help="only list what would go")
    parser.add_argument("--drop-models", action="store_true", help="also remove the LoRAs in runs/train that saw them")
    originals = f"also delete the photographs below {PHOTOS}; else they are named"
    parser.add_argument("--delete-originals", action="store_true", help=originals)
    return parser


def _plan(options: argparse.Namespace) -> Note:
    asked = {"drop_models": options.drop_models, "delete_originals": options.delete_originals}
    if not options.person and not options.photo:
        return _of_tombstones(asked)
    if stale := graph.changed(Path(), *FOUND_BY):
        names = ", ".join(sorted(stale))
        raise BadInput(f"not up to date: {names}; somebody in new photographs would be missed: run dvc repro identify")
    measure, pad = load("measure").model_dump(), load("ingest").model_dump()["tight_crop_pad"]
    model = faces.load(measure["faces"])
    if options.photo:
        sure = load("identify").model_dump()["min_face_cosine"]
        found = traces.of_photograph(options.photo, model, measure["min_score"], measure["min_side"], pad, sure)
    else:
        found = traces.of_person(options.person, model.same_person_cosine, pad)
    for other, cosine in found.alike:
        print(f"{other} is alike (cosine {cosine:.2f}): if it is the same person, forget it too", flush=True)
    print(f"{found.n_faces} faces; {found.shared} of the pictures also show somebody else, and go as a whole")
    return Note(
        person_id=found.person_id,
        image_ids=sorted(found.image_ids),
        phashes=dict.fromkeys(sorted(found.image_ids), "") | found.phashes,
        derived=sorted(found.derived),
        centre=found.centre.tolist(),
        min_cosine=model.same_person_cosine,
        ingested=elsewhere.ingested_hash(LOCK.read_text()),
        models=elsewhere.models(found.person_id, found.image_ids),
        originals=elsewhere.originals(found.image_ids),
        rebuild=_stages_there(),
        **asked,
    )


def _of_tombstones(asked: dict[str, Any]) -> Note:
    """All that was forgotten, here or in another copy of the repository."""
    rows = Tombstones.read().rows()
    if not rows:
        raise BadInput(f"nobody named, nothing interrupted, and {TOMBSTONES} is empty: name a person, or --photo FILE")
    image_ids = frozenset(row.image_id for row in rows)
    return Note(
        person_id=None,
        image_ids=sorted(image_ids),
        phashes={row.image_id: row.phash for row in rows},
        derived=sorted(traces.derived_from(None, image_ids)),
        models=elsewhere.models(None, image_ids),
        rebuild=_stages_there(),
        **asked,
    )


def _stages_there() -> list[str]:
    text = LOCK.read_text() if LOCK.exists() else ""
    return [name for name in REBUILT if f"\n  {name}:\n" in text]


def _who(note: Note) -> str:
    derived = f"; {len(note.derived)} scenes were made from them" if note.derived else ""
    return f"{note.person_id or 'somebody'}: {len(note.image_ids)} pictures{derived}"


def _preview(note: Note) -> Iterator[str]:
    yield _who(note)
    work, outs = purge.what_holds(Scan(wanted(note)), note.drop_models)
    yield "would go: all of DVC's cache that this workspace does not use, also what only other branches have"
    yield f"would go: {len(work)} pieces of {WORK}; {', '.join(map(str, outs)) or 'no output'}"
    yield from left_to_do(note)
