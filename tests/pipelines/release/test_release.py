"""Releases: what stops one, that nothing is half-released, and that a version stays what it was."""

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from pipelines.release import copies
from pipelines.release.stage import plan, release
from pipelines.service import repository
from tests.pipelines import quick
from tests.pipelines.release.conftest import BUCKET, files
from umo.errors import BadInput, WorkFailed

TAG = "multi-identity-sets@v1.0.0"


def refused(error: type[Exception], words: str, **arguments: str | None) -> None:
    """A release of 1.0.0 to ../out stops with one line that says why; nothing is tagged, pushed or copied."""
    given = {"version": "1.0.0", "destination": "../out", "remote": None} | arguments
    with pytest.raises(error, match=words) as caught:
        release(**given, log=lambda line: None)
    assert "\n" not in str(caught.value)
    assert not repository.git("tag", missing="")
    assert not Path(".dvc/versions").exists()
    assert not Path("../out").exists()
    assert not list(Path("..").glob(".out*"))


def at(prefix: str, server) -> dict[str, bytes]:
    keys = server.stored(prefix)
    return {key.removeprefix(f"{prefix}/"): server.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}


def test_a_folder(producer, tmp_path):
    said = []
    done = release("v1.0.0", str(tmp_path / "out"), None, said.append)
    assert producer.tags() == [TAG]
    assert done.tag == TAG
    assert done.revision == repository.git("rev-parse", "HEAD") == repository.git("rev-parse", f"{TAG}^{{commit}}")
    assert repository.git("cat-file", "-t", TAG) == "tag"
    assert (done.version, done.remote, done.files) == ("1.0.0", "versions", 3)
    found = files(tmp_path / "out")
    about = json.loads(found.pop("RELEASE.json"))
    assert (about["version"], about["commit"]) == ("1.0.0", done.revision)
    assert found == producer.exported()
    assert {"4 sets: licence CC0, consent given", "1 sets: licence CC-BY, consent given"} <= set(said)
    assert not list(tmp_path.glob(".out*"))
    assert list((producer.path / ".dvc/versions").rglob("*.dir"))
    assert not repository.changes()


def test_only_what_was_made_to_be_handed_over_is_pushed(producer):
    release("1.0.0", log=lambda line: None)
    pushed = {path.parent.name + path.name for path in Path(".dvc/versions").rglob("*") if path.is_file()}
    lock = Path("dvc.lock").read_text()
    validated, exported = (
        re.search(rf"path: datasets/{name}\n\s+hash: md5\n\s+md5: (\w+\.dir)", lock)[1]
        for name in ("validated", "exported")
    )
    assert exported in pushed
    assert validated not in pushed
    assert len(pushed) == 1 + len(producer.exported())


@pytest.mark.parametrize("version", ["", "1", "1.0", "1.0.0.0", "01.0.0", "latest", "1.0.0 ", "1.0.0; rm -rf ."])
def test_no_version(producer, version):
    refused(BadInput, "three numbers", version=version)


def test_a_taken_version(producer):
    repository.git("tag", TAG)
    with pytest.raises(BadInput, match=r"version 1\.0\.0 is taken"):
        plan("1.0.0", None, None)


def test_an_uncommitted_change(producer):
    with Path("params.yaml").open("a") as file:
        file.write("# a change\n")
    refused(BadInput, r"not committed: params\.yaml")


def test_a_lock_that_git_does_not_keep(producer):
    """A tag on such a commit would have no data."""
    producer.run("git", "rm", "--cached", "--quiet", "dvc.lock")
    producer.commit_staged("no lock")
    refused(BadInput, r"not committed: dvc\.lock")


def test_no_git(producer):
    producer.run("rm", "-rf", ".git")
    refused(BadInput, "not the top of a git repository")
    assert not Path(".work").exists()


def test_no_dvc(producer):
    producer.run("rm", "-rf", ".dvc")
    refused(BadInput, "not a DVC repository")


def test_git_that_does_not_know_who_tags(producer, monkeypatch):
    producer.run("git", "config", "user.useConfigOnly", "true")
    producer.run("git", "config", "--unset", "user.email")
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, os.devnull)
    for name in ("EMAIL", "GIT_COMMITTER_EMAIL", "GIT_AUTHOR_EMAIL"):
        monkeypatch.delenv(name, raising=False)
    refused(BadInput, "git does not know who tags")


def test_products_of_other_inputs(producer):
    Path("datasets/seed.txt").write_text("other\n")
    producer.commit("not run")
    refused(BadInput, "not up to date: export; run dvc repro export")


def test_a_product_that_was_edited(producer):
    with Path("datasets/exported/README.md").open("a") as file:
        file.write("edited")
    refused(BadInput, "not up to date: export")


@pytest.mark.parametrize("lost", ["everything", "a file"])
def test_a_cache_that_lost_something(producer, lost):
    """DVC would push what is left, say nothing, and the version could not be had."""
    tar = Path("datasets/exported/webdataset/n1.tar")
    md5 = hashlib.md5(tar.read_bytes()).hexdigest()
    producer.run("rm", "-rf", ".dvc/cache" if lost == "everything" else f".dvc/cache/files/md5/{md5[:2]}/{md5[2:]}")
    refused(BadInput, "not up to date: export")


@pytest.mark.parametrize("lost", ["everything", "a file"])
def test_a_remote_that_lost_something_is_filled_again(producer, tmp_path, lost):
    """`dvc push` alone would say that everything is up to date."""
    release("1.0.0", log=lambda line: None)
    first = producer.exported()
    held = sorted(path for path in Path(".dvc/versions").rglob("*") if path.is_file())
    for path in held if lost == "everything" else [path for path in held if path.suffix != ".dir"][:1]:
        path.unlink()
    release("1.0.1", log=lambda line: None)
    producer.run("rm", "-rf", ".dvc/cache")
    producer.run("dvc", "get", ".", "datasets/exported", "--rev", TAG, "--out", str(tmp_path / "sets"))
    assert files(tmp_path / "sets") == first


def test_a_failed_validation(producer):
    Path("datasets/faults.txt").write_text("sets: a person in two splits\n")
    producer.run("dvc", "repro", "export", check=False)
    producer.commit("failed")
    refused(BadInput, "validation failed: sets: a person in two splits")


def test_a_forget_that_is_not_finished(producer):
    Path(".work").mkdir(exist_ok=True)
    Path(".work/forget.json").write_text("{}")
    refused(BadInput, "a forget was interrupted")


@pytest.mark.parametrize("remote", ["nobody", None])
def test_no_such_remote(producer, remote):
    producer.run("dvc", "remote", "remove", "versions")
    producer.commit("no remote")
    refused(BadInput, "remote", remote=remote)


def test_a_remote_that_is_a_file(producer):
    (producer.path.parent / "file").write_text("")
    producer.remote(str(producer.path.parent / "file/versions"))
    refused(BadInput, "no folder that can be written to")


def test_an_endpoint_where_nobody_is(producer, s3):
    with socket.socket() as deaf:  # holds its port and does not listen
        deaf.bind(("127.0.0.1", 0))
        producer.remote(f"s3://{BUCKET}/dvc", endpointurl=f"http://127.0.0.1:{deaf.getsockname()[1]}")
        refused(WorkFailed, "DVC remote store .* cannot be reached")


def test_an_endpoint_that_does_not_answer(producer, s3, monkeypatch):
    monkeypatch.setattr("pipelines.release.stores.READ_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        producer.remote(f"s3://{BUCKET}/dvc", endpointurl=f"http://127.0.0.1:{silent.getsockname()[1]}")
        refused(WorkFailed, "DVC remote store .* cannot be reached .*[Tt]imeout")


def test_no_credentials(producer, s3, monkeypatch):
    producer.remote(f"s3://{BUCKET}/dvc", endpointurl=s3.url)
    for name in s3.credentials:
        monkeypatch.delenv(name)
    refused(BadInput, "DVC remote store .* no credentials")


def test_a_profile_that_is_not_there(producer, s3):
    producer.remote(f"s3://{BUCKET}/dvc", endpointurl=s3.url, profile="nobody")
    refused(BadInput, r"profile \(nobody\)")


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials(producer, s3, monkeypatch, name):
    producer.remote(f"s3://{BUCKET}/dvc", endpointurl=s3.url)
    monkeypatch.setenv(name, "x" * 20)
    s3.strict(True)
    refused(BadInput, "DVC remote store .* credentials are refused")


def test_no_such_bucket(producer, s3):
    producer.remote("s3://nowhere/dvc", endpointurl=s3.url)
    refused(BadInput, "DVC remote store .* no such bucket")


def test_a_push_that_fails(producer, monkeypatch):
    """After everything was looked at, the remote's disk is full, say."""
    monkeypatch.setattr("pipelines.release.stores.check_folder", lambda label, folder: None)
    (producer.path.parent / "file").write_text("")
    producer.remote(str(producer.path.parent / "file/versions"))
    refused(WorkFailed, "dvc push to store failed")


def test_a_prefix(producer, s3):
    producer.remote(f"s3://{BUCKET}/dvc", endpointurl=s3.url)
    s3.strict(True)
    done = release("1.0.0", f"s3://{BUCKET}/teams/sets/", None, lambda line: None)
    s3.strict(False)
    found = at("teams/sets", s3)
    assert json.loads(found.pop("RELEASE.json"))["commit"] == done.revision
    assert found == producer.exported()
    assert s3.stored("dvc/files/md5")


@pytest.mark.parametrize(
    ("destination", "words"),
    [
        ("s3://nowhere/sets", "no such bucket"),
        (f"s3://{BUCKET}", "name a prefix"),
        ("gs://bucket/sets", "a folder or"),
        ("datasets/new", "inside the repository"),
        ("../umo", "inside the repository"),
        ("../file", "a file is there"),
        ("../file/out", "no folder that can be written to"),
        ("../full", "notes.txt is there and is not of this release"),
    ],
)
def test_no_place_for_a_copy(producer, s3, destination, words):
    Path("../file").write_text("")
    Path("../full").mkdir()
    Path("../full/notes.txt").write_text("mine")
    refused(BadInput, words, destination=destination)
    assert files(Path("../full")) == {"notes.txt": b"mine"}


def test_a_prefix_that_holds_something_else(producer, s3):
    for name in ("notes.txt", "README.md"):
        s3.s3.put_object(Bucket=BUCKET, Key=f"{name}/{name}", Body=b"mine")
        refused(BadInput, f"{name} is there and is not of this release", destination=f"s3://{BUCKET}/{name}")
        assert at(name, s3) == {name: b"mine"}


@pytest.mark.parametrize("place", ["../out", f"s3://{BUCKET}/sets"])
def test_a_tag_that_fails_can_be_made_again(producer, s3, monkeypatch, place):
    """All was copied: the next run looks, copies nothing, and tags."""
    with monkeypatch.context() as patched:
        patched.setattr("pipelines.release.stage._tag", lambda done: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            release("1.0.0", place, None, lambda line: None)
    assert not producer.tags()
    said = []
    release("1.0.0", place, None, said.append)
    assert producer.tags() == [TAG]
    assert any("already" in line for line in said)


def test_a_copy_of_another_release_is_not_overwritten(producer, tmp_path):
    release("1.0.0", "../out", None, lambda line: None)
    before = files(tmp_path / "out")
    producer.make("second")
    with pytest.raises(BadInput, match="is not of this release"):
        release("2.0.0", "../out", None, lambda line: None)
    assert files(tmp_path / "out") == before
    assert producer.tags() == [TAG]


KILLED = """
import os, signal, sys
from pipelines.release import copies
from pipelines.release.stage import release

whole = copies.read_digest
def digest(path):
    if {when}:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(path)
copies.read_digest = digest
release("1.0.0", sys.argv[1])
"""


@pytest.mark.parametrize(
    ("place", "when"),
    [
        ("../out", '"train" in path.name'),
        (f"s3://{BUCKET}/sets", '"train" in path.name'),
    ],
)
def test_killed_while_copying_it_goes_on(producer, s3, monkeypatch, place, when):
    """The kill is after a file of several: neither place passes for whole, and a second run completes it."""
    monkeypatch.setattr(copies, "AT_ONCE", 1)
    script = KILLED.format(when=when).replace("whole = ", "copies.AT_ONCE = 1\nwhole = ")
    killed = subprocess.run([quick.python(), "-c", script, place], check=False, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not producer.tags()
    left = at("sets", s3) if place.startswith("s3") else files(Path("../.out.partial"))
    assert left and copies.SUMS not in left
    assert not Path("../out").exists()
    release("1.0.0", place, None, lambda line: None)
    found = at("sets", s3) if place.startswith("s3") else files(Path("../out"))
    del found["RELEASE.json"]
    assert found == producer.exported()
    assert producer.tags() == [TAG]
    assert not Path("../.out.partial").exists()


def test_a_file_that_changes_under_the_copy(producer, monkeypatch, tmp_path):
    """A stage that somebody starts meanwhile, say."""
    push = "pipelines.release.stage._push"
    monkeypatch.setattr(push, lambda remote: Path("datasets/exported/README.md").write_text("other"))
    with pytest.raises(WorkFailed, match=r"README\.md: not what SHA256SUMS says"):
        release("1.0.0", str(tmp_path / "out"), None, lambda line: None)
    assert not (tmp_path / "out").exists()
    assert not producer.tags()


def test_a_commit_meanwhile_is_not_tagged(producer, monkeypatch):
    monkeypatch.setattr("pipelines.release.stage._push", lambda remote: producer.commit("meanwhile"))
    with pytest.raises(WorkFailed, match="changed meanwhile"):
        release("1.0.0", log=lambda line: None)
    assert not producer.tags()


def test_the_command(producer, tmp_path):
    code = ["-m", "pipelines", "release"]
    environment = producer.environment() | {"PYTHONPATH": str(Path(copies.__file__).parents[2])}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [quick.python(), *code, *arguments], env=environment, capture_output=True, text=True, check=False
        )

    looked = run("1.0.0", "--to", "../out", "--dry-run")
    assert looked.returncode == 0, looked.stderr
    assert f"{TAG} could be released" in looked.stdout
    assert not producer.tags() and not (tmp_path / "out").exists() and not Path(".dvc/versions").exists()
    bad = run("1.0")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("release: version '1.0'") and bad.stderr.count("\n") == 1
    done = run("1.0.0", "--to", "../out", "--remote", "versions")
    assert done.returncode == 0, done.stderr
    assert producer.tags() == [TAG]
    assert run("1.0.0").returncode == 2


@pytest.mark.slow
def test_a_data_set_that_the_graph_made(small, tmp_path, monkeypatch):
    """The real stages, and the tag already holds all that is needed: nothing is to be committed by hand."""
    shutil.copytree(small.path, tmp_path / "umo", symlinks=True)
    monkeypatch.chdir(tmp_path / "umo")
    for key, value in {"user.name": "t", "user.email": "t@example.org"}.items():
        repository.git("config", key, value)
    said = []
    done = release("0.1.0", "../out", None, said.append)
    assert any(re.fullmatch(r"\d+ sets: licence .+, consent .+", line) for line in said)
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=tmp_path / "out", check=True)
    got = str(tmp_path / "sets")
    small.run("dvc", "artifacts", "get", str(tmp_path / "umo"), "multi-identity-sets", "--rev", "v0.1.0", "--out", got)
    copied = files(tmp_path / "out")
    del copied["RELEASE.json"]
    assert files(tmp_path / "sets") == copied
    assert len(copied) == done.files + 1
