"""Keys, resume and publishing: nothing half-written is ever taken for finished."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from pipelines.core import digests, shards
from pipelines.core.shards import Counts, Shard, run
from tests.pipelines import killed
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


def test_a_workspace_of_other_keys_is_said_to_be_made_anew(capsys):
    """As one of a former layout: its shards lie there under keys that nobody asks for."""
    go()
    assert "anew" not in capsys.readouterr().out
    for folder in (shards.WORK / "ingest").iterdir():
        folder.rename(folder.with_name(folder.name[::-1]))
    go()
    lines = [line for line in capsys.readouterr().out.splitlines() if "anew" in line]
    now = "today's code, libraries, params and inputs"
    assert lines == [f"ingest: .work/ingest has nothing made with {now}: all is made anew (2 shards)"]


def test_a_changed_input_redoes_its_shard_alone():
    go()
    go(a="new")
    assert calls() == ["a", "b", "a"]
    assert Path("out/a/letter.txt").read_text() == "a new"


def test_a_shard_is_shown_what_it_was_when_it_was_published_last():
    """Also where nothing had to be done for that, as after a kill between publishing and noting it down."""
    before = []

    def write(shard: Shard, folder: Path) -> Counts:
        before.append(shard.before and (shard.before / "letter.txt").read_text())
        return write_letter(shard, folder)

    for text in ("1", "2", "1", "3"):
        run("ingest", write, [Shard("a", {"text": text}, text)], Path("out"), params=Knob())
    assert before == [None, "a 1", "a 1"]


def test_a_changed_parameter_redoes_all():
    go()
    go(knob=2)
    assert calls() == ["a", "b", "a", "b"]


def test_changed_code_redoes_all(monkeypatch):
    go()
    monkeypatch.setattr(shards, "code", lambda module: {"pipelines/ingest/stage.py": "edited"})
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
    """Product -> all that writing it anew would change, and by which DVC knows it."""
    found = {path: path.stat() for path in Path("out").rglob("*.txt")}
    return {path: (of.st_ino, of.st_nlink, of.st_size, of.st_mtime_ns) for path, of in found.items()}


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


def run_killed(moment: str, text: str) -> int:
    def act(at: killed.At) -> None:
        def work(shard: Shard, folder: Path) -> Counts:
            (folder / "other.txt").write_text(text)
            at("product", shard.name == "b")
            counts = write_letter(shard, folder)
            at("marker", shard.name == "b")
            return counts

        do = shards._do

        def watched_do(*arguments: object) -> None:
            do(*arguments)
            at("rename", arguments[-1][0].name == "b")

        shards._do = watched_do
        run("ingest", work, [Shard(name, {"text": text}) for name in "abc"], Path("out"), params=Knob())

    return killed.in_child(moment, Path("out"), act)


NEW = ["product", "marker", "rename", "link"]
CHANGED = [*NEW, "before the swap", "after the swap", "between the renames", "after the renames"]


def of_three(text: str) -> dict[str, str]:
    files = (("other.txt", text), ("letter.txt", "{} None"))
    return {f"out/{name}/{file}": content.format(name) for name in "abc" for file, content in files}


def standing_files() -> dict[str, str]:
    return {str(path): path.read_text() for path in Path("out").rglob("*") if path.is_file()}


@pytest.mark.parametrize("moment", NEW)
def test_killed_at_any_moment_it_goes_on_and_ends_in_the_same_bytes(moment):
    """The process kills itself without warning at the named moment of the second shard."""
    assert run_killed(moment, "1") == -signal.SIGKILL
    assert not Path("out").exists()
    assert run_killed("", "1") == 0
    assert calls().count("a") == 1, "a finished shard was done again"
    assert standing_files() == of_three("1")


@pytest.mark.parametrize("moment", CHANGED)
def test_killed_at_any_moment_the_old_product_stands_whole_or_the_new_one(moment):
    assert run_killed("", "1") == 0
    before = standing_files()
    assert run_killed(moment, "2") == -signal.SIGKILL
    assert moment == "between the renames" or standing_files() == (of_three("2") if "after" in moment else before)
    if moment == "between the renames":  # where the system cannot swap, the old one stands beside it for the next run
        assert {path.name for path in Path().glob(".out*.tmp")} == {".out.tmp", ".out.old.tmp"}
    assert run_killed("", "2") == 0
    assert standing_files() == of_three("2")
    assert sorted(path.name for path in Path().iterdir()) == [".work", "calls.txt", "out"]


def test_a_product_that_is_one_file_is_replaced_at_one_instant(monkeypatch):
    def write(shard: Shard, folder: Path) -> Counts:
        (folder / "sum.json").write_text(shard.inputs["text"])
        return Counts()

    def stop(self: Path, target: Path) -> None:
        if self.name == ".sum.json.tmp":
            raise KeyboardInterrupt
        real(self, target)

    real = Path.replace
    run("ingest", write, [Shard("", {"text": "1"})], Path("sum.json"), params=Knob())
    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        run("ingest", write, [Shard("", {"text": "2"})], Path("sum.json"), params=Knob())
    assert Path("sum.json").read_text() == "1"
    assert not Path(".sum.json.tmp").exists()


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
