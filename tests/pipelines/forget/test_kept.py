"""What commands of umo keep in folders that their user chose: each is run, somebody is found in all it leaves, and it
goes; what is somebody else's stays.
"""

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from pipelines.core import products
from pipelines.core.shards import ROOT
from pipelines.core.tombstones import hashes
from pipelines.forget import elsewhere, kept, purge, stage
from pipelines.forget.execute import finish
from pipelines.forget.note import NOTE, Note
from pipelines.forget.scan import Wanted
from pipelines.forget.search import Search
from pipelines.service.privacy import CopiesRemain
from tests.conftest import BandJudge
from tests.umo.evaluation.test_agreement import dinov2
from tests.umo.training.conftest import SMALL, TRAIN, small_base
from tests.umo.training.test_folder import export, row
from umo import cli, faces
from umo.drawing import batches
from umo.drawing.benchmarks import DRAWN
from umo.drawing.cases import CASES_FILE, IMAGES, picture_names
from umo.drawing.files import write_picture
from umo.errors import BadInput, WorkFailed
from umo.evaluation.agreement import load, measure
from umo.evaluation.benchmarks import scoring
from umo.evaluation.cases import read_cases
from umo.evaluation.judges import Gallery
from umo.quality import perceptual_hash
from umo.training import sets
from umo.training.run import LIVE

PERSON = "p0123456789ab"
PROMPT = "A photo of one person in front of a plain blue background."


def run(*words: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["umo", *words])
        with pytest.raises(SystemExit) as left:
            cli.main()
    return int(left.value.code or 0)


@pytest.fixture(scope="module")
def world(orl, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all of the commands left: anna is looked for, bert is another."""
    root = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for name in ("bands", "others"):
            judge = BandJudge(root / f"{name}.weights")
            judge.name = name
            patch.setitem(faces.MODELS, name, lambda judge=judge: judge)
        faces._load.cache_clear()
        small_base().save(root / "base")
        Path("photos").mkdir()
        for k, name in enumerate(("anna", "bert"), 1):
            Image.fromarray(orl(k, 1)).save(f"photos/{name}.png")
        _draw_and_score()
        _benchmark()
        for name, people in {"lora": (*TRAIN[0], PERSON), "others": TRAIN[0]}.items():
            train = [row(*TRAIN[0]) | {"person_ids": [*people][-2:]}, row(*TRAIN[1])]
            export(root / "sets" / name, {"train": train})
            Path("recipe.yaml").write_text(yaml.safe_dump(SMALL | {"steps": 1, "batch": 1, "micro_batch": 1}))
            given = ["--base", "base", "--data", f"sets/{name}", "--method", "sft", "--recipe", "recipe.yaml"]
            assert not run("train", *given, "--reward", "bands", "--out", name)
    faces._load.cache_clear()
    return root


def _draw_and_score() -> None:
    judged = ["--judge", "bands,others", "--agreement", str(dinov2(Path("dino")))]
    for folder, names in {"drawn": ("anna", "bert", "an/na"), "bert": ("bert",)}.items():
        lines = [
            {"case_id": name, "prompt": PROMPT, "references": [f"photos/{name.replace('/', '')}.png"]} for name in names
        ]
        Path(f"{folder}.jsonl").write_text("".join(json.dumps(line | {"images": []}) + "\n" for line in lines))
        assert not run("generate", f"{folder}.jsonl", "--out", folder, "--model", "base", "--steps", "1")
        assert not run("evaluate", f"{folder}/CASES.jsonl", "--out", f"scores-{folder}", *judged)
        assert not run("report", f"scores-{folder}", "--out", f"pages/{folder}.html", "--title", "Mine")
    reference = ["--reference", "photos/anna.png", "--no-crop"]
    assert not run("generate", "--out", "one/a.png", "--model", "base", "--prompt", PROMPT, *reference, "--steps", "1")
    (Path("scores-drawn") / kept.PARTIAL / "0123456789abcdef").mkdir(parents=True)


def _benchmark() -> None:
    Path("root/eval/tools").mkdir(parents=True)
    Path("root/a/human").mkdir(parents=True)
    for k, name in enumerate(("anna", "bert")):
        shutil.copy(f"photos/{name}.png", f"root/a/human/0{k}_{name}.jpg")
    rows = [
        {"index": k, "prompt": name, "modulation": [{"src_inputs": [{"image_path": f"a/human/0{k}_{name}.jpg"}]}]}
        for k, name in enumerate(("anna", "bert"))
    ]
    Path("root/eval/tools/XVerseBench_single.json").write_text(json.dumps(rows))
    given = ["xverse-single", "--root", "root"]
    assert not run("benchmark", "run", *given, "--out", "results", "--model", "base", "--steps", "1")
    assert not run("benchmark", "score", *given, "results", "--out", "judged", "--judge", "bands")


KEPT = ("drawn", "bert", "scores-drawn", "scores-bert", "pages", "results", "judged", "lora", "others", "one")
THEIRS = {
    "drawn/images/anna-0.png",
    "drawn/images/{}".format(Path(picture_names("an/na", 1)[0]).name),
    *(f"scores-drawn/{name}" for name in kept.SCORES),
    *(f"scores-drawn/others/{name}" for name in kept.SCORES[:2]),
    "scores-drawn/.partial",
    "pages/drawn.html",
    "pages/bert.html",  # no scan can tell
    *(f"results/.drawn/images/0-{k}.png" for k in range(4)),
    "results/0_anna.png",
    *(f"judged/{name}" for name in kept.SCORES[:2]),
    *(f"judged/pictures/0-{k}.png" for k in range(4)),
}
LISTS = {f"{folder}/CASES.jsonl" for folder in ("drawn", "scores-drawn", "judged", "results/.drawn")} | {
    "results/.drawn/asked-1.jsonl"
}
LORA = {f"lora/{name}" for name in kept.LORA}


@pytest.fixture(params=["inside", "outside"])
def place(request, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What they left, in the repository or elsewhere; its name is the folder's of the test."""
    repository = tmp_path / "work/repository"
    repository.mkdir(parents=True)
    monkeypatch.chdir(repository)
    monkeypatch.setattr(purge, "ask", lambda *words: "")
    monkeypatch.setattr(elsewhere, "ask", lambda *words: "")
    place = repository / "mine" if request.param == "inside" else tmp_path / "work/elsewhere"
    shutil.copytree(world, place, ignore=shutil.ignore_patterns("base", "sets", "dino"))
    return place


@pytest.fixture
def search(orl) -> Search:
    return Search(Wanted(frozenset({PERSON}), frozenset(), hashes([perceptual_hash(orl(1, 1))]), 0.25))


def noted(place: Path, **more: object) -> Note:
    also = [] if place.is_relative_to(Path.cwd()) else [place]
    return Note(person_ids=[PERSON], image_ids=[], phashes={}, also=also, **more)


def contents(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def named(place: Path, paths) -> set[str]:
    return {str(path.relative_to(place)) for path in paths}


def test_somebody_is_found_in_all_that_the_commands_left(place: Path, search: Search) -> None:
    before = contents(place)
    found = kept.look(search, noted(place))
    assert named(place, found.goes) == THEIRS
    assert named(place, found.lists) == LISTS
    assert found.models == [place / "lora"]
    assert found.untold == [f"{place}/one (1 pictures that umo drew of somebody)"]
    assert contents(place) == before
    dropped = kept.look(search, noted(place, drop_models=True))
    assert named(place, dropped.goes) == THEIRS | LORA and not dropped.models


@pytest.mark.parametrize("drop_models", [False, True])
def test_theirs_go_and_all_else_stays_as_it_was(place: Path, search: Search, drop_models: bool) -> None:
    before, note = contents(place), noted(place, drop_models=drop_models)
    said = purge.purge(search, note)
    assert f"{len(THEIRS | (LORA if drop_models else set()))} files and folders that umo wrote" in said
    after = contents(place)
    theirs = THEIRS | (LORA if drop_models else set())
    gone = {name for name in before if any(one in (name, *map(str, Path(name).parents)) for one in theirs)}
    assert before.keys() - after.keys() == gone
    assert {name for name in after if after[name] != before[name]} == LISTS
    for name in LISTS:
        assert all(line in before[name].splitlines() and b"anna" not in line for line in after[name].splitlines())
    again = kept.look(search, note)
    assert not again.goes and not again.lists and again.models == [place / "lora"] * (not drop_models)


def test_what_umo_did_not_write_is_named(place: Path, search: Search) -> None:
    purge.purge(search, note := noted(place))
    copies = elsewhere.copies(search, {}, [], note.also)
    if not note.also:
        assert not copies.seen
        return
    left = {path for part in copies.seen.values() for path in part.found}
    assert named(place, left) == {"photos/anna.png", "root/a/human/00_anna.jpg", "lora/training.json"}
    assert copies.remain() == f"copies remain in {place} (3 files)"


@pytest.mark.parametrize("at", [0, 1, 9, 15])
def test_a_killed_one_is_finished_with_the_same_folders(
    place: Path, search: Search, tmp_path: Path, monkeypatch, at: int
) -> None:
    """The last thing that tells whose a picture is may be gone already."""
    whole = shutil.copytree(place, tmp_path / "whole")
    purge.purge(search, noted(place))
    expected = {name: content for name, content in contents(place).items() if not name.startswith("photos/")}
    shutil.rmtree(place)
    whole.rename(place)
    remove, calls = purge._remove, []

    def killed(path: Path) -> None:
        calls.append(path)
        if len(calls) > at:
            raise KeyboardInterrupt
        remove(path)

    with monkeypatch.context() as patch:
        patch.setattr(purge, "_remove", killed)
        with pytest.raises(KeyboardInterrupt):
            purge.purge(search, noted(place))
    shutil.rmtree(place / "photos")
    pending = Note.read()
    assert pending is not None
    purge.purge(search, pending)
    assert contents(place) == expected


def test_a_photograph_that_was_deleted_tells_as_its_name_did(place: Path) -> None:
    """--delete-originals comes first; and a case of which nothing is known is not passed over."""
    nothing = Search(Wanted(frozenset({PERSON}), frozenset(), hashes([]), 0.25))
    (place / "photos/anna.png").unlink()
    found = kept.look(nothing, noted(place, originals=[place / "photos/anna.png"]))
    assert {"drawn/images/anna-0.png", "scores-drawn/scores.parquet"} <= named(place, found.goes)
    found = kept.look(nothing, noted(place))
    assert "drawn/images/anna-0.png" not in named(place, found.goes)
    assert f"{place}/drawn/CASES.jsonl (2 cases whose photographs are not there)" in found.untold


def test_what_killed_commands_left(world: Path, tmp_path: Path, monkeypatch, orl, search: Search) -> None:
    """Latents and a judge's embeddings go; pictures without a list are named."""
    monkeypatch.chdir(tmp_path)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for name in ("bands", "others"):
        monkeypatch.setitem(faces.MODELS, name, lambda: BandJudge(tmp_path / "bands.weights"))
    faces._load.cache_clear()
    judge = BandJudge(tmp_path / "bands.weights")
    gallery = Gallery(judge, world, kept=scoring.kept_in(Path("scores"), judge))
    gallery.look(["photos/anna.png"])
    asked = read_cases(world / "drawn/CASES.jsonl")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("umo.evaluation.agreement.image_agreement", killed)
        measure(asked, world / "drawn", load([str(world / "dino")]), Path("agreed"))
    assert list(Path("agreed/.partial").rglob("*.npy"))
    with monkeypatch.context() as patch:
        patch.setattr("umo.training.run.Trainer.run", killed)
        given = ["--base", str(world / "base"), "--data", str(world / "sets/lora"), "--method", "sft"]
        code = run("train", *given, "--recipe", str(world / "recipe.yaml"), "--reward", "bands", "--out", "lora")
        assert code == 130
        patch.setattr(batches, "write_picture", lambda *given: (write_picture(*given), killed()))
        cases = world / "drawn.jsonl"
        assert run("generate", str(cases), "--out", "drawn", "--model", str(world / "base"), "--steps", "1") == 130
    assert list(Path("scores/.partial").rglob("*.npz")) and list(Path("lora/.partial/encoded").rglob("*"))
    found = kept.look(search, noted(tmp_path))
    assert named(tmp_path, found.goes) == {"scores/.partial", "agreed/.partial", "lora/.partial"}
    assert found.untold == [f"{tmp_path}/drawn/images (1 pictures that umo drew of somebody)"]


def test_a_training_at_work_is_not_disturbed(place: Path, search: Search) -> None:
    from filelock import FileLock

    partial = place / "lora/.partial"
    partial.mkdir()
    with FileLock(partial / "lock"), pytest.raises(WorkFailed, match="umo train is being run here already"):
        purge.purge(search, noted(place))
    assert partial.exists()
    purge.purge(search, noted(place))
    assert not partial.exists()


def test_what_git_tracks_and_what_looks_alike_is_left(place: Path, search: Search, monkeypatch) -> None:
    """A version is git's; a page, a folder and a list of somebody's own are theirs."""
    own = place / "own"
    (own / ".partial").mkdir(parents=True)
    (own / ".partial/half.zip").write_text("a download")
    (own / "images").mkdir()
    shutil.copy(place / "photos/anna.png", own / "images/anna-0.png")
    for name in ("metrics.json", "scores.parquet", "training.json", "page.html"):
        (own / name).write_text("{}")
    (own / "CASES.jsonl").write_text('{"case_id": "anna", "references": ["../photos/anna.png"]}\nno case\n')
    assert named(place, kept.look(search, noted(place)).goes) == THEIRS
    for name in ("metrics.json", "scores.parquet"):  # scored where they lie
        shutil.copy(place / "scores-bert" / name, own / name)
    found = kept.look(search, noted(place))
    assert named(place, found.goes) == THEIRS | {"own/metrics.json", "own/scores.parquet"}
    assert found.lists[own / "CASES.jsonl"] == b"no case\n"
    shutil.rmtree(own)
    monkeypatch.setattr(kept, "git", lambda *words, missing: "mine/pages/bert.html\0mine/lora/training.json")
    found = kept.look(search, noted(place))
    tracked = {"pages/bert.html"} if not noted(place).also else set()
    assert named(place, found.goes) == THEIRS - tracked and bool(found.models) == (not tracked)


def test_a_dry_run_lists_them_and_a_run_names_what_remains(place: Path, orl) -> None:
    """The whole command but for who is meant and the stages."""
    for name in ("params.yaml", "datasets/sources.yaml"):
        Path(name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, name)
    picture = "ab" * 32
    also = noted(place).also
    found = {"person_ids": [PERSON], "image_ids": [picture], "phashes": {picture: perceptual_hash(orl(1, 1))}}
    before = contents(place)
    said = list(stage._preview(Note(**found, also=also)))
    assert contents(place) == before and not NOTE.exists()
    assert {line for line in said if "for umo wrote it" in line} == {
        f"would go, for umo wrote it: {place / name}" for name in THEIRS
    }
    assert {f"their cases would go out of {place / name}" for name in LISTS} <= {*said}
    own = f"{place} (3 files), " if also else ""
    remain = f"copies remain in {own}{place}/lora; not looked into: {place}/one (1 pictures that umo drew of somebody)"
    assert said[-1] == remain
    with pytest.raises(CopiesRemain) as error:
        finish(Note(**found, also=also))
    assert str(error.value) == f"done here; {remain}"
    assert not any((place / name).exists() for name in THEIRS) and not NOTE.exists()


def test_an_interrupted_one_takes_folders_that_are_named_later(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [tmp_path.with_name(f"{tmp_path.name}-{k}") for k in range(2)]
    for folder in folders:
        folder.mkdir()
    Note(person_ids=[PERSON], image_ids=[], phashes={}, also=folders[:1]).write()
    for name in ("refuse_others", "drop"):
        monkeypatch.setattr(stage, name, lambda: None)
    monkeypatch.setattr(purge, "refuse_shared_cache", lambda: None)
    monkeypatch.setattr(stage, "finish", lambda note: f"{note.also}")
    assert stage.main([PERSON, "--also", str(folders[1]), "--also", str(folders[0])]) == f"{folders}"


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("nowhere", "no such folder"),
        ("link", "a link"),
        (".", "too much"),
        ("..", "too much"),
        ("/", "too much"),
        ("~", "too much"),
        ("mine", "it lies in the repository"),
        ("../other", "a repository of its own"),
    ],
)
def test_a_folder_that_had_better_not_be_cleared(tmp_path: Path, monkeypatch, folder: str, said: str) -> None:
    for name in ("repository/mine", "other/.git", "fine"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "repository")
    Path("link").symlink_to(tmp_path / "fine")
    assert kept.refuse_unfit([Path("../fine")]) == [tmp_path / "fine"]
    with pytest.raises(BadInput, match=said):
        stage.main(["--also", str(Path(folder).expanduser())])


def test_a_folder_that_has_gone_meanwhile_is_named(tmp_path: Path, monkeypatch, search: Search) -> None:
    monkeypatch.chdir(tmp_path)
    note = Note(person_ids=[PERSON], image_ids=[], phashes={}, also=[tmp_path / "gone"])
    assert kept.look(search, note).untold == [f"{tmp_path}/gone (not there)"]


def test_the_list_is_true_to_the_commands(world: Path) -> None:
    """A file that a command writes anew, and nobody entered, would be passed over."""

    def written(folder: str, *but: str) -> set[str]:
        return {path.name for path in (world / folder).iterdir()} - set(but)

    assert written("drawn") == kept.FILES["umo generate"].keys() == {CASES_FILE, IMAGES}
    assert written("scores-drawn", "others") == kept.FILES["umo evaluate"].keys()
    assert written("scores-drawn/others") == {*kept.SCORES[:2]}
    assert written("results", "0_anna.png", "1_bert.png") == kept.FILES["umo benchmark run"].keys() == {DRAWN}
    assert written("results/.drawn") == {"asked-1.jsonl", scoring.CASES, kept.IMAGES}
    assert written("judged") <= kept.FILES["umo benchmark score"].keys() | {*kept.SCORES}
    assert {scoring.CASES, scoring.PICTURES, scoring.INPUTS} < kept.FILES["umo benchmark score"].keys()
    assert written("lora") == {*kept.LORA} and {LIVE, sets.TRAINING, products.TRAINING} < {*kept.LORA}
    assert {folder.suffix for folder in (world / "pages").iterdir()} == {".html"}
