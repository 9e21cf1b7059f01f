"""Pictures of every source -> shards, each with its source, licence, consent, group, clip and label. Knows no model.

Pictures in files are packed into shards that stay as they are: a picture keeps the shard in which it was published, and
new ones fill the last shard up and then shards of their own, so that work is in proportion to what is new. A tar, a
table, a video is a shard of its own. First all members are listed with their digests, to know copies across sources and
what was forgotten (pipelines/ingest/listing.py); then each picture is decoded once.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from pydantic import Field

from pipelines.core import products, store
from pipelines.core.params import Section
from pipelines.core.products import INGESTED
from pipelines.core.shards import Counts, Machine, Shard, digest, published_last
from pipelines.core.shards import run as run_shards
from pipelines.core.sources import SOURCES, Source, read_sources
from pipelines.core.tombstones import Tombstones
from pipelines.ingest import listing, readers
from pipelines.ingest.readers.base import Container, Found, Limits, Member, Video, image_id, read_file
from umo import records
from umo.errors import BadInput
from umo.images import MIN_SIDE, ImageError, encode_jpeg, encode_png, read_image


class Params(Section):
    """
    shard_size: pictures in files that share a shard; those that are packed already stay where they are. A tar, a table,
        a video is one shard.
    max_side: a longer picture is scaled down to it (pixels).
    max_pixels: a larger picture is refused before it is decoded.
    max_bytes: a larger file, or member of a tar or a table, is refused.
    max_members: of a container with more pictures, the rest is not read.
    tight_crop_pad: edge padding of tight crops, as a part of each side.
    allow_missing_licence: take pictures that have no licence.
    video: which frames of a video are taken (`Video` in pipelines/ingest/readers/base.py).
    """

    shard_size: int = Field(ge=1)
    max_side: int = Field(ge=64)
    max_pixels: int = Field(ge=4096)
    max_bytes: int = Field(ge=4096)
    max_members: int = Field(ge=1)
    tight_crop_pad: float = Field(ge=0, le=1)
    allow_missing_licence: bool
    video: Video


class Plan(NamedTuple):
    """What a shard is made of: files in order, or a container; and rank in it -> what is kept instead of that copy."""

    of: list[Found] | Container
    copies: Mapping[int, str]


def run(params: Params, machine: Machine) -> None:
    """Read every source of datasets/sources.yaml."""
    sources, tombstones = read_sources(), Tombstones.read()
    everything, others = _find(sources, params.shard_size)
    listings = listing.listings(everything, sources, _limits(params), machine, others)
    copies = listing.copies(listings, params.allow_missing_licence)
    image_ids = {row.image_id for row in tombstones.rows()}
    shards = []
    for name, of in everything.items():
        inputs = _inputs(of, sources, params)
        if copies[name]:
            inputs["copies"] = digest(sorted(copies[name].items()))
        if forgotten := listing.forgotten(listings[name], of, image_ids):
            inputs["forgotten"] = digest(forgotten)
        shards.append(Shard(name, inputs, Plan(of, copies[name])))
    work = partial(_ingest, params, sources, tombstones)
    run_shards("ingest", work, shards, INGESTED, params=Section(), machine=machine)  # params: see _inputs


def _find(
    sources: Mapping[str, Source], shard_size: int
) -> tuple[dict[str, list[Found] | Container], dict[str, Counter[str]]]:
    """By the name of their shard, files in order, then containers; by source, what is not read."""
    every: list[Found] = []
    others: dict[str, Counter[str]] = {}
    containers: dict[str, Container] = {}
    for name, source in sources.items():
        kind, root = source.locate(name)
        held = readers.find(name, source, kind, root)
        others[name] = held.others
        every += held.files
        for container in held.containers:
            containers[f"{kind}-{digest(name, container.path)[:16]}"] = container
    return packed(every, shard_size, published()) | dict(sorted(containers.items())), others


def published() -> dict[str, str]:
    """The manifest, which is the published tables themselves: image_id -> shard of the pictures that came as files.

    Of a shard that is not there, for forget has taken the product away, it is what of it is left in .work. What a table
    that cannot be read held is packed anew, which is said.
    """
    manifest: dict[str, str] = {}
    faults = []
    there = {path.parent.name: path.parent for path in sorted(INGESTED.glob(f"*/{products.IMAGES_TABLE}"))}
    left = {name: folder for name, folder in published_last("ingest", INGESTED).items() if name not in there}
    for shard, folder in (left | there).items():
        path = folder / products.IMAGES_TABLE
        if shard.isdigit() and path.exists():
            try:
                ids = records.read(path, records.IMAGES, ["image_id"])["image_id"].to_pylist()
                manifest |= dict.fromkeys(ids, shard)
            except BadInput as error:
                faults.append(str(error))
    if faults:
        print(f"ingest: what {len(faults)} shards held is packed anew ({faults[0]})", flush=True)
    return manifest


def packed(files: Iterable[Found], size: int, known: Mapping[str, str]) -> dict[str, list[Found]]:
    """Files by the name of their shard: a number.

    Args:
        size: pictures a shard. The last one, while it is less than half full, is filled up before a new one begins, so
            that many small additions do not leave as many small shards.
        known: image_id -> shard of those that are packed; copies of a picture lie in its shard.
    """
    shards: dict[str, dict[str, list[Found]]] = {}
    new: dict[str, list[Found]] = {}
    for file in files:
        of = shards.setdefault(known[file.image_id], {}) if file.image_id in known else new
        of.setdefault(file.image_id, []).append(file)
    last = max(shards, key=int, default="-1")
    room = size - len(shards[last]) if shards and 2 * len(shards[last]) < size else 0
    for place, (identity, copies) in enumerate(sorted(new.items())):
        name = last if place < room else f"{int(last) + 1 + (place - room) // size:04d}"
        shards.setdefault(name, {})[identity] = copies
    return {name: sorted(chain.from_iterable(of.values())) for name, of in sorted(shards.items())}


def _limits(params: Params) -> Limits:
    return Limits(params.max_bytes, params.max_members, params.max_pixels, params.max_side)


def _inputs(of: list[Found] | Container, sources: Mapping[str, Source], params: Params) -> dict[str, str]:
    """Digests of what a shard is made of. How videos are read matters to videos alone."""
    is_video = isinstance(of, Container) and of.kind == "video"
    found = of if isinstance(of, list) else [Found(of.sha256, of.source, of.path, of.file)]
    files, named = {f"{one.source}/{one.path}": one.image_id for one in found}, {one.source for one in found}
    knobs = {"params": digest(params.model_dump(exclude={"shard_size", *(() if is_video else ("video",))}))}
    return files | knobs | {f"source {name}": sources[name].digest_input() for name in named}


def _ingest(
    params: Params, sources: Mapping[str, Source], tombstones: Tombstones, shard: Shard, folder: Path
) -> Counts:
    """Decode what the shard holds, but for what it held before; everything gets a row, good or not."""
    pieces = _pieces(shard, tombstones)
    counts, earlier = Counts({"pictures": 0}, pieces=pieces), _Earlier(shard, pieces)
    assert isinstance(shard.task, Plan)
    with store.Writer(folder) as writer:
        for rank, (row, read) in enumerate(_items(params, sources, shard)):
            if kept := earlier.get(row):
                row, data = kept
                writer.add(row["key"], data)
                writer.rows.append(row)
                counts.made["pictures"] += 1
                continue
            if row["image_id"] in tombstones:  # also where it is a copy or without a licence
                row["label"] = None
            try:
                if row["error"]:
                    raise ImageError(row["error"])
                if not row["licence"] and not params.allow_missing_licence:
                    remedy = f"state it for '{row['source']}' in {SOURCES}, or set ingest.allow_missing_licence"
                    raise ImageError(f"no licence: {remedy}")
                if copy_of := shard.task.copies.get(rank):
                    row |= {"status": "duplicate", "error": f"the same bytes as {copy_of}; one copy is kept"}
                else:
                    data, row["height"], row["width"] = _stored(row, read(), params, sources, tombstones)
                    row["key"] = f"{row['image_id']}.{'jpg' if _is_lossy(data) else 'png'}"
                    writer.add(row["key"], data)
            except ImageError as error:
                row |= {"status": "error", "error": str(error)}
            if row["status"] == "ok":
                counts.made["pictures"] += 1
            else:
                counts.rejects[row["status"]] = counts.rejects.get(row["status"], 0) + 1
                print(f"ingest: {row['source']}/{row['path']}: {row['error']}", flush=True)
            writer.rows.append(row)
    return counts


def _pieces(shard: Shard, tombstones: Tombstones) -> dict[str, str]:
    """Of the files of a shard: what each row and picture depends on beside code. A container is decoded whole."""
    assert isinstance(shard.task, Plan)
    of, copies = shard.task
    if isinstance(of, Container):
        return {}
    common = digest(shard.inputs["params"], tombstones.rows())
    return {
        f"{file.source}/{file.path}": digest(
            file.image_id, file.error, copies.get(rank), shard.inputs[f"source {file.source}"], common
        )
        for rank, file in enumerate(of)
    }


class _Earlier:
    """The pictures that a shard held before and that would come out the same, with their rows."""

    def __init__(self, shard: Shard, pieces: Mapping[str, str]) -> None:
        kept = shard.kept_pieces(pieces)
        self._rows: dict[str, dict] = {}
        if kept:
            assert shard.before
            rows = records.read(shard.before / products.IMAGES_TABLE, records.IMAGES).to_pylist()
            named = {f"{row['source']}/{row['path']}": row for row in rows if row["status"] == "ok"}
            self._rows = {name: row for name, row in named.items() if name in kept}
            self._pictures, self._place = store.Pictures(shard.before.parent), {"shard": shard.before.name}

    def get(self, row: Mapping) -> tuple[dict, bytes] | None:
        """The whole row, and the stored bytes."""
        if found := self._rows.get(f"{row['source']}/{row['path']}"):
            return found, self._pictures.bytes(found | self._place)
        return None


def _items(params: Params, sources: Mapping[str, Source], shard: Shard) -> Iterator[tuple[dict, Callable[[], bytes]]]:
    """Each picture's row and what reads its encoded bytes, in the order of the shard's listing."""
    assert isinstance(shard.task, Plan)
    of, copies = shard.task
    if not isinstance(of, Container):
        for file in of:
            member = Member(file.path, error=file.error)
            row = _describe(member, file.image_id, file.source, sources[file.source], shard.name)
            yield row, partial(read_file, file.file, params.max_bytes)
        return
    source = sources[of.source]
    if of.kind == "video" and copies:
        yield _describe(Member(of.path), digest(of.source, of.path), of.source, source, shard.name), bytes
        return
    for rank, member in enumerate(readers.members(of, source, _limits(params), params.video)):
        row = _describe(member, image_id(of, rank, member), of.source, source, shard.name, of)
        yield row, partial(bytes, member.data)


def _stored(
    row: dict, data: bytes, params: Params, sources: Mapping[str, Source], tombstones: Tombstones
) -> tuple[bytes, int, int]:
    """The bytes to store, and the picture's height and width. A video's frame is encoded already, once is enough."""
    picture = read_image(data, params.max_pixels, 2 * params.max_side)
    if forgotten := tombstones.reason(row["image_id"], picture):
        row["label"] = None
        raise ImageError(forgotten)
    if row["clip"] is None:  # of no video
        picture = _prepare(picture, sources[row["source"]], params)
        data = encode_jpeg(picture) if _is_lossy(data) else encode_png(picture)
    return data, picture.shape[0], picture.shape[1]


def _is_lossy(data: bytes) -> bool:
    """JPEG or WebP, by the first bytes."""
    return data.startswith(b"\xff\xd8\xff") or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def _prepare(picture: np.ndarray, source: Source, params: Params) -> np.ndarray:
    """Scale down to max_side, pad tight crops. What EXIF said (place, camera) does not survive re-encoding."""
    scale = params.max_side / max(picture.shape[:2])
    if scale < 1:
        size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
        if min(size) < MIN_SIDE:
            raise ImageError(f"too narrow: {size[0]}x{size[1]} px once it is scaled down to {params.max_side}: crop it")
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    if source.tight_crop:
        y, x = (round(side * params.tight_crop_pad) for side in picture.shape[:2])
        picture = np.pad(picture, ((y, y), (x, x), (0, 0)), mode="edge")
    return picture


def _describe(
    member: Member, identity: str, name: str, source: Source, shard: str, container: Container | None = None
) -> dict:
    """Where the file itself is the album (a table, a video), its name stands for the folder's."""
    folder, single = str(Path(member.path).parent), member.path
    if container and container.kind != "archive":
        folder = container.path
    if container and container.kind == "video":
        single = container.path
    return {
        "image_id": identity,
        "shard": shard,
        **dict.fromkeys(("key", "width", "height")),  # until it is stored
        "source": name,
        "path": member.path,
        "group": source.album(name, folder, single, member.fields),
        "clip": member.clip,
        "time": member.time,
        "licence": source.licence_of(member.fields),
        "consent": source.consent_of(member.fields),
        "label": source.label_of(name, folder, member.fields),
        "status": "ok",
        "error": member.error,
    }
