"""A released data set laid down in a data-set repository of the Hugging Face hub: one commit, tagged with the version.

The repository is private unless asked for otherwise, for these are people's faces. Files are uploaded first; the commit
that names them is one request of the hub's, and the tag another, sent last. What fails before the commit leaves
neither. Where the tag alone failed, the next run finds that its commit changes nothing, and tags what is there.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from pipelines.release import stores
from pipelines.release.copies import RELEASE, SUMS, Contents
from umo.errors import BadInput, WorkFailed

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.hf_api import DatasetInfo

SCHEME, FORM = "hf://", "hf://datasets/OWNER/NAME"
KIND = "dataset"
OWN = {".gitattributes"}  # what the hub itself puts into a new repository
UPLOAD_SECONDS = 600  # that the hub may take to answer while files go up, or a commit of thousands is made
TOKEN = "set HF_TOKEN, or run hf auth login"


@dataclass(frozen=True)
class Hub:
    """A data-set repository, at HF_ENDPOINT where that is set, with the token of HF_TOKEN or of `hf auth login`."""

    name: str  # hf://datasets/OWNER/NAME
    public: bool  # may be read by all

    @property
    def label(self) -> str:
        """What a fault begins with."""
        return f"destination {self.name}"

    @property
    def repository(self) -> str:
        """OWNER/NAME."""
        return self.name.removeprefix(f"{SCHEME}datasets/")

    @cached_property
    def api(self) -> "HfApi":
        """The hub's interface; BadInput where no token is known."""
        import huggingface_hub
        from huggingface_hub.utils import disable_progress_bars, logging

        if not (token := huggingface_hub.get_token()):
            raise BadInput(f"{self.label}: no token; {TOKEN}")
        disable_progress_bars()
        logging.set_verbosity_error()  # what it tries again is said once, at the end
        return huggingface_hub.HfApi(os.environ.get("HF_ENDPOINT", "").rstrip("/") or None, token)

    def is_whole(self, contents: Contents) -> bool:
        """Whether exactly this is there already under its version. BadInput where the token is missing or refused,
        something else is there, or all may read what is to be private; WorkFailed where the hub cannot be reached.
        """
        with _explained(self.label, stores.READ_SECONDS):
            there = self._there()
            if there is None:
                return False
            if there.private is False and not self.public:
                raise BadInput(f"{self.label}: all may read it; say --public if they may, or choose another")
            for tag in self.api.list_repo_refs(self.repository, repo_type=KIND).tags:
                if tag.name == contents.version:
                    if self._read(tag.target_commit, RELEASE) == contents.release:
                        return True
                    raise BadInput(
                        f"{self.label}: version {tag.name} is there and is not this release; choose a higher one"
                    )
            self._superseded(there)
        return False

    def copy(self, contents: Contents) -> None:
        """Upload, commit, tag. No version is there where it raises: WorkFailed where a file is not what SHA256SUMS says
        or the hub fails, BadInput where it refuses.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        files = {name: CommitOperationAdd(name, contents.folder / name) for name in contents.sums}
        texts = [CommitOperationAdd(name, text) for name, text in contents.texts.items()]
        with _explained(self.label, UPLOAD_SECONDS):
            there = self._there()
            old = self._superseded(there) - contents.all_sums.keys() if there else set()
            if there is None:
                self.api.create_repo(self.repository, repo_type=KIND, private=not self.public)
            self.api.preupload_lfs_files(self.repository, files.values(), repo_type=KIND, free_memory=False)
            _refuse_changed(files, contents)
            done = self.api.create_commit(
                self.repository,
                [*files.values(), *texts, *(CommitOperationDelete(name) for name in sorted(old))],
                commit_message=f"Version {contents.version}",
                repo_type=KIND,
                parent_commit=there.sha if there else None,  # else somebody else's commit since would be undone
            )
            self.api.create_tag(self.repository, tag=contents.version, revision=done.oid, repo_type=KIND)

    def _there(self) -> "DatasetInfo | None":
        """The repository as it is; None where there is none."""
        from huggingface_hub.errors import HfHubHTTPError

        try:
            return self.api.dataset_info(self.repository, timeout=stores.READ_SECONDS)
        except HfHubHTTPError as error:
            if error.response.status_code == 404:
                return None
            raise

    def _superseded(self, there: "DatasetInfo") -> set[str]:
        """The files of the version before; BadInput where others are there, which are not ours to replace."""
        names = {file.rfilename for file in there.siblings or []} - OWN
        listed = self._read(there.sha or "main", SUMS).decode() if SUMS in names else ""
        ours = {line.partition("  ")[2] for line in listed.splitlines()} | {SUMS, RELEASE}
        if others := sorted(names - ours):
            where = f"{self.label}: {others[0]} is there and is not of a release"
            raise BadInput(f"{where}; choose another repository, or empty it")
        return names

    def _read(self, revision: str, name: str) -> bytes:
        """A small file."""
        from huggingface_hub import get_session, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

        url = hf_hub_url(self.repository, name, repo_type=KIND, revision=revision, endpoint=self.api.endpoint)
        answer = get_session().get(url, headers=build_hf_headers(token=self.api.token))
        hf_raise_for_status(answer)
        return answer.content


def hub_of(text: str, public: bool) -> Hub:
    """hf://datasets/OWNER/NAME; BadInput where it is no such name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    found = re.fullmatch(r"hf://datasets/([^/]+/[^/]+?)/?", text)
    if not found:
        raise BadInput(f"{text}: write {FORM}")
    try:
        validate_repo_id(found[1])
    except HFValidationError as error:
        raise BadInput(f"{text}: {' '.join(str(error).split())}") from error
    return Hub(f"{SCHEME}datasets/{found[1]}", public)


def _refuse_changed(files: "dict[str, CommitOperationAdd]", contents: Contents) -> None:
    """By the checksums that were computed as the files went up."""
    for name, file in files.items():
        if file.upload_info.sha256.hex() != contents.sums[name]:
            where = contents.folder / name
            raise WorkFailed(f"{where}: not what {SUMS} says; was it changed meanwhile? run dvc repro export")


@contextmanager
def _explained(label: str, seconds: float) -> Iterator[None]:
    """Within it the hub's faults are one line, and nobody waits for ever."""
    import httpx2
    from huggingface_hub import get_session
    from huggingface_hub.errors import HfHubHTTPError

    get_session().timeout = httpx2.Timeout(seconds, connect=stores.CONNECT_SECONDS)
    try:
        yield
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError, KeyError, RuntimeError) as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error  # of several uploads
        if isinstance(cause, HfHubHTTPError):
            raise _refusal(label, cause.response.status_code, _line(cause.server_message or cause)) from error
        reached = "cannot be reached: " if isinstance(cause, (httpx2.HTTPError, OSError)) else "no answer of a hub: "
        raise WorkFailed(f"{label}: {reached}{_line(cause)}; run again, what is uploaded is kept") from error


def _refusal(label: str, status: int, said: str) -> BadInput | WorkFailed:
    if status == 401:
        return BadInput(f"{label}: the token is refused ({said}); {TOKEN}")
    if status in (402, 403):
        return BadInput(f"{label}: the token may not write there ({said}); take another token or owner")
    return WorkFailed(f"{label}: the hub answers {status} ({said}); run again, what is uploaded is kept")


def _line(error: object) -> str:
    return " ".join(str(error).split()) or type(error).__name__
