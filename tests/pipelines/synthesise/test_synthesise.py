"""Scenes of both generators on a small album of real photographs."""

import json
import pickle
import shutil
from collections import Counter
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from torch import Tensor

import umo.drawing.cases
from pipelines.core import products, store
from pipelines.core.params import load
from pipelines.core.shards import ROOT, WORK, Machine, tree_digest
from pipelines.synthesise import composite, customized, diptychs
from pipelines.synthesise import stage as synthesise
from pipelines.synthesise.base import Photographs
from pipelines.synthesise.diffusion import Diffused
from tests.pipelines.album import N_PEOPLE, write_album
from tests.small_models import write_text_to_image
from umo import faces, records
from umo.drawing import batches
from umo.errors import BadInput
from umo.scenes.prompts import open_prompt, positions

MACHINE = Machine()
LOOSE = {"min_side": 20, "min_cosine": 0.1, "max_cosine": 0.95, "max_cross_cosine": 0.7, "max_scenes": 1}
DIFFUSION = {
    "generator": "diffusion",
    "scenes": {"train": 4},
    "shard_size": 2,
    "people": [1, 2],
    "diffusion": {"seeds": 2, "strict": LOOSE},
}


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory, orl: Callable[[int, int], np.ndarray]) -> Path:
    folder = tmp_path_factory.mktemp("album")
    write_album(folder, orl, synthesise={**DIFFUSION, "scenes": {"train": 4, "validation": 0, "test": 0}})
    return folder


@pytest.fixture(scope="module")
def drawn(album: Path) -> Path:
    """The album with scenes drawn by the embedded base. Do not change it: take `studio`, a copy."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(album)
        synthesise.run(load("synthesise"), MACHINE)
    return album


@pytest.fixture
def studio(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(drawn, tmp_path / "studio")
    monkeypatch.chdir(tmp_path / "studio")
    return tmp_path / "studio"


def change(**changes: object) -> None:
    """Knobs of synthesise in the current folder's params.yaml; those of diffusion and strict where they belong."""
    params = yaml.safe_load(Path("params.yaml").read_text())
    section = params["synthesise"]
    for part in (section["diffusion"]["strict"], section["diffusion"], section):
        part |= {key: changes.pop(key) for key in list(changes) if key in part}
    assert not changes
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def run(machine: Machine = MACHINE) -> None:
    synthesise.run(load("synthesise"), machine)


def attempts() -> pl.DataFrame:
    return products.images(products.SYNTHESISED)


def never(*_: object, **__: object) -> None:
    raise AssertionError("the model was asked again")


def test_every_drawing_is_a_scene_or_has_a_reason(drawn, monkeypatch):
    monkeypatch.chdir(drawn)
    rows = attempts()
    assert sorted(rows["path"]) == sorted(f"train/{number}/{seed}" for number in range(4) for seed in range(2))
    assert rows["image_id"].n_unique() == 8
    good, bad = rows.filter(pl.col("status") == "ok"), rows.filter(pl.col("status") == "rejected")
    assert len(good) + len(bad) == 8
    assert len(good) > 1
    assert set(good["image_id"]) == set(products.scenes()["image_id"]) == set(products.layout()["image_id"])
    assert bad["key"].null_count() == len(bad)
    assert bad["error"].null_count() == 0
    assert good["group"].n_unique() == len(good), "one scene a case"
    assert set(rows["consent"]) == {"given"}
    assert set(rows["licence"]) == {"CC0"}
    assert not (drawn / WORK / "drawn").exists()


def test_an_accepted_scene_meets_the_filter_measured_anew(drawn, monkeypatch):
    """The stored picture, detected and embedded again; who is who by trying all permutations."""
    monkeypatch.chdir(drawn)
    model, pictures = faces.load("opencv_zoo"), store.Pictures(products.SYNTHESISED)
    place = {row["image_id"]: row for row in attempts().to_dicts()}
    centre = {row["person_id"]: np.array(row["centre"]) for row in products.people().to_dicts()}
    source = {row["face_id"]: row for row in products.faces(products.MEASURED_PHOTOS).to_dicts()}
    for scene in products.scenes().to_dicts():
        row = place[scene["image_id"]]
        picture = pictures.read(row)
        found = model.detect([picture])[0]
        embedded = model.embed([picture], [found])
        layout = products.layout().filter(image_id=scene["image_id"]).sort("position").to_dicts()
        assert len(found) == scene["n"] == len(layout)
        people = [placed["person_id"] for placed in layout]
        cosine = np.array([[centre[person] @ vector for vector in embedded] for person in people])
        best = max(permutations(range(len(found))), key=lambda order: sum(cosine[k, j] for k, j in enumerate(order)))
        for k, placed in enumerate(layout):
            assert placed["role"] == "target"
            assert placed["box"] == pytest.approx(found[best[k]].box, abs=0.1)
            assert cosine[k, best[k]] >= LOOSE["min_cosine"] - 1e-3
            reference = source[placed["source_face_id"]]
            assert reference["image_id"] == placed["source_image_id"]
            assert reference["image_id"].startswith(placed["person_id"][1:]), "a photograph of that person"
            assert np.array(reference["embedding"]) @ embedded[best[k]] <= LOOSE["max_cosine"]
        middles = [(placed["box"][0] + placed["box"][2]) / 2 / picture.shape[1] for placed in layout]
        assert middles == sorted(middles)
        assert scene["background"] in scene["prompt"]
        assert all(word in scene["prompt"] for word in positions(middles))


def test_the_base_is_given_references_as_export_cuts_them(studio, monkeypatch):
    """Each is the square around the face, as `square_crop` of the stored photograph, and in the order of the people."""
    from umo.images import encode_jpeg, read_image
    from umo.quality import square_crop

    asked = []
    monkeypatch.setattr(
        customized, "write_cases", lambda path, cases: asked.extend((path.parent, one) for one in cases)
    )
    monkeypatch.setattr(umo.drawing.cases, "generate_cases", never)
    change(seeds=3)
    with pytest.raises(AssertionError):
        run()
    photo = {row["face_id"]: row for row in products.faces(products.MEASURED_PHOTOS).to_dicts()}
    params = load("export")
    kept, case = asked[1]
    assert len(case.references) == 2
    for person, (name,) in zip(case.people, case.references, strict=True):
        face = photo[Path(name).stem]
        assert face["image_id"].startswith(person[1:])
        (row,) = products.images(products.INGESTED).filter(image_id=face["image_id"]).to_dicts()
        picture = store.Pictures(products.INGESTED).read(row)
        cut, _ = square_crop(picture, np.array(face["box"]), params.reference_crop, params.reference_side)
        assert read_image(kept / name).shape == cut.shape
        assert (kept / name).read_bytes() == encode_jpeg(cut)


def test_a_threshold_draws_nothing_anew_and_a_seed_does(studio, monkeypatch):
    before = {row["path"]: row["status"] for row in attempts().to_dicts()}
    monkeypatch.setattr(umo.drawing.cases, "generate_cases", never)
    change(max_scenes=2)
    run()
    after = {row["path"]: row["status"] for row in attempts().to_dicts()}
    assert list(after.values()).count("ok") > list(before.values()).count("ok")
    change(min_cosine=0.94)
    run()
    assert dict(attempts()["error"].value_counts().iter_rows())["a face under 0.94 to its person"] >= 6
    assert products.scenes().is_empty()
    change(seeds=3)
    with pytest.raises(AssertionError, match="asked again"):
        run()


def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(studio, monkeypatch):
    expected = tree_digest(products.SYNTHESISED)
    shutil.rmtree(WORK)
    draw, drawn = batches.draw_embedded, []

    def counted(*arguments: object) -> Tensor:
        if drawn:
            raise KeyboardInterrupt
        drawn.extend(arguments[2])
        return draw(*arguments)

    monkeypatch.setattr(batches, "draw_embedded", counted)
    with pytest.raises(KeyboardInterrupt):
        run()
    monkeypatch.setattr(batches, "draw_embedded", lambda *given: drawn.extend(given[2]) or draw(*given))
    run()
    assert len(drawn) == 4 * 2, "what was drawn before it was killed is kept"
    assert tree_digest(products.SYNTHESISED) == expected


def test_another_process_can_do_a_shard(studio):
    """What is sent to it survives pickling, and makes the same scenes."""
    generator = Diffused.of(load("synthesise"), MACHINE)
    shards = generator.shards()
    copy, pieces = pickle.loads(pickle.dumps((generator, shards)))
    for shard, piece in zip(shards, pieces, strict=True):
        made, again = generator.scenes(shard), copy.scenes(piece)
        assert made.pictures
        assert repr(made) == repr(again)


def test_one_more_photograph_changes_few_choices():
    def rows(n_people: int, n_photos: int) -> pl.DataFrame:
        names = [(f"p{p}", f"p{p}-{k}") for p in range(n_people) for k in range(n_photos)]
        return pl.DataFrame(names, schema=["person_id", "face_id"], orient="row")

    def choices(frame: pl.DataFrame) -> list[list[str]]:
        photographs = Photographs(frame)
        return [[own[0]["face_id"] for own in photographs.choose(2, f"7/train/{k}")] for k in range(600)]

    before = choices(rows(20, 4))
    people = Counter(name.split("-")[0] for chosen in before for name in chosen)
    assert all(len({name.split("-")[0] for name in chosen}) == 2 for chosen in before)
    assert set(people) == {f"p{k}" for k in range(20)}
    assert max(people.values()) < 1.5 * 60, "in about equal shares of 60 each"
    photo = pl.DataFrame([("p3", "p3-new")], schema=["person_id", "face_id"], orient="row")
    changed = [a for a, b in zip(before, choices(pl.concat([rows(20, 4), photo])), strict=True) if a != b]
    assert 0 < len(changed) < 30, "about 600 * 2/20 / 5 = 12"
    more = choices(rows(21, 4))
    assert all(any(name.startswith("p20-") for name in b) for a, b in zip(before, more, strict=True) if a != b)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"scenes": {"test": 2}}, "test has 0 people and synthesise.people asks for 2"),
        ({"people": [1, 6]}, f"train has {N_PEOPLE} people and synthesise.people asks for 6"),
        ({"model": "tiny-unno"}, "'tiny-unno' is neither a name under bases (tiny-uno, flux-uno, "),
        ({"model": "datasets"}, "datasets: no diffusers folder"),
        ({"model": str(ROOT / "models/tiny-uno")}, "synthesise.diffusion.licence is missing"),
        ({"templates": "nowhere.yaml"}, "nowhere.yaml: not readable"),
        ({"templates": "params.yaml"}, "params.yaml: 'styles': Field required"),
    ],
)
def test_what_cannot_be_asked_for_is_one_line(studio, changes, line):
    change(**changes)
    with pytest.raises(BadInput) as caught:
        run()
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_people_that_the_base_has_seen_are_drawn_for_training_only(studio):
    model = studio / "seen"
    shutil.copytree(ROOT / "models/tiny-uno", model, ignore=shutil.ignore_patterns("*.png", "*.py"))
    (model / "people.json").write_text(json.dumps({f"p{k}": [] for k in range(N_PEOPLE)}))
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["bases"]["tiny-uno"]["folder"] = str(model)
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    Diffused.of(load("synthesise"), MACHINE).drawer.asked()
    people = pl.read_parquet(products.PEOPLE / products.PEOPLE_TABLE).with_columns(split=pl.lit("test"))
    records.write(products.PEOPLE / products.PEOPLE_TABLE, people.to_dicts(), records.PEOPLE)
    change(scenes={"test": 2})
    with pytest.raises(BadInput, match="4 people of the cases were seen in training by"):
        run()


def test_prompts_from_templates(studio):
    Path("prompts.yaml").write_text(
        'styles: [An etching of]\nscenes: ["{people} in a cave", "{people} on a cliff", "{people} in a boat"]\n'
    )
    change(templates="prompts.yaml")
    asked = [case for cases in Diffused.of(load("synthesise"), MACHINE).drawer.asked().values() for case in cases]
    prompts = [case.prompt for case in asked]
    assert all(
        text.startswith(f"An etching of {('one person', 'two people')[k % 2]}") for k, text in enumerate(prompts)
    )
    assert prompts[1].endswith(": the first person on the left and the second person on the right.")
    assert asked[1].prompt_at([0.8, 0.1]).endswith("the first person on the right and the second person on the left.")
    Path("prompts.yaml").write_text("styles: [A]\nscenes: ['{people} in a cave', 'nobody']\n")
    with pytest.raises(BadInput, match=r"prompts.yaml: 'scenes.1': .*must hold \{people\} once"):
        Diffused.of(load("synthesise"), MACHINE).drawer.asked()
    change(templates=str(ROOT / "datasets/prompts.yaml"))
    Diffused.of(load("synthesise"), MACHINE).drawer.asked()


class Painter:
    """Stands for a pipeline of diffusers: shows two people of real photographs twice, side by side; a fault a seed.

    The first drawing is good, its right half in the other order; in the second the right half shows somebody else, in
    the third the same photographs again, in the fourth one person.
    """

    def __init__(self, orl: Callable[[int, int], np.ndarray]) -> None:
        def half(*shown: tuple[int, int]) -> np.ndarray:
            return np.concatenate([orl(*one)[:336, :276] for one in shown], axis=1)

        first = half((21, 1), (22, 1))
        second = (half((22, 3), (21, 3)), half((23, 1), (24, 1)), first, half((21, 3))[:, [*range(276)] * 2])
        alone = np.concatenate([orl(21, 3)[:336, :276], np.zeros((336, 276, 3), np.uint8)], axis=1)
        self.pictures = [np.concatenate([first, right], axis=1) for right in (*second[:3], alone)]
        self.asked: list[dict] = []

    def __call__(self, **options: object) -> object:
        self.asked.append(options)
        return type("Output", (), {"images": np.stack(self.pictures).astype(np.float32) / 255})


@pytest.fixture
def painter(studio, monkeypatch, orl) -> Painter:
    painter = Painter(orl)
    write_text_to_image(studio / "t2i")
    monkeypatch.setattr(diptychs, "load", lambda *_: painter)
    strict = {"min_side": 40, "min_cosine": 0.5, "max_cosine": 0.97, "max_cross_cosine": 0.5, "max_scenes": 4}
    change(model="t2i", licence="CC-BY-4.0", seeds=4, people=[2], scenes={"train": 1}, guidance=3.5, **strict)
    return painter


def test_halves_of_a_diptych_become_reference_and_target(studio, painter):
    run()
    rows = {row["path"]: row for row in attempts().to_dicts()}
    assert {path: row["error"] for path, row in rows.items()} == {
        "train/0/0/reference": None,
        "train/0/0/target": None,
        "train/0/1": "a face under 0.5 to its person",
        "train/0/2": "a face over 0.97 to what it was drawn from",
        "train/0/3": "a person is missing",
    }
    reference, target = rows["train/0/0/reference"], rows["train/0/0/target"]
    pictures = store.Pictures(products.SYNTHESISED)
    halves = [pictures.read(row) for row in (reference, target)]
    assert (np.concatenate(halves, axis=1) == painter.pictures[0]).all()
    assert {row["group"] for row in rows.values()} == {"diffusion/train/0"}
    assert {(row["consent"], row["licence"]) for row in rows.values()} == {("drawn", "CC-BY-4.0")}
    layout = products.layout()
    assert layout.select("source_face_id", "source_image_id", "guide_face_id").null_count().row(0) == (4, 4, 4)
    who = {role: layout.filter(role=role).sort("position")["person_id"].to_list() for role in ("reference", "target")}
    assert who["target"] == who["reference"][::-1], "the painter swaps them"
    assert len(set(who["target"])) == 2
    assert all(person.startswith("g") and len(person) == 13 for person in who["target"])
    (scene,) = products.scenes().to_dicts()
    assert (scene["image_id"], scene["n"], scene["split"]) == (target["image_id"], 2, "train")
    (asked,) = painter.asked
    assert len(set(asked["prompt"])) == 1
    assert asked["prompt"][0].startswith("A diptych, two side-by-side pictures of the same two people. On the left: A")
    assert scene["prompt"].split(":")[0] in asked["prompt"][0].replace("the same two", "two")
    assert asked["guidance_scale"] == 3.5
    assert "height" not in asked
    assert len({generator.initial_seed() for generator in asked["generator"]}) == 4


def test_a_pipeline_in_its_real_layout_draws_and_is_turned_away(studio):
    write_text_to_image(studio / "t2i")
    change(model="t2i", licence="CC0", seeds=2, people=[1], scenes={"train": 2}, size=[64, 128], steps=2)
    run()
    rows = attempts()
    assert rows["error"].to_list() == ["no face"] * 4
    assert set(rows["consent"]) == {"drawn"}
    first = tree_digest(products.SYNTHESISED)
    shutil.rmtree(WORK)
    diptychs.load.cache_clear()
    run()
    assert tree_digest(products.SYNTHESISED) == first
    weights = studio / "t2i/unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    diptychs.load.cache_clear()
    with pytest.raises(BadInput, match="t2i: cannot be loaded on cpu"):
        run()
    index = studio / "t2i/model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionPipeline", "StableDiffusionInpaintPipeline"))
    with pytest.raises(BadInput, match="StableDiffusionInpaintPipeline draws no pictures from text alone"):
        run()


def test_composite_scenes_show_what_their_layout_says(studio):
    """And neither the knobs of the other generator nor more scenes make them anew."""
    change(generator="composite", scenes={"train": 4}, people=[1, 2])
    run()
    first = {path.parent.name: path.read_bytes() for path in products.SYNTHESISED.glob("*/images.tar")}
    scenes = products.scenes().to_dicts()
    assert [scene["n"] for scene in scenes] == [1, 2, 1, 2]
    assert set(attempts()["status"]) == {"ok"}
    made = set((studio / WORK / "synthesise").iterdir())
    change(seeds=9, scenes={"train": 6})
    run()
    assert len(set((studio / WORK / "synthesise").iterdir()) - made) == 1
    for name, data in first.items():
        assert (products.SYNTHESISED / name / "images.tar").read_bytes() == data
    model, pictures = faces.load("opencv_zoo"), store.Pictures(products.SYNTHESISED)
    place = {row["image_id"]: row for row in attempts().to_dicts()}
    centre = {row["person_id"]: np.array(row["centre"]) for row in products.people().to_dicts()}
    for row in products.layout().to_dicts():
        picture = pictures.read(place[row["image_id"]])
        found = model.detect([picture])[0]
        nearest = min(found, key=lambda face: np.abs(face.box - np.array(row["box"])).sum())
        (vector,) = model.embed([picture], [[nearest]])
        assert max(centre, key=lambda person: centre[person] @ vector) == row["person_id"]


@pytest.mark.parametrize("placement", ["slots", "free"])
def test_where_the_prompt_is_open_people_stand_in_any_order(studio, placement):
    change(generator="composite", scenes={"train": 16}, people=[1, 2, 3, 4], widths=[256, 384, 512])
    change(open_prompts=0.25, placement=placement)
    run()
    in_order = {True: [], False: []}
    for scene in products.scenes().to_dicts():
        boxes = products.layout().filter(image_id=scene["image_id"]).sort("position")["box"].to_list()
        middles = [(box[0] + box[2]) / 2 for box in boxes]
        is_open = scene["prompt"] == open_prompt(scene["n"], scene["background"])
        in_order[is_open].append((scene["n"], middles == sorted(middles)))
    assert Counter(n for n, _ in in_order[True]) == dict.fromkeys((1, 2, 3, 4), 1)
    assert all(ordered for _, ordered in in_order[False])
    assert not all(ordered for _, ordered in in_order[True])


def test_a_photograph_that_goes_or_comes_draws_its_own_scenes_again_and_no_others(studio, monkeypatch):
    drawn: list[int] = []
    draw = composite._draw
    monkeypatch.setattr(composite, "_draw", lambda *arguments: drawn.append(1) or draw(*arguments))
    change(generator="composite", scenes={"train": 20}, people=[2], shard_size=10)
    run()
    assert len(drawn) == 20
    layout = products.layout()
    gone = layout["source_face_id"][0]
    shows = layout.filter((pl.col("source_face_id") == gone) | (pl.col("guide_face_id") == gone))["image_id"]
    rows = products.people_faces().with_columns(keep=pl.col("face_id") != gone)
    records.write(products.PEOPLE / products.PEOPLE_FACES_TABLE, rows.to_arrow(), records.PEOPLE_FACES)
    drawn.clear()
    run()
    assert 0 < len(drawn) == shows.n_unique() < 10
    kept = set(layout["image_id"]) & set(products.layout()["image_id"])
    assert kept == set(layout["image_id"]) - set(shows)
    grown = {path: path.read_bytes() for path in products.SYNTHESISED.glob("*/*")}
    shutil.rmtree(WORK)
    run()
    assert {path: path.read_bytes() for path in products.SYNTHESISED.glob("*/*")} == grown


def test_a_photograph_that_goes_has_few_drawings_drawn_again(studio, monkeypatch):
    """By the base, to which it is dear; the others are taken over."""
    asked: list[dict] = []
    gone = products.layout()["source_face_id"][0]
    rows = products.people_faces().with_columns(keep=pl.col("face_id") != gone)
    records.write(products.PEOPLE / products.PEOPLE_FACES_TABLE, rows.to_arrow(), records.PEOPLE_FACES)
    generate = umo.drawing.cases.generate_cases

    def counted(folder: Path, cases: Path, *arguments: object, **options: object) -> object:
        asked.extend(json.loads(line) for line in cases.read_text().splitlines())
        return generate(folder, cases, *arguments, **options)

    monkeypatch.setattr(umo.drawing.cases, "generate_cases", counted)
    run()
    assert 0 < len(asked) < 4


@pytest.mark.parametrize("generator", ["composite", "diffusion"])
def test_without_scenes_there_are_empty_tables_and_no_model_is_asked(studio, generator):
    """Whoever has photographs of several people needs none; the stages after read the tables."""
    change(generator=generator, model="nowhere", scenes={"train": 0})
    run()
    assert products.scenes().height == products.layout().height == attempts().height == 0
