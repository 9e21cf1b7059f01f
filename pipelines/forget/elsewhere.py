"""What forget does not take away itself and names instead: originals, trained models, old versions, and copies:
remotes, Prefect's records, other worktrees, releases that were laid down. Copies on this machine are scanned.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from pipelines.core import products
from pipelines.core.ledger import LEDGER
from pipelines.core.seen import models_that_saw
from pipelines.core.sources import read_sources
from pipelines.core.tombstones import TOMBSTONES
from pipelines.forget import objects
from pipelines.forget.places import CACHE, ROOTS
from pipelines.forget.scan import Seen
from pipelines.forget.search import Search
from pipelines.service.commands import ask
from pipelines.service.privacy import WHOLE
from pipelines.service.repository import COPY, LOCK, git

EXPERIMENTS = "refs/exps/"
INTERNAL = (f"{EXPERIMENTS}exec/", f"{EXPERIMENTS}stash", f"{EXPERIMENTS}celery/")  # DVC's own, that no command names
PREFECT, MODELS = WHOLE.parent, Path("models")
DATABASE = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
SHOWN = 5  # of many files or commits, in a line


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


def models(person_ids: frozenset[str], image_ids: frozenset[str]) -> list[Path]:
    """Folders of models whose training saw the person, by the lists that they carry."""
    return models_that_saw(person_ids, [image_id[:16] for image_id in image_ids])


def refs(image_ids: frozenset[str], known: str | None) -> list[str]:
    """git's tags, branches and DVC experiments whose version still has the person, in words."""
    return [_described(ref) for ref in has_them(image_ids, known)]


def has_them(image_ids: frozenset[str], known: str | None) -> list[str]:
    """The full names of those: the version names the pictures, or has the ingested pictures as they were before, by
    their hash if `known`.
    """

    def has(ref: str) -> bool:
        ledger = git("show", f"{ref}:{LEDGER}", missing="")
        if any(image_id[:16] in ledger for image_id in image_ids):
            return True
        return known is not None and ingested_hash(git("show", f"{ref}:{LOCK}", missing="")) == known

    kinds = ("refs/tags", "refs/heads", "refs/remotes", "refs/exps")
    names = git("for-each-ref", "--format=%(refname)", *kinds, missing="").split()
    return [ref for ref in names if not ref.startswith(INTERNAL) and has(ref)]


def ingested_hash(lock: str) -> str | None:
    """The hash of the ingested pictures in a dvc.lock, read as text: quicker than YAML, and old forms do not matter."""
    lines = iter(lock.splitlines())
    for line in lines:
        if line.strip() == f"- path: {products.INGESTED}":
            return next((text.split()[1] for text in lines if text.strip().startswith("md5:")), None)
    return None


def versions_with_losses(
    image_ids: frozenset[str], known: str | None, gone: set[str], versions: Mapping[str, objects.Version]
) -> Iterator[str]:
    """Tags, branches and experiments that had the person, a line each, with what of their files is lost here; how many
    other commits are concerned, in one.
    """
    lost = objects.losses(gone, objects.read_listings(CACHE))
    parts = {
        name: {path: lost[md5] for path, md5 in version.items() if md5 in lost} for name, version in versions.items()
    }
    losses = {name: said for name, said in parts.items() if said}
    had = set(has_them(image_ids, known))
    tips = [name for name in versions if name.startswith("refs/") and not name.startswith(INTERNAL)]
    for ref in sorted({*had, *(losses.keys() & tips)}):
        named = ", ".join(f"{path} ({count})" for path, count in losses.get(ref, {}).items())
        yield f"{_described(ref)}{f'; lost here: {named}' if named else ''}"
    of_tips = [losses.get(ref) for ref in tips]
    if others := [name for name in losses if not name.startswith("refs/") and losses[name] not in of_tips]:
        yield f"{len(others)} other commits, {', '.join(name[:12] for name in others[:SHOWN])}; they lost files here"


def _described(ref: str) -> str:
    kind, _, name = ref.removeprefix("refs/").partition("/")
    if ref.startswith(EXPERIMENTS):  # refs/exps/AB/CDEF.../NAME, of the commit that it began from
        name = name.rpartition("/")[2]
        return f"experiment {name} (dvc exp remove {name})"
    word = {"tags": "tag", "heads": "branch", "remotes": "remote branch"}.get(kind, kind)
    copy = _copy_of(ref)
    return f"{word} {name}" + (f" (a release, with a copy in {copy})" if copy else "")


def _copy_of(ref: str) -> str:
    """Where the copy of a released version was laid down; empty for none."""
    return git("for-each-ref", f"--format=%(contents:trailers:key={COPY},valueonly)", ref, missing="").strip()


def remotes() -> Iterator[str]:
    """DVC's and git's remotes, which may hold pushed versions, with what removes those there.

    A remote that is a folder of this machine and not there, or empty, holds nobody: nothing was ever pushed to it.
    """
    for name, place in _dvc_remotes().items():
        if "://" in place or (Path(place).is_dir() and any(Path(place).iterdir())):
            command = f"dvc gc --workspace --all-tags --all-experiments --cloud --remote {name}"
            yield f"DVC remote {name}, once the tags and experiments that have them are deleted: {command}"
    for tree in _worktrees():
        yield f"git worktree {tree}: bring {TOMBSTONES} there and run forget, which applies it"
    for name in git("remote", missing="").split():
        yield f"git remote {name}: push this commit; its history holds hashes of their files, not their pictures"


def _dvc_remotes() -> dict[str, str]:
    """Name -> URL, or the path of a folder."""
    found = re.findall(r"^remote\.(.+?)\.url=(.+)$", ask("config", "--list"), re.M)
    return {name: place.removeprefix("file://") for name, place in found}


def _worktrees() -> list[Path]:
    """Of this repository, elsewhere."""
    listed = git("worktree", "list", "--porcelain", missing="")
    trees = map(Path, re.findall(r"^worktree (/.*)$", listed, re.M))
    return [tree for tree in trees if not tree.is_relative_to(Path.cwd()) and (tree / "dvc.yaml").exists()]


@dataclass
class Copies:
    """What forget leaves where it is: what was found there, and what could not be looked into."""

    seen: dict[str, Seen] = field(default_factory=dict)  # by name
    unseen: list[str] = field(default_factory=list)  # with the reason

    def remain(self, models: Iterable[str] = ()) -> str:
        """Which still hold the person or may, models beside them; empty where none does."""
        held = [f"{name} ({len(part.found)} files)" for name, part in self.seen.items() if part.found]
        held += [name for name in models if name not in self.seen]
        parts = [f"copies remain in {', '.join(held)}"] if held else []
        return "; ".join([*parts, *([f"not looked into: {', '.join(self.unseen)}"] if self.unseen else [])])


def copies(
    search: Search,
    versions: Mapping[str, objects.Version],
    had: list[str],
    also: Iterable[Path] = (),
    leave: Iterable[Path] = (),
) -> Copies:
    """Scan what lies on this machine.

    Args:
        had: full names of the tags whose version has the person: the copies of those in a bucket do too.
        also: folders that the user named, of which forget takes only what commands of umo wrote.
        leave: what is about to go of them.
    """
    found = Copies()
    for name, place in _dvc_remotes().items():
        if "://" in place:
            found.unseen.append(f"DVC remote {name}")
        elif Path(place).is_dir():
            store = objects.look(Path(place), search, True, versions)
            held = {path: store.kinds.get(path, frozenset()) for paths in store.theirs.values() for path in paths}
            found.seen[f"DVC remote {name}"] = Seen(store.files, store.pictures, held, store.unread)
    for tree in _worktrees():
        for root in (tree / root for root in ROOTS if (tree / root).exists()):
            found.seen[f"git worktree {root}"] = search.walk(root, [tree / TOMBSTONES])
    for tag in git("for-each-ref", "--format=%(refname)", "refs/tags", missing="").split():
        place = _copy_of(tag)
        if "://" in place and tag in had:
            found.unseen.append(f"release {place}")
        elif place and "://" not in place:
            for folder in (Path(place), Path(place).with_name(f".{Path(place).name}.partial")):
                if folder.exists():
                    found.seen[f"release {folder}"] = search.walk(folder)
    for root in filter(Path.exists, (PREFECT, *sorted(MODELS.glob("*")))):
        found.seen[str(root)] = search.walk(root, [WHOLE])
    for root in also:
        found.seen[str(root)] = search.walk(root, leave)
    if not os.environ.get(DATABASE, "sqlite").startswith("sqlite"):
        found.unseen.append(f"Prefect's database ({DATABASE})")
    found.unseen += not_whole(found.seen)
    return found


def not_whole(seen: Mapping[str, Seen]) -> list[str]:
    """Files that could not be read as what they begin as, and were searched as text alone."""
    paths = [path for part in seen.values() for path in part.unread]
    more = [f"{len(paths) - SHOWN} others that are not whole"] if paths[SHOWN:] else []
    return [*(f"{path} (not whole)" for path in paths[:SHOWN]), *more]
