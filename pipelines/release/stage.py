"""`python -m pipelines release VERSION`: this commit's exported data set becomes a version that others can get.

In this order, and each step can be repeated: everything that could be wrong is looked at and nothing is written; the
data set is pushed to DVC's remote; a copy is laid down where one is asked for; last, the commit gets the annotated tag
`multi-identity-sets@vVERSION`, the form in which DVC (and GTO) know versions of an artifact. What fails before the tag
leaves no version behind, and the next run goes on.

Only `datasets/exported` is pushed. It is all that `dvc get`, `dvc import` and `dvc.api` need, and what was made to be
handed over; the products before it hold every photograph, also of people who were turned away, and an embedding of
every face, which are nobody's business but the makers'. Who wants their own remote to hold those too says `dvc push`.
"""

import argparse
import configparser
import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import yaml

from pipelines.core import products
from pipelines.core.locks import alone
from pipelines.core.shards import WORK
from pipelines.release import stores
from pipelines.release.copies import SUMS, Contents, Place, place_of
from pipelines.release.hub import SCHEME, Hub, hub_of
from pipelines.service import graph, repository
from pipelines.service.commands import dvc, reason
from pipelines.service.leftovers import refuse_others
from pipelines.service.repository import LOCK, NOTE
from pipelines.service.writer import Run, writing
from umo.errors import BadInput, WorkFailed

NAME = "multi-identity-sets"  # of the artifact in dvc.yaml
EXPORT = "export"
CONFIG = ".dvc/config"

Log = Callable[[str], None]


@dataclass(frozen=True)
class Released:
    """A version that others can get."""

    version: str  # without the v
    tag: str  # of git
    revision: str  # the commit, whole
    remote: str  # DVC's name of it
    destination: str | None  # where a copy lies; None where none was asked for
    files: int  # of the data set


@dataclass(frozen=True)
class Plan:
    """A release that nothing speaks against."""

    released: Released
    contents: Contents
    destination: Place | Hub | None
    whole: bool  # the copy is there already


def main(arguments: Sequence[str]) -> str:
    """Release; returns what was done, or with --dry-run what would be. Raises as `release` does."""
    options = _parser().parse_args(arguments)
    repository.check()
    with writing(Run("release")):
        if options.dry_run:
            found = plan(options.version, options.to, options.remote, public=options.public).released
            return f"{found.tag} could be released: {found.files} files at {found.revision[:12]}; nothing was done"
        done = release(options.version, options.to, options.remote, public=options.public)
    return f"{done.tag}: {done.files} files at {done.revision[:12]}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines release",
        description=f"Push {products.EXPORTED} of this commit to a DVC remote, copy it where asked, tag it.",
    )
    parser.add_argument("version", metavar="VERSION", help="as in 1.2.0 (semver.org)")
    copy = "also lay down a copy: a new folder, s3://BUCKET/PREFIX or hf://datasets/OWNER/NAME"
    parser.add_argument("--to", metavar="PLACE", help=copy)
    parser.add_argument(
        "--public", action="store_true", help="all may read the repository on the hub (default: nobody)"
    )
    parser.add_argument("--remote", metavar="NAME", help="a remote of DVC (default: the default one)")
    parser.add_argument("--dry-run", action="store_true", help="only look whether it could be released")
    return parser


def release(
    version: str,
    destination: str | None = None,
    remote: str | None = None,
    log: Log = print,
    *,
    public: bool = False,
) -> Released:
    """Push, copy, tag.

    Args:
        version: as in 1.2.0, or v1.2.0.
        destination: a folder, s3://BUCKET/PREFIX or hf://datasets/OWNER/NAME for a copy; None: no copy.
        remote: of DVC; None: the default one.
        log: takes a line of what is being done.
        public: all may read the repository on the hub.

    Raises:
        BadInput: it is not fit to be released, or settings are wrong; nothing was done.
        WorkFailed: a store failed, or another run is at work; nothing is tagged, and the next run goes on.
    """
    repository.check()
    with alone("release", WORK / "release.lock"):
        planned = plan(version, destination, remote, log, public=public)
        done = planned.released
        log(f"pushing {products.EXPORTED} to the DVC remote {done.remote}")
        _push(done.remote)
        if planned.destination and planned.whole:
            log(f"the copy is in {done.destination} already")
        elif planned.destination:
            log(f"copying {done.files} files to {done.destination}")
            planned.destination.copy(planned.contents)
        _tag(done)
    log(f"tagged {done.tag}; for others to see it: git push ORIGIN {done.tag}")
    for line in _how_to_get(done):
        log(line)
    return done


def plan(version: str, destination: str | None, remote: str | None, log: Log = print, *, public: bool = False) -> Plan:
    """Look at everything that could be wrong, and write nothing. Raises as `release` does."""
    version, tag = _version(version)
    place = _place(destination, public)
    _refuse_unfit()
    commit = repository.git("rev-parse", "HEAD")
    name, address = stores.check_remote(remote)
    log(f"DVC remote {name}: {address}")
    sums = products.EXPORTED / SUMS
    if not sums.is_file():
        raise BadInput(f"{sums}: missing; run dvc repro {EXPORT}")
    listing = sums.read_bytes()
    contents = Contents(products.EXPORTED, listing, _description(version, tag, commit, listing))
    whole = place.is_whole(contents) if place else False
    for line in _terms():
        log(line)
    released = Released(version, tag, commit, name, place.name if place else None, len(contents.sums))
    return Plan(released, contents, place, whole)


def _place(text: str | None, public: bool) -> Place | Hub | None:
    if text and text.startswith(SCHEME):
        return hub_of(text, public)
    if public:
        raise BadInput(f"--public is for {SCHEME}: who may read {text or 'a version without a copy'} is set there")
    return place_of(text) if text else None


def _version(text: str) -> tuple[str, str]:
    """The version without its v, and the tag, which is not there yet."""
    from gto.versions import SemVer

    version = text.removeprefix("v")
    if not SemVer.is_valid(f"v{version}"):
        raise BadInput(f"version '{text}' is none: write three numbers, as in 1.2.0 (semver.org)")
    tag = f"{NAME}@v{version}"
    if found := repository.git("rev-parse", "--quiet", "--verify", f"refs/tags/{tag}^{{commit}}", missing=""):
        raise BadInput(f"version {version} is taken (tag {tag}, commit {found[:12]}): choose a higher one")
    return version, tag


def _refuse_unfit() -> None:
    """Raise BadInput where git could not tag, or DVC not find the data set by the tag; or where somebody is to be taken
    out of the data set, it failed its validation, or it is not of this commit.
    """
    artifact = (yaml.safe_load(Path("dvc.yaml").read_text()) or {}).get("artifacts", {}).get(NAME, {})
    if artifact.get("path") != str(products.EXPORTED):
        raise BadInput(f"dvc.yaml: no artifact {NAME} with the path {products.EXPORTED}; take the one of this project")
    if not repository.git("var", "GIT_COMMITTER_IDENT", missing=""):
        raise BadInput("git does not know who tags: git config user.name and user.email")
    if changed := repository.changes():
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise BadInput(f"not committed: {', '.join(changed[:3])}{more}; a version is a commit: commit first")
    for file in (str(LOCK), CONFIG, "dvc.yaml"):
        if not repository.git("ls-files", file):
            raise BadInput(f"not committed: {file}, without which others cannot get the data; git add, and commit")
    if NOTE.exists():
        raise BadInput(f"a forget was interrupted ({NOTE}): finish it first (python -m pipelines forget)")
    results = products.VALIDATED / products.VALIDATION
    faults = json.loads(results.read_text())["faults"] if results.is_file() else []
    if faults:
        more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise BadInput(f"validation failed: {faults[0]}{more} ({results}); mend it, and run dvc repro {EXPORT}")
    refuse_others()
    if stale := graph.changed(Path(), "--with-deps", EXPORT):
        raise BadInput(f"not up to date: {', '.join(sorted(stale))}; run dvc repro {EXPORT}, and commit {LOCK}")


def _terms() -> Iterator[str]:
    """How many sets come under which licence and consent."""
    files = sorted(products.EXPORTED.glob("*.parquet"))
    if not files:
        raise BadInput(f"{products.EXPORTED}: no Parquet file; run dvc repro {EXPORT}")
    sets = pl.read_parquet(files, columns=["licence", "consent"])
    for licence, consent, count in sets.group_by("licence", "consent").len().sort("licence", "consent").iter_rows():
        yield f"{count} sets: licence {licence or 'none stated'}, consent {consent or 'none stated'}"


def _description(version: str, tag: str, commit: str, listing: bytes) -> bytes:
    """RELEASE.json of a copy. It has no date, so that the same release is the same bytes; the tag has one."""
    sums = hashlib.sha256(listing).hexdigest()
    entries = {"name": NAME, "version": version, "tag": tag, "commit": commit, "sha256sums": sums}
    return (json.dumps(entries, indent=1) + "\n").encode()


def _push(remote: str) -> None:
    command = dvc("push", "--remote", remote, str(products.EXPORTED))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise WorkFailed(f"dvc push to {remote} failed: {reason(done.stderr.splitlines())}; nothing is tagged")
    stores.complete(remote, products.EXPORTED)


def _tag(done: Released) -> None:
    """On the commit that was looked at; the message says where copies are, for `forget` to name them."""
    if (now := repository.git("rev-parse", "HEAD")) != done.revision or repository.changes():
        raise WorkFailed(f"the repository changed meanwhile (now at {now[:12]}): nothing is tagged; run again")
    trailers = f"Remote: {done.remote}" + (f"\n{repository.COPY}: {done.destination}" if done.destination else "")
    message = f"{NAME} {done.version}\n\n{trailers}"
    repository.git("tag", "--annotate", "--message", message, done.tag, done.revision)


def _how_to_get(done: Released) -> Iterator[str]:
    config = configparser.ConfigParser()
    config.read_string("\n".join(map(str.strip, repository.git("show", f"HEAD:{CONFIG}").splitlines())))
    remote = "" if config.get("core", "remote", fallback=None) == done.remote else f" --remote {done.remote}"
    yield f"to get it: dvc artifacts get REPOSITORY {NAME} --rev v{done.version}{remote}"
    yield f"or: dvc get REPOSITORY {products.EXPORTED} --rev {done.tag}{remote}"
    if not config.has_section(f"'remote \"{done.remote}\"'"):
        yield f"the remote {done.remote} is known on this machine only: others need its settings (docs/versions.md)"
