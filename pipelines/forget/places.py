"""What forget touches: every place on this machine that keeps pictures, faces, embeddings or names of people.

This list is the only one: `what_holds` shows what would go of it, `purge` clears it, and the scan that proves it reads
all of it but what is kept. Whoever makes a stage, a page or a flow keep something in a new place registers it by a line
here, with the way it is cleared; a test holds dvc.yaml to the list, and plants somebody in each place and finds them.

What lies elsewhere (originals, models, remotes, copies that were given out, other worktrees) is named, and scanned
where it can be: elsewhere.py. What commands of umo wrote to other folders is known by its files: kept.py.
"""

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from pipelines.core import products
from pipelines.core.cells import ABLATED
from pipelines.core.ledger import LEDGER
from pipelines.core.params import STAGES
from pipelines.core.shards import WORK
from pipelines.core.sources import PHOTOS
from pipelines.core.tombstones import TOMBSTONES
from pipelines.forget.alike import PAGE
from pipelines.forget.note import NOTE
from pipelines.forget.search import KNOWN, OTHERS
from pipelines.service.overrides import SPACE

CACHE, TEMPORARY = Path(".dvc/cache"), Path(".dvc/tmp")
CORRECTIONS = products.DATASETS / "corrections.csv"
ROOTS = (products.DATASETS, Path("runs"), WORK, CACHE, TEMPORARY)  # every place is below one of these


class Clear(StrEnum):
    """How a place is cleared."""

    PIECE = "a piece of it that the scan finds them in goes"
    WHOLE = "it goes, for no scan can tell: latents, scaled pictures, what was killed half-way"
    PARTS = "what is in it is a piece for itself"
    OUT = "an output that the scan finds them in goes, with its entry in dvc.lock"
    REPORT = "it goes where another output goes, for its pictures are scaled"
    MODEL = "as an output, with --drop-models; else it is named"
    ROWS = "their rows go"
    OBJECTS = "an object goes that the scan finds them in, or a name in its listing (objects.py); the others stay"
    RECORDS = "a record of a run goes that names such an object"
    COPIES = "it goes after all else: what could be restored from it"
    KEPT = "it stays, and is not scanned"


class Place(NamedTuple):
    """The first place of the list that has a path is the path's."""

    pattern: str  # of its pieces, from the repository's root
    clear: Clear
    keeps: str  # what is there


def _places() -> Iterator[Place]:
    yield Place(f"{PHOTOS}", Clear.KEPT, "originals: named, and deleted with --delete-originals")
    yield Place(f"{TOMBSTONES}", Clear.KEPT, "what ingest refuses: hashes, and the centre of their faces if asked for")
    yield Place(f"{NOTE}", Clear.KEPT, "what is to go, with the centre of their faces; removed last")
    yield Place(f"{WORK}/digests*", Clear.KEPT, "checksums of files on this disk; no names, no pictures")
    yield Place(f"{KNOWN}", Clear.KEPT, "checksums of what the scan has looked at; removed with the note")
    yield Place(f"{OTHERS}", Clear.KEPT, "centres of the people who stay; removed with the note")
    yield Place(f"{LEDGER}", Clear.ROWS, "faces, their people and splits")
    yield Place(f"{CORRECTIONS}", Clear.ROWS, "what people said of faces and people, by id")
    yield Place("runs/**/.partial", Clear.WHOLE, "what a killed umo evaluate or umo train left: embeddings, latents")
    yield Place("datasets/**/.*.tmp", Clear.OUT, "products that were about to be published")
    yield Place("runs/**/.*.tmp", Clear.OUT, "products that were about to be published")
    for product in (
        products.INGESTED,
        products.MEASURED / "*",
        products.PEOPLE,
        products.SYNTHESISED,
        products.CURATED,
        products.CAPTIONED,
        products.VALIDATED,
        products.EXPORTED,
        products.CASES,
        products.GENERATED / "*",
        products.EVALUATED / "*.json",
        products.EVALUATED / "*/*",
    ):
        yield Place(f"{product}", Clear.OUT, "a product: pictures, faces, embeddings, ids")
    yield Place(f"{products.REPORT}", Clear.REPORT, "contact sheets and drawings, scaled")
    yield Place(f"{ABLATED}/*/*", Clear.WHOLE, "a cell of the ladder: scores by people's ids, and drawings, scaled")
    yield Place(f"{products.TRAINED}/*", Clear.MODEL, "a LoRA, and who was seen in its training")
    yield Place(f"{WORK}/ladder", Clear.WHOLE, "the ladder's workspace: latents, LoRAs, drawings, what the judge saw")
    yield Place(f"{WORK}/train/encoded", Clear.WHOLE, "latents of the training pictures")
    yield Place(f"{WORK}/{products.REPORT.name}/*", Clear.WHOLE, "pictures scaled for the report")
    for ending in ("partial", "tmp", "swept"):
        for depth in ("*", "*/*"):
            yield Place(f"{WORK}/{depth}.{ending}", Clear.WHOLE, "what a killed stage left, or goes on with")
    yield Place(f"{PAGE}", Clear.WHOLE, "thumbnails of people who are alike")
    yield Place(f"{WORK}/browse", Clear.WHOLE, "thumbnails of the page for looking and correcting")
    for folder in ("evaluate", "seen"):
        yield Place(f"{WORK}/{folder}/*", Clear.WHOLE, "what the judge saw: its embeddings are no scan's")
    for stage in STAGES:
        yield Place(f"{WORK}/{stage}/*", Clear.PIECE, "finished shards of a stage")
        yield Place(f"{WORK}/{stage}", Clear.PARTS, "the folder of those")
    yield Place(f"{WORK}/forget", Clear.PARTS, "of forget itself")
    yield Place(f"{WORK}/*", Clear.PIECE, "all else: crops, drawings, listings, photos, a smoke run's copy, benches")
    yield Place(f"{CACHE}/runs", Clear.RECORDS, "runs that DVC could restore")
    yield Place(f"{CACHE}", Clear.OBJECTS, "every version of every product")
    yield Place(f"{TEMPORARY}/exps/tmp*", Clear.COPIES, "DVC's copies of the repository, for experiments: latents too")
    yield Place(f"{TEMPORARY}/exps/*/*", Clear.PIECE, "DVC's queue of experiments, and what it remembers of them")
    yield Place(f"{SPACE}", Clear.COPIES, "the worktree of a flow with other values")


def found(*clear: Clear) -> list[Path]:
    """What is there now of the places that are cleared in these ways, and of no place listed before them."""
    seen: set[Path] = set()
    chosen: list[Path] = []
    for place in _places():
        paths = [path for path in sorted(Path().glob(place.pattern)) if not seen & {path, *path.parents}]
        seen.update(paths)
        chosen += paths if place.clear in clear else []
    return chosen
