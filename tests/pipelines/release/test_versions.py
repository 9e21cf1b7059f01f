"""docs/versions.md: its commands in their order, by the makers and by a team that has neither their clone nor cache."""

import re
import subprocess
from pathlib import Path

import pytest

from pipelines.core.shards import ROOT
from pipelines.forget import elsewhere
from pipelines.release.stage import release
from tests.pipelines import quick
from tests.pipelines.release.conftest import BUCKET, Producer, Server, files

GUIDE = ROOT / "docs/versions.md"
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```$", GUIDE.read_text(), re.S | re.M)


class Story:
    """Runs the blocks of the guide, with the addresses of this test in place of the examples."""

    def __init__(self, producer: Producer, server: Server, folder: Path) -> None:
        self.producer, self.folder = producer, folder
        self.addresses = {
            "https://git.example.org/umo.git": f"file://{folder}/umo.git",
            "https://s3.example.org": server.url,
            "s3://example-versions": f"s3://{BUCKET}",
        }
        self.left = [*BLOCKS]
        (folder / "team/project").mkdir(parents=True)

    def run(self, words: str) -> None:
        """The next block that is left and has these words."""
        language, text = block = next(block for block in self.left if words in block[1])
        self.left.remove(block)
        for example, real in self.addresses.items():
            text = text.replace(example, real)
        places = {"# in the repository": self.producer.path, "# in a repository of": self.folder / "team/project"}
        cwd = next((path for start, path in places.items() if text.startswith(start)), self.folder / "team")
        command = ["bash", "-euc", text] if language == "sh" else [quick.python(), "-c", text]
        environment = self.producer.environment() | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"


@pytest.fixture
def story(producer, s3, tmp_path) -> Story:
    producer.run("git", "init", "--quiet", "--bare", str(tmp_path / "umo.git"))
    producer.run("git", "remote", "add", "origin", str(tmp_path / "umo.git"))
    s3.strict(True)
    return Story(producer, s3, tmp_path)


@pytest.mark.slow
def test_the_guide(story, producer, s3, tmp_path):
    team = tmp_path / "team"
    story.run("remote add --default store")
    story.run("release 1.0.0 --dry-run")
    first = producer.exported()
    producer.make("second")
    story.run("release 1.1.0 --to")
    second = producer.exported()
    assert first != second
    s3.strict(False)
    assert "handover/1.1.0/SHA256SUMS" in s3.stored("handover")
    s3.strict(True)
    # Nothing of the makers' machine but the bucket and what they pushed.
    producer.path.rename(tmp_path / "away")
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"]):
        subprocess.run(command, cwd=team / "project", env=producer.environment(), check=True)
    story.run("dvc artifacts get")
    assert files(team / "sets-1.0.0") == first, "and not the second, which has been released since"
    story.run("dvc get")
    assert files(team / "sets") == first
    story.run("import dvc.api")
    assert files(team / "sets-by-api") == first
    story.run("dvc import")
    assert files(team / "project/sets") == first
    story.run("dvc update")
    assert files(team / "project/sets") == second
    (tmp_path / "away").rename(producer.path)
    story.run("git tag --delete")
    assert producer.tags() == ["multi-identity-sets@v1.1.0"]
    shown = dict(text.partition("\n")[::2] for _, text in story.left if text.startswith("# in the"))
    assert not shown, "every block for the data set is run"


def test_by_the_path_of_a_clone(producer, tmp_path, monkeypatch):
    """The remote by default: a team on the same machine, after the makers' cache was emptied."""
    first = producer.exported()
    release("1.0.0", log=lambda line: None)
    producer.make("second")
    release("2.0.0", log=lambda line: None)
    producer.run("rm", "-rf", ".dvc/cache")
    tag = "multi-identity-sets@v1.0.0"
    producer.run("dvc", "get", str(producer.path), "datasets/exported", "--rev", tag, "--out", str(tmp_path / "sets"))
    assert files(tmp_path / "sets") == first


def test_forget_names_copies_and_remotes(producer, tmp_path):
    """A remote that nothing was pushed to holds nobody; the command that is named takes old versions away."""
    (producer.path / "datasets/splits.csv").write_text("face_id,image_id\nx,abcdef\n")
    producer.commit("ledger")
    assert not any("DVC remote" in line or "worktree" in line for line in elsewhere.remotes())
    producer.run("git", "worktree", "add", "--quiet", "--detach", str(tmp_path / "tree"))
    assert any(line.startswith(f"git worktree {tmp_path / 'tree'}: ") for line in elsewhere.remotes())
    release("1.0.0", str(tmp_path / "out"), None, lambda line: None)
    named = elsewhere.refs(frozenset({"abcdef"}), None)
    assert f"tag multi-identity-sets@v1.0.0 (a release, with a copy in {tmp_path / 'out'})" in named
    (line,) = (line for line in elsewhere.remotes() if "DVC remote" in line)
    before = {path.name for path in (producer.path / ".dvc/versions").rglob("*.dir")}
    producer.make("without them")
    producer.run("dvc", "push", "export")
    kept = {path.name for path in (producer.path / ".dvc/versions").rglob("*.dir")}
    producer.run(*line.partition(": ")[2].split(), "--force")
    assert kept == {path.name for path in (producer.path / ".dvc/versions").rglob("*.dir")}, "the tag still has it"
    producer.run("git", "tag", "--delete", "multi-identity-sets@v1.0.0")
    producer.run(*line.partition(": ")[2].split(), "--force")
    assert not before & {path.name for path in (producer.path / ".dvc/versions").rglob("*.dir")}
