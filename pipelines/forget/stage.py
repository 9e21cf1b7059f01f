"""`python -m pipelines forget`: removes a person from every product and cache, and proves it. Not a stage.

In this order, and each step can be repeated: a note of what is to go (pipelines/forget/note.py); tombstones, after
which ingest refuses the pictures; the ledger, finished work, products and DVC's cache; the products made anew without
them; a scan of everything (pipelines/forget/scan.py). A killed one is finished by the next.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.core import products
from pipelines.core.params import Section, load
from pipelines.core.shards import WORK
from pipelines.core.sources import PHOTOS
from pipelines.core.tombstones import TOMBSTONES, Tombstones
from pipelines.forget import elsewhere, objects, purge, traces
from pipelines.forget.alike import SHOWN, write_page
from pipelines.forget.execute import finish, left_to_do, searching
from pipelines.forget.kept import look, refuse_unfit
from pipelines.forget.note import NOTE, Note
from pipelines.forget.places import CACHE
from pipelines.forget.search import OTHERS
from pipelines.service import graph
from pipelines.service.leftovers import refuse_others
from pipelines.service.overrides import drop
from pipelines.service.privacy import CopiesRemain
from pipelines.service.repository import LOCK
from pipelines.service.writer import Run, writing
from umo import faces
from umo.errors import BadInput
from umo.faces.base import FaceModel

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
    options.also = refuse_unfit(options.also)
    refuse_others()
    with writing(Run("forget")):
        drop()
        purge.refuse_shared_cache()
        said = []
        if pending := Note.read():
            if options.dry_run:
                raise BadInput(f"a forget was interrupted ({NOTE}): finish it first (python -m pipelines forget)")
            print("finishing what was interrupted", flush=True)
            is_all = not options.photo and set(options.people) <= set(pending.person_ids)
            pending.also = list(dict.fromkeys([*pending.also, *options.also]))
            try:
                said.append(finish(pending))
            except CopiesRemain as error:
                if is_all:
                    raise
                said.append(str(error))
            if is_all:
                return said[0]
        note = _plan(options)
        if options.dry_run:
            said += _preview(note)
            OTHERS.unlink(missing_ok=True)
            return "\n".join(said)
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
    several = f"a person_id of {products.PEOPLE}; several where one person's faces were put into several clusters"
    who.add_argument("people", nargs="*", default=[], metavar="PERSON_ID", help=several)
    who.add_argument("--photo", type=Path, metavar="FILE", help="a photograph that shows the person alone")
    parser.add_argument("--dry-run", action="store_true", help="only list what would go")
    parser.add_argument("--drop-models", action="store_true", help="also remove the LoRAs in runs/train that saw them")
    originals = f"also delete the photographs below {PHOTOS}; else they are named"
    parser.add_argument("--delete-originals", action="store_true", help=originals)
    also = "a folder elsewhere that commands of umo wrote to: what they wrote of the person goes; repeat for others"
    parser.add_argument("--also", type=Path, action="append", default=[], metavar="DIR", help=also)
    return parser


def _plan(options: argparse.Namespace) -> Note:
    asked = {name: getattr(options, name) for name in ("drop_models", "delete_originals", "also")}
    if not options.people and not options.photo:
        return _of_tombstones(asked)
    if stale := graph.changed(Path(), *FOUND_BY):
        names = ", ".join(sorted(stale))
        raise BadInput(f"not up to date: {names}; somebody in new photographs would be missed: run dvc repro identify")
    model, found = _traces(options)
    print(f"{found.n_faces} faces; {found.shared} of the pictures also show somebody else, and go as a whole")
    OTHERS.parent.mkdir(parents=True, exist_ok=True)
    strangers = objects.strangers(CACHE, found.person_ids, found.centres, model.same_person_cosine)
    np.save(OTHERS, np.concatenate([found.others.reshape(-1, strangers.shape[1]), strangers]))
    return Note(
        person_ids=sorted(found.person_ids),
        image_ids=sorted(found.image_ids),
        phashes=dict.fromkeys(sorted(found.image_ids), "") | found.phashes,
        derived=sorted(found.derived),
        centres=found.centres.tolist(),
        min_cosine=model.same_person_cosine,
        ingested=elsewhere.ingested_hash(LOCK.read_text()),
        models=elsewhere.models(found.person_ids, found.image_ids),
        originals=elsewhere.originals(found.image_ids),
        rebuild=_stages_there(),
        **asked,
    )


def _traces(options: argparse.Namespace) -> tuple[FaceModel, traces.Traces]:
    """Whom the user means. A photograph is taken at its word only where nobody else is alike: somebody whose faces were
    put into several clusters is to be forgotten whole.
    """
    measure, pad = load("measure").model_dump(), load("ingest").model_dump()["tight_crop_pad"]
    model = faces.load(measure["faces"])
    if not options.photo:
        found = traces.of_people(options.people, model.same_person_cosine, pad)
    else:
        sure = load("identify").model_dump()["min_face_cosine"]
        try:
            found = traces.of_photograph(options.photo, model, measure["min_score"], measure["min_side"], pad, sure)
        except traces.Unclear as error:
            raise BadInput("; ".join([str(error), *_offer([], error.alike)])) from error
    offer = _offer(sorted(found.person_ids), found.alike) if found.alike else []
    if offer and options.photo and not options.dry_run:
        shown = " and ".join(sorted(found.person_ids)) or "somebody who is nobody's"
        raise BadInput("; ".join([f"{options.photo}: it shows {shown}, and others are alike", *offer]))
    for line in offer:
        print(line, flush=True)
    return model, found


def _offer(person_ids: list[str], alike: list[tuple[str, float]]) -> list[str]:
    """Lines that list everybody alike, with a page of their faces and the command that forgets them as one."""
    shown = alike[: SHOWN - len(person_ids)]
    page = write_page([(name, "") for name in person_ids] + [(name, f"cosine {cosine:.2f}") for name, cosine in shown])
    remedy = "if it is the same person, forget it too"
    lines = [f"{name} is alike (cosine {cosine:.2f}): {remedy}" for name, cosine in shown]
    lines += [f"{len(alike) - len(shown)} others are less alike"] if len(shown) < len(alike) else []
    ids = " ".join([*person_ids, *(name for name, _ in shown)])
    return [*lines, f"their faces: {page}; all of them: python -m pipelines forget {ids}"]


def _of_tombstones(asked: dict[str, Any]) -> Note:
    """All that was forgotten, here or in another copy of the repository."""
    rows = Tombstones.read().rows()
    if not rows:
        raise BadInput(f"nobody named, nothing interrupted, and {TOMBSTONES} is empty: name a person, or --photo FILE")
    image_ids = frozenset(row.image_id for row in rows)
    return Note(
        person_ids=[],
        image_ids=sorted(image_ids),
        phashes={row.image_id: row.phash for row in rows},
        derived=sorted(traces.derived_from([], image_ids)),
        models=elsewhere.models(frozenset(), image_ids),
        rebuild=_stages_there(),
        **asked,
    )


def _stages_there() -> list[str]:
    text = LOCK.read_text() if LOCK.exists() else ""
    return [name for name in REBUILT if f"\n  {name}:\n" in text]


def _who(note: Note) -> str:
    derived = f"; {len(note.derived)} scenes were made from them" if note.derived else ""
    return f"{', '.join(note.person_ids) or 'somebody'}: {len(note.image_ids)} pictures{derived}"


def _preview(note: Note) -> Iterator[str]:
    yield _who(note)
    search, versions = searching(note), objects.all_versions()
    of_umo = look(search, note)
    work, outs, store = purge.what_holds(search, note.drop_models, versions)
    note.lost = list(store.theirs)
    yield f"would go: {len(work)} pieces of {WORK}; {', '.join(map(str, outs)) or 'no output'}"
    yield f"would go: {len(store.theirs)} of {store.files} objects of DVC's cache, and no other"
    yield from (f"would go, for umo wrote it: {path}" for path in of_umo.goes)
    yield from (f"their cases would go out of {path}" for path in of_umo.lists)
    yield from left_to_do(note, versions)
    had = elsewhere.has_them(frozenset(note.image_ids), note.ingested)
    copies = elsewhere.copies(search, versions, had, note.also, [*of_umo.goes, *of_umo.lists])
    copies.unseen += of_umo.untold
    yield copies.remain(map(str, (*note.models, *of_umo.models))) or "no copies elsewhere were found"
