"""Releases to the Hugging Face hub, a stand-in of it: one commit with its tag, or neither."""

import hashlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.__main__ import main
from pipelines.forget import elsewhere
from pipelines.release import stores
from pipelines.release.copies import Contents
from pipelines.release.hub import Hub, hub_of
from tests.pipelines.release.conftest import files
from tests.pipelines.release.standin import READS, WRITES, Commit, Repository, StandIn
from umo.errors import BadInput, WorkFailed

PLACE = "hf://datasets/team/sets"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandIn]:
    """A hub with nothing in it, and a token that may write."""
    server = StandIn.started()
    for name, value in {"HF_ENDPOINT": server.url, "HF_TOKEN": WRITES, "HF_HUB_DISABLE_XET": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    yield server
    server.stop()


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A data set: what the hub keeps as LFS's objects, and what as files of git's."""
    (tmp_path / "exported/webdataset").mkdir(parents=True)
    for name, text in {"train-0.parquet": "first", "README.md": "# card", "webdataset/n1.tar": "n1"}.items():
        (tmp_path / "exported" / name).write_text(text)
    return tmp_path / "exported"


def contents(folder: Path, version: str = "1.0.0") -> Contents:
    """The folder as it is now."""
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in files(folder).items()}
    listing = "".join(f"{value}  {name}\n" for name, value in sums.items()).encode()
    release = {"version": version, "sha256sums": hashlib.sha256(listing).hexdigest()}
    return Contents(folder, listing, json.dumps(release).encode())


def lay_down(found: Contents, name: str = PLACE, public: bool = False) -> bool:
    """As a release does it; returns whether it was there already."""
    place = Hub(name, public)
    if place.is_whole(found):
        return True
    place.copy(found)
    return False


def refused(error: type[Exception], words: str, found: Contents, name: str = PLACE) -> None:
    """It stops with one line."""
    with pytest.raises(error, match=words) as caught:
        lay_down(found, name)
    assert str(caught.value).startswith(f"destination {name}: ") and "\n" not in str(caught.value)


def test_a_release(producer, hub, capsys):
    """The command, and what forget says of it."""
    (producer.path / "datasets/splits.csv").write_text("face_id,image_id\nx,abcdef\n")
    producer.commit("ledger")
    assert main(["release", "1.0.0", "--to", "hf://team/sets"]) == 2
    assert capsys.readouterr().err == "release: hf://team/sets: write hf://datasets/OWNER/NAME\n"
    assert main(["release", "1.0.0", "--to", "../out", "--public"]) == 2
    assert capsys.readouterr().err.startswith("release: --public is for hf://")
    assert main(["release", "1.0.0", "--to", PLACE]) == 0
    assert capsys.readouterr().err == ""
    made = hub.repositories["team/sets"]
    assert made.private
    assert [commit.message for commit in made.commits] == ["initial commit", "Version 1.0.0"]
    assert made.tags == {"1.0.0": made.commits[-1].oid}
    found = dict(made.commits[-1].files)
    assert json.loads(found.pop("RELEASE.json"))["tag"] == "multi-identity-sets@v1.0.0"
    assert found.pop(".gitattributes")
    assert found == producer.exported()
    named = elsewhere.refs(frozenset({"abcdef"}), None)
    assert f"tag multi-identity-sets@v1.0.0 (a release, with a copy in {PLACE})" in named


def test_the_next_version_replaces_what_the_last_had(hub, exported):
    lay_down(contents(exported))
    made = hub.repositories["team/sets"]
    first = made.commits[-1]
    (exported / "webdataset/n1.tar").rename(exported / "webdataset/n2.tar")
    (exported / "README.md").write_text("# another card")
    second = contents(exported, "1.1.0")
    lay_down(second)
    assert made.commits[-1].files == {".gitattributes": b"*.parquet", **files(exported), **second.texts}
    assert made.at("1.0.0") == first, "and the first is what it was"
    assert len(made.commits) == 3


def test_again_it_is_there_already(hub, exported):
    """Where the tag of git's had failed."""
    found = contents(exported)
    assert [lay_down(found), lay_down(found)] == [False, True]
    assert len(hub.repositories["team/sets"].commits) == 2


@pytest.mark.parametrize("public", [False, True])
def test_who_may_read_it(hub, exported, public):
    lay_down(contents(exported), PLACE, public)
    assert hub.repositories["team/sets"].private is not public


def test_a_public_repository_is_not_written_to_unasked(hub, exported):
    hub.repositories["team/sets"] = Repository(private=False)
    refused(BadInput, "all may read it; say --public", contents(exported))
    assert not hub.posts()
    lay_down(contents(exported), PLACE, public=True)
    assert "1.0.0" in hub.repositories["team/sets"].tags


@pytest.mark.parametrize(
    ("fault", "status", "error"),
    [
        ("POST /api/repos/create", 500, WorkFailed),
        ("POST .*/preupload/", 500, WorkFailed),
        ("POST .*/batch", 404, WorkFailed),
        ("PUT /objects/", 500, WorkFailed),
        ("PUT /objects/", 403, BadInput),
        ("POST .*/commit/", 503, WorkFailed),
        ("POST .*/commit/", 403, BadInput),
    ],
)
def test_what_fails_before_the_commit_leaves_none(hub, exported, fault, status, error):
    hub.faults[fault] = status
    refused(error, "as the test wants", contents(exported))
    left = hub.repositories.get("team/sets", Repository(True))
    assert (len(left.commits), left.tags) == (1, {})
    hub.faults.clear()
    lay_down(contents(exported))
    assert hub.repositories["team/sets"].tags.keys() == {"1.0.0"}


def test_a_tag_that_fails_is_made_by_the_next_run(hub, exported):
    hub.faults["POST .*/tag/"] = 500
    refused(WorkFailed, "the hub answers 500 .*run again", contents(exported))
    made = hub.repositories["team/sets"]
    assert not made.tags
    hub.faults.clear()
    lay_down(contents(exported))
    assert len(made.commits) == 2, "the commit that was there, and no second one"
    assert made.tags == {"1.0.0": made.commits[-1].oid}


def test_a_version_that_the_hub_has_is_not_overwritten(hub, exported):
    lay_down(contents(exported))
    (exported / "README.md").write_text("# another card")
    refused(BadInput, r"version 1\.0\.0 is there and is not this release", contents(exported))
    made = hub.repositories["team/sets"]
    assert (len(made.commits), len(made.tags)) == (2, 1)


def test_files_of_others_stay(hub, exported):
    hub.repositories["team/sets"] = Repository(True, [Commit("mine", {"notes.txt": b"mine"})])
    refused(BadInput, r"notes\.txt is there and is not of a release", contents(exported))
    assert not hub.posts()


def test_a_commit_of_somebody_else_meanwhile(hub, exported, monkeypatch):
    lay_down(contents(exported))
    made = hub.repositories["team/sets"]
    theirs = Commit("theirs", {"README.md": b"theirs"})
    monkeypatch.setattr("pipelines.release.hub._refuse_changed", lambda *given: made.commits.append(theirs))
    refused(WorkFailed, "the hub answers 412", contents(exported, "1.1.0"))
    assert made.commits[-1] is theirs and made.tags.keys() == {"1.0.0"}


@pytest.mark.parametrize("name", ["webdataset/n1.tar", "README.md"])
def test_a_file_that_changed_meanwhile(hub, exported, name):
    found = contents(exported)
    (exported / name).write_text("other")
    with pytest.raises(WorkFailed, match=f"{name}: not what SHA256SUMS says"):
        lay_down(found)
    made = hub.repositories["team/sets"]
    assert (len(made.commits), made.tags) == (1, {})


@pytest.mark.parametrize(
    ("token", "words"), [(None, "no token; set HF_TOKEN"), ("hf_other", "token is refused"), (READS, "may not write")]
)
def test_tokens(hub, exported, monkeypatch, token, words):
    monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
    refused(BadInput, words, contents(exported))
    assert not hub.repositories


def test_an_owner_that_one_may_not_write_for(hub, exported):
    refused(BadInput, "may not write there .*rights to create", contents(exported), "hf://datasets/others/sets")


def test_a_hub_that_nobody_is_at(hub, exported, monkeypatch):
    with socket.socket() as deaf:  # holds its port and does not listen
        deaf.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        refused(WorkFailed, "cannot be reached: .*[Rr]efused", contents(exported))


def test_a_hub_that_does_not_answer(hub, exported, monkeypatch):
    monkeypatch.setattr(stores, "READ_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        refused(WorkFailed, "cannot be reached: .*timed out", contents(exported))


@pytest.mark.parametrize("endpoint", ["nonsense", "ftp://127.0.0.1", "http://[::1"])
def test_an_endpoint_that_is_none(hub, exported, monkeypatch, endpoint):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    refused(WorkFailed, "reached|no answer", contents(exported))


@pytest.mark.parametrize(
    "text",
    [
        "hf://team/sets",
        "hf://datasets/sets",
        "hf://datasets/team/sets/more",
        "hf://datasets/team/sets@main",
        "hf://models/team/sets",
        "hf://datasets/team/se ts",
        "hf://datasets/team/..",
        "hf://datasets/-team/sets",
        "hf://datasets/team/sets.git",
        "hf://datasets/team/a--b",
        f"hf://datasets/team/{'x' * 97}",
        "hf://",
    ],
)
def test_no_name_of_a_repository(text):
    with pytest.raises(BadInput) as caught:
        hub_of(text, False)
    assert str(caught.value).startswith(text) and "\n" not in str(caught.value)


def test_a_name_ends_with_or_without_a_slash():
    assert hub_of(f"{PLACE}/", False) == Hub(PLACE, False)
