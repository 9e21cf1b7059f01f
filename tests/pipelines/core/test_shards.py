"""Keys, resume and publishing: nothing half-written is ever taken for finished."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from pydantic import BaseModel

from pipelines.core import digests, shards
from pipelines.core.shards import Counts, Shard, run
from umo.errors import WorkFailed


class Knob(BaseModel):
    value: int = 1


def write_letter(shard: Shard, folder: Path) -> Counts:
    (folder / "letter.txt").write_text(f"{shard.name} {shard.task}")
    with Path("calls.txt").open("a") as calls:
        calls.write(f"{shard.name}\n")
    return Counts({"letters": 1}, {"blots": 2})


def calls() -> list[str]:
    return Path("calls.txt").read_text().split() if Path("calls.txt").exists() else []


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def go(names="ab", knob=1, out="out", **inputs: str) -> Counts:
    pieces = [Shard(name, {"text": inputs.get(name, "1")}, inputs.get(name)) for name in names]
    return run("ingest", write_letter, pieces, Path(out), params=Knob(value=knob))


def test_finished_shards_are_not_done_again():
    assert go().made == {"letters": 2}
    assert go().rejects == {"blots": 4}
    assert calls() == ["a", "b"]


def test_a_changed_input_redoes_its_shard_alone():
    go()
    go(a="new")
    assert calls() == ["a", "b", "a"]
    assert Path("out/a/letter.txt").read_text() == "a new"


def test_a_changed_parameter_redoes_all():
    go()
    go(knob=2)
    assert calls() == ["a", "b", "a", "b"]


def test_a_changed_module_redoes_all(monkeypatch):
    go()
    real = shards.file_digest
    monkeypatch.setattr(shards, "file_digest", lambda path: "edited" if path.name == "ingest.py" else real(path))
    go()
    assert calls() == ["a", "b", "a", "b"]


def test_a_changed_model_file_redoes_all():
    weights = Path("weights.bin")
    for content in ("one", "two"):
        weights.write_text(content)
        run("ingest", write_letter, [Shard("a", {})], Path("out"), params=Knob(), files=[weights])
    assert calls() == ["a", "a"]


@pytest.mark.parametrize("settled", [False, True])
@pytest.mark.parametrize("damage", ["marker", "product", "gone"])
def test_damaged_work_is_done_again(damage, settled, monkeypatch):
    if settled:  # as if the work had lain there for a while, so that its checksums are remembered
        monkeypatch.setattr(digests, "SETTLED_NS", -(10**12))
    go("a")
    go("a")
    done = next((shards.WORK / "ingest").iterdir())
    if damage == "marker":
        (done / shards.MARKER).write_text('{"key": "')
    elif damage == "product":
        (done / "letter.txt").unlink()
        (done / "letter.txt").write_text("spoilt")
    else:
        (done / "letter.txt").unlink()
    go("a")
    assert calls() == ["a", "a"]
    assert Path("out/a/letter.txt").read_text() == "a None"


def standing() -> dict[Path, tuple[int, ...]]:
    """Product -> all that writing or linking it anew would change; reading it is no change."""
    found = {path: path.stat() for path in Path("out").rglob("*.txt")}
    return {path: (of.st_ino, of.st_nlink, of.st_size, of.st_mtime_ns, of.st_ctime_ns) for path, of in found.items()}


def test_a_shard_that_stays_is_not_published_again():
    go("abc")
    before = standing()
    go("abc", b="new")
    after = standing()
    same = {path for path in after if after[path] == before[path]}
    assert same == {Path("out/a/letter.txt"), Path("out/c/letter.txt")}
    assert Path("out/b/letter.txt").read_text() == "b new"


@pytest.mark.parametrize("change", ["edited", "more", "fewer", "a folder more", "a copy"])
def test_what_was_changed_in_the_output_is_put_right(change):
    go("ab")
    letter = Path("out/a/letter.txt")
    if change in ("edited", "a copy"):  # not through the link, which would spoil the work as well
        text = letter.read_text()
        letter.unlink()
        letter.write_text("spoilt" if change == "edited" else text)
    elif change == "fewer":
        letter.unlink()
    else:
        new = Path("out/a/more.txt" if change == "more" else "out/more/letter.txt")
        new.parent.mkdir(exist_ok=True)
        new.write_text("x")
    go("ab")
    found = {str(path): path.read_text() for path in Path("out").rglob("*") if path.is_file()}
    assert found == {"out/a/letter.txt": "a None", "out/b/letter.txt": "b None"}
    assert calls() == ["a", "b"]
    assert sorted(path.name for path in Path().iterdir()) == [".work", "calls.txt", "out"]


def test_what_a_killed_run_left_is_swept_and_its_last_worker_cannot_go_on_in_it():
    left = shards.WORK / "ingest/key.12.tmp"
    left.mkdir(parents=True)
    (left / "half.txt").write_text("half")
    go("a")
    with pytest.raises(FileNotFoundError):
        (left / "other half.txt").write_text("half")
    assert {path.name for path in (shards.WORK / "ingest").glob("*/*")} == {"letter.txt", shards.MARKER}


def test_a_second_run_of_a_stage_is_refused_while_the_first_lives(tmp_path):
    """The first is another process, which is then killed: the kernel gives its lock back."""
    script = (
        "import sys, time; from pathlib import Path; from pipelines.core.locks import alone\n"
        "with alone('ingest', Path('.work/ingest.lock')): print('held', flush=True); time.sleep(60)"
    )
    first = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment())
    try:
        assert first.stdout.readline() == b"held\n"
        with pytest.raises(WorkFailed, match=rf"^ingest is being run here already by process {first.pid}: [^\n]*$"):
            go()
        run("measure", write_letter, [Shard("other stage", {})], Path("other"), params=Knob())
        assert calls() == ["other", "stage"]
    finally:
        first.kill()
        first.wait()
    assert go().made == {"letters": 2}
    assert go().made == {"letters": 2}, "a run lets go of its own lock"


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(shards.ROOT)}


def test_a_shard_that_is_no_longer_there_leaves_the_output():
    go("ab")
    go("b")
    assert sorted(path.name for path in Path("out").iterdir()) == ["b"]


def test_a_product_that_is_one_file():
    def write(shard: Shard, folder: Path) -> Counts:
        (folder / "sum.json").write_text("{}")
        return Counts()

    Path("runs").mkdir()
    Path("runs/other.txt").write_text("stays")
    run("ingest", write, [Shard("", {})], Path("runs/sum.json"), params=Knob())
    assert sorted(path.name for path in Path("runs").iterdir()) == ["other.txt", "sum.json"]


def test_a_failed_shard_keeps_the_others_and_the_old_output():
    go("ab")

    def fail(shard: Shard, folder: Path) -> Counts:
        (folder / "half.txt").write_text("half")
        raise WorkFailed("no")

    with pytest.raises(WorkFailed):
        run("ingest", fail, [Shard("c", {})], Path("out"), params=Knob())
    assert sorted(path.name for path in Path("out").iterdir()) == ["a", "b"]
    assert not list(shards.WORK.rglob("half.txt"))


MOMENTS = ["product", "marker", "rename", "link", "swap"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_any_moment_it_goes_on_and_ends_in_the_same_bytes(moment, tmp_path):
    """The process kills itself without warning at the named moment of the second shard."""
    script = textwrap.dedent(
        f"""
        import os, shutil, signal, sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        sys.path.insert(0, {str(shards.ROOT)!r})
        import test_shards as t
        from pipelines import digests, shards
        die = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
        moment, real_replace, real_link, count = {moment!r}, Path.replace, shards._link, [0]

        def work(shard, folder):
            (folder / "other.txt").write_text("1")
            if shard.name == "b" and moment == "product": die()
            counts = t.write_letter(shard, folder)
            if shard.name == "b" and moment == "marker": die()
            return counts

        def replace(self, target):
            count[0] += 1
            if (moment, count[0]) in (("rename", 2), ("swap", 4)): die()
            return real_replace(self, target)

        def link(source, target):
            if moment == "link" and "/b/" in str(target): die()
            return real_link(source, target)

        if moment:
            Path.replace, shards._link = replace, link
        pieces = [shards.Shard(name, {{"text": "1"}}) for name in "abc"]
        shards.run("ingest", work, pieces, Path("out"), params=t.Knob())
        """
    )
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not Path("out").exists()
    again = subprocess.run(
        [sys.executable, "-c", script.replace(f"= {moment!r},", "= '',")], capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert calls().count("a") == 1, "a finished shard was done again"
    found = {str(path): path.read_text() for path in Path("out").rglob("*") if path.is_file()}
    assert found == {
        f"out/{name}/{file}": text
        for name in "abc"
        for file, text in (("other.txt", "1"), ("letter.txt", f"{name} None"))
    }


def test_the_marker_says_what_was_made():
    go("a")
    marker = json.loads(next(shards.WORK.rglob(shards.MARKER)).read_text())
    assert marker["counts"] == {"letters": 1}
    assert marker["rejects"] == {"blots": 2}
    assert set(marker["sha256"]) == {"letter.txt"}
    assert not Path("out/a/marker.json").exists()


def test_links_share_space_and_survive_clean_work():
    go("a")
    product = Path("out/a/letter.txt")
    assert product.stat().st_nlink == 2
    subprocess.run(["rm", "-rf", str(shards.WORK)], check=True)
    assert product.read_text() == "a None"
