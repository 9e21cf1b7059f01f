"""What forget cannot take away itself and names instead: originals, trained models, old versions, remotes."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from pipelines.core import products
from pipelines.core.ledger import LEDGER
from pipelines.core.sources import read_sources
from pipelines.core.tombstones import TOMBSTONES
from pipelines.service.commands import ask
from pipelines.service.repository import COPY, LOCK, git

EXPERIMENTS = "refs/exps/"
INTERNAL = (f"{EXPERIMENTS}exec/", f"{EXPERIMENTS}stash", f"{EXPERIMENTS}celery/")  # DVC's own, that no command names


def originals(image_ids: frozenset[str]) -> list[Path]:
    """The files that the pictures were read from and that are still there: photographs, or what holds them."""
    images = products.images(products.INGESTED).filter(pl.col("image_id").is_in(list(image_ids)))
    sources = read_sources()
    places = images.select("source", "path").sort("source", "path").iter_rows()
    files = (_original(sources[source].locate(source)[1], path) for source, path in places if source in sources)
    return list(dict.fromkeys(filter(None, files)))


def _original(root: Path, path: str) -> Path | None:
    """The picture's own file, or the tar, table or video that its path begins with."""
    root = root if root.is_dir() else root.parent
    if (root / path).is_file():
        return root / path
    file = root / path.rpartition("#")[0]
    return next((part for part in (file, *file.parents) if part.is_file() and part.is_relative_to(root)), None)


def models(person_id: str | None, image_ids: frozenset[str]) -> list[Path]:
    """Folders of models whose training saw the person, by the lists that they carry."""
    short = {image_id[:16] for image_id in image_ids}
    found = []
    for path in sorted([*products.TRAINED.glob(f"*/{products.TRAINING}"), *Path("models").glob("*/people.json")]):
        listed = json.loads(path.read_text())
        people = listed["people"] if path.name == products.TRAINING else listed
        faces = [face for own in people.values() for face in own] if isinstance(people, dict) else []
        if person_id in people or any(face.split("-")[0] in short for face in faces):
            found.append(path.parent)
    return found


def refs(image_ids: frozenset[str], known: str | None) -> list[str]:
    """git's tags, branches and DVC experiments whose version still has the person: it names the pictures, or has the
    ingested pictures as they were before, by their hash if `known`.
    """

    def has_them(ref: str) -> bool:
        ledger = git("show", f"{ref}:{LEDGER}", missing="")
        if any(image_id[:16] in ledger for image_id in image_ids):
            return True
        return known is not None and ingested_hash(git("show", f"{ref}:{LOCK}", missing="")) == known

    kinds = ("refs/tags", "refs/heads", "refs/remotes", "refs/exps")
    names = git("for-each-ref", "--format=%(refname)", *kinds, missing="").split()
    return [_described(ref) for ref in names if not ref.startswith(INTERNAL) and has_them(ref)]


def ingested_hash(lock: str) -> str | None:
    """The hash of the ingested pictures in a dvc.lock, read as text: quicker than YAML, and old forms do not matter."""
    lines = iter(lock.splitlines())
    for line in lines:
        if line.strip() == f"- path: {products.INGESTED}":
            return next((text.split()[1] for text in lines if text.strip().startswith("md5:")), None)
    return None


def _described(ref: str) -> str:
    kind, _, name = ref.removeprefix("refs/").partition("/")
    if ref.startswith(EXPERIMENTS):  # refs/exps/AB/CDEF.../NAME, of the commit that it began from
        name = name.rpartition("/")[2]
        return f"experiment {name} (dvc exp remove {name})"
    word = {"tags": "tag", "heads": "branch", "remotes": "remote branch"}[kind]
    copy = git("for-each-ref", f"--format=%(contents:trailers:key={COPY},valueonly)", ref, missing="").strip()
    return f"{word} {name}" + (f" (a release, with a copy in {copy})" if copy else "")


def remotes() -> Iterator[str]:
    """DVC's and git's remotes, which may hold pushed versions, with what removes those there.

    A remote that is a folder of this machine and not there, or empty, holds nobody: nothing was ever pushed to it.
    """
    for name, place in re.findall(r"^remote\.(.+?)\.url=(.+)$", ask("config", "--list"), re.M):
        if "://" in place or (Path(place).is_dir() and any(Path(place).iterdir())):
            command = f"dvc gc --workspace --all-tags --all-experiments --cloud --remote {name}"
            yield f"DVC remote {name}, once the tags and experiments that have them are deleted: {command}"
    for tree in map(Path, re.findall(r"^worktree (/.*)$", git("worktree", "list", "--porcelain", missing=""), re.M)):
        if not tree.is_relative_to(Path.cwd()) and (tree / "dvc.yaml").exists():
            yield f"git worktree {tree}: bring {TOMBSTONES} there and run forget, which applies it"
    for name in git("remote", missing="").split():
        yield f"git remote {name}: push this commit; its history holds hashes of their files, not their pictures"
