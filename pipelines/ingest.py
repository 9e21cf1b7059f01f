"""Photographs -> shards of pictures, each with its source, licence, consent, group and label. Knows no model."""

import os
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from pydantic import Field

from pipelines import store
from pipelines.params import Section
from pipelines.products import INGESTED
from pipelines.shards import Counts, Machine, Shard, digest, file_digest
from pipelines.shards import run as run_shards
from pipelines.sources import SOURCES, Source, read_sources
from pipelines.tombstones import Tombstones
from umo.errors import BadInput
from umo.images import MIN_SIDE, ImageError, encode_jpeg, encode_png, read_image

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".pgm", ".ppm", ".bmp", ".tif", ".tiff"}
LOSSY = {".jpg", ".jpeg", ".webp"}


class Params(Section):
    """
    shards: pictures are spread over so many shards by their content, so that a new photo touches one of them.
    max_side: a longer picture is scaled down to it (pixels).
    max_pixels: a larger picture is refused before it is decoded.
    tight_crop_pad: edge padding of tight crops, as a part of each side.
    allow_missing_licence: take pictures of sources that state no licence.
    """

    shards: int = Field(ge=1, le=4096)
    max_side: int = Field(ge=64)
    max_pixels: int = Field(ge=4096)
    tight_crop_pad: float = Field(ge=0, le=1)
    allow_missing_licence: bool


class Found(NamedTuple):
    """A file to ingest."""

    image_id: str
    source: str
    path: str
    file: Path


def run(params: Params, machine: Machine) -> None:
    """Read every source of datasets/sources.yaml."""
    sources, tombstones = read_sources(), Tombstones.read()
    found = [file for name, source in sources.items() for file in _files(name, source)]
    members: dict[int, list[Found]] = {}
    for file in found:
        members.setdefault(int(file.image_id[:8], 16) % params.shards, []).append(file)
    shards = [
        Shard(
            f"{bucket:04d}",
            {f"{file.source}/{file.path}": file.image_id for file in files}
            | {file.source: sources[file.source].model_dump_json() for file in files}
            | {"forgotten": digest(sorted(file.image_id for file in files if file.image_id in tombstones))},
            files,
        )
        for bucket, files in sorted(members.items())
    ]
    run_shards(
        "ingest", partial(_ingest, params, sources, tombstones), shards, INGESTED, params=params, machine=machine
    )


def _files(name: str, source: Source) -> Iterator[Found]:
    """The source's pictures in order; an unreadable file still gets a row, by the digest of its path."""
    folder = source.folder(name)
    found = sorted(path for path in folder.glob(source.include) if path.is_file())
    files = [path for path in found if path.suffix.lower() in SUFFIXES]
    others = Counter(path.suffix.lower() for path in found if path.suffix.lower() not in {*SUFFIXES, "", ".md"})
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
        print(f"ingest: {name}: passed over {kinds}: convert pictures among them to JPEG, PNG or WebP")
    if not files:
        kinds = ", ".join(sorted(SUFFIXES))
        raise BadInput(f"{SOURCES}: source '{name}': no picture in {folder} fits '{source.include}' ({kinds})")
    for path in files:
        try:
            identity = file_digest(path)
        except OSError:
            identity = digest(name, str(path))
        yield Found(identity, name, _text(path.relative_to(folder)), path)


def _text(path: Path) -> str:
    """The path as text; bytes of a name that are not UTF-8 are written out."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _ingest(params: Params, sources: dict[str, Source], tombstones: Tombstones, shard: Shard, folder: Path) -> Counts:
    """Decode the shard's files; every file gets a row, good or not."""
    counts = Counts({"pictures": 0})
    rows, pictures = [], {}
    seen: set[str] = set()
    assert isinstance(shard.task, list)
    for file in sorted(shard.task):
        row = _describe(file, sources[file.source], shard.name)
        try:
            _check(file, sources[file.source], params, seen)
            picture = read_image(file.file, params.max_pixels, 2 * params.max_side)
            if forgotten := tombstones.reason(file.image_id, picture):
                row["label"] = None
                raise ImageError(forgotten)
            picture = _prepare(picture, file, sources, params)
        except ImageError as error:
            row |= {"status": "error", "error": str(error)}
        except _DuplicateError as error:
            row |= {"status": "duplicate", "error": str(error)}
        else:
            seen.add(file.image_id)
            lossy = file.file.suffix.lower() in LOSSY
            row["key"] = f"{file.image_id}.{'jpg' if lossy else 'png'}"
            row["height"], row["width"] = picture.shape[:2]
            pictures[row["key"]] = encode_jpeg(picture) if lossy else encode_png(picture)
        if row["status"] == "ok":
            counts.made["pictures"] += 1
        else:
            counts.rejects[row["status"]] = counts.rejects.get(row["status"], 0) + 1
            print(f"ingest: {file.source}/{file.path}: {row['error']}", flush=True)
        rows.append(row)
    store.write(folder, rows, pictures)
    return counts


class _DuplicateError(Exception):
    pass


def _check(file: Found, source: Source, params: Params, seen: set[str]) -> None:
    if not source.licence and not params.allow_missing_licence:
        raise ImageError(f"no licence: state it for '{file.source}' in {SOURCES}, or set ingest.allow_missing_licence")
    if file.image_id in seen:
        raise _DuplicateError("the same bytes as another file; one copy is kept")


def _prepare(picture: np.ndarray, file: Found, sources: dict[str, Source], params: Params) -> np.ndarray:
    """Scale down to max_side, pad tight crops. What EXIF said (place, camera) does not survive re-encoding."""
    scale = params.max_side / max(picture.shape[:2])
    if scale < 1:
        size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
        if min(size) < MIN_SIDE:
            raise ImageError(f"too narrow: {size[0]}x{size[1]} px once it is scaled down to {params.max_side}: crop it")
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    if sources[file.source].tight_crop:
        y, x = (round(side * params.tight_crop_pad) for side in picture.shape[:2])
        picture = np.pad(picture, ((y, y), (x, x), (0, 0)), mode="edge")
    return picture


def _describe(file: Found, source: Source, shard: str) -> dict:
    parent = str(Path(file.path).parent)
    group = {"source": file.source, "folder": f"{file.source}/{parent}", "file": f"{file.source}/{file.path}"}
    return {
        "image_id": file.image_id,
        "shard": shard,
        "key": None,
        "width": None,
        "height": None,
        "source": file.source,
        "path": file.path,
        "group": group[source.group],
        "clip": None,
        "time": None,
        "licence": source.licence,
        "consent": source.consent,
        "label": f"{file.source}/{parent}" if source.label else None,
        "status": "ok",
        "error": None,
    }
