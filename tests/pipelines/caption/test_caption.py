"""Captions of kept sets: the template passes through, a model's sentence is kept only if it names no one."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from pipelines.caption import stage as caption
from pipelines.core import products
from pipelines.core.params import load
from pipelines.core.shards import Machine, tree_digest
from tests.pipelines.album import write_album
from tests.small_models import write_captioner
from umo import records
from umo.errors import BadInput
from umo.scenes.prompts import places

MACHINE = Machine()
VLM = {"model": "captioner", "batch": 2, "precision": "fp32", "max_tokens": 12, "instruction": "describe the scene"}


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory, orl: Callable[[int, int], np.ndarray]) -> Path:
    folder = tmp_path_factory.mktemp("album")
    write_album(folder, orl, caption={"captioner": "template", "shards": 4, "vlm": VLM})
    return folder


@pytest.fixture
def studio(album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An album of which each photograph is the target of a set; one set is not kept. No scenes are synthesised."""
    shutil.copytree(album, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / products.SYNTHESISED / "none").mkdir(parents=True)
    records.write(products.SYNTHESISED / "none" / products.IMAGES_TABLE, [], records.IMAGES)
    write_sets()
    caption._load.cache_clear()
    return tmp_path


def write_sets(left_out: str = "") -> None:
    """A set a photograph, all kept but one and whatever is left out."""
    images = products.images(products.INGESTED).to_dicts()
    boxes = dict(products.faces(products.MEASURED_PHOTOS).select("image_id", "box").iter_rows())
    sets = []
    for row, other in zip(images, [*images[1:], images[0]], strict=True):
        name = row["image_id"]
        entry = {"face_id": f"{other['image_id'][:16]}-0", "image_id": other["image_id"], "cosine": 0.7}
        own = {"set_id": f"s{hashlib.sha256(name.encode()).hexdigest()[:16]}", "n": 1, "target_kind": "ingested"}
        own |= {"target_image_id": name, "target_boxes": [boxes[name]], "target_sources": [name]}
        own |= {"pool": [[entry | {"recall": "corpus"}]], "prompt": f"template of {name[:2]}: {places([0.5])}."}
        kept = name not in (images[5]["image_id"], left_out)
        sets.append(dict.fromkeys(records.SETS.names) | own | {"keep": kept})
    products.CURATED.mkdir(exist_ok=True)
    records.write(products.CURATED / products.SETS_TABLE, sorted(sets, key=lambda row: row["set_id"]), records.SETS)


def run(captioner: str = "template") -> pl.DataFrame:
    """Caption; the rows beside the target they belong to."""
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["caption"]["captioner"] = captioner
    Path("params.yaml").write_text(yaml.safe_dump(params))
    caption.run(load("caption"), MACHINE)
    return products.captions().join(products.sets().select("set_id", "target_image_id", template="prompt"), on="set_id")


class Speaker:
    """Stands for a captioner: says a given text, and keeps what it was shown."""

    def __init__(self, say: Callable[[np.ndarray], str]) -> None:
        self.say, self.batches = say, []

    def describe(self, pictures: list[np.ndarray], instruction: str, max_tokens: int) -> list[str]:
        self.batches.append([hashlib.sha256(picture.tobytes()).hexdigest() for picture in pictures])
        return [self.say(picture) for picture in pictures]


@pytest.fixture
def speaker(studio: Path, monkeypatch: pytest.MonkeyPatch) -> Speaker:
    (studio / "captioner").mkdir()
    (studio / "captioner/config.json").write_text("{}")
    speaker = Speaker(lambda _: "One person looks at the camera. It is dark.")
    monkeypatch.setattr(caption, "_load", lambda *_: speaker)
    return speaker


def test_the_template_passes_through(studio):
    rows = run()
    assert len(rows) == 15
    assert set(rows["set_id"]) == set(products.sets().filter("keep")["set_id"])
    assert (rows["prompt"] == rows["template"]).all()
    assert set(rows["captioner"]) == {"template"}
    assert len(list(products.CAPTIONED.glob("*/captions.parquet"))) == 4
    assert products.captioned_sets().equals(products.sets().filter("keep"))


def test_captions_are_the_prompts_of_the_kept_sets(studio, speaker):
    run("vlm")
    captioned = products.captioned_sets()
    assert captioned.columns == records.SETS.names
    assert captioned["set_id"].to_list() == products.sets().filter("keep")["set_id"].to_list()
    width = dict(products.images(products.INGESTED).select("image_id", "width").iter_rows())
    for row in captioned.to_dicts():
        box = row["target_boxes"][0]
        where = places([(box[0] + box[2]) / 2 / width[row["target_image_id"]]])
        assert row["prompt"] == f"One person looks at the camera: {where}."
    sets = products.sets().with_columns(prompt=pl.lit("A photo of one person."))
    records.write(products.CURATED / products.SETS_TABLE, sets.to_dicts(), records.SETS)
    assert set(run("vlm")["prompt"]) == {"One person looks at the camera."}, "what is open stays open"
    write_sets(left_out=products.images(products.INGESTED)["image_id"][0])
    assert len(products.captioned_sets()) == 14, "a set that went needs no caption"
    sets = products.sets().with_columns(keep=True)
    records.write(products.CURATED / products.SETS_TABLE, sets.to_dicts(), records.SETS)
    with pytest.raises(BadInput, match="1 kept sets have no caption; run dvc repro caption"):
        products.captioned_sets()


def test_a_sentence_that_could_name_somebody_gives_way_to_the_template(studio, speaker, capsys):
    """The photographs lie in folders called anna0 to anna3; the reference of each fourth one is of the next folder."""
    said = iter(["a picture of anna at home", "Someone called Zoe at home", "a person at home"] * 5)
    speaker.say = lambda _: next(said)
    rows = run("vlm")
    assert sorted(rows["captioner"]) == ["captioner"] * 5 + ["template"] * 10
    own = rows.filter(pl.col("captioner") == "captioner")
    assert own["prompt"].str.starts_with("A person at home: the first person ").all()
    kept = rows.filter(pl.col("captioner") == "template")
    assert (kept["prompt"] == kept["template"]).all()
    out = capsys.readouterr().out
    assert "5 a capital that could begin a name, 5 a word of a label, a path or a credit" in out


def test_each_picture_is_shown_once_and_whole(studio, speaker):
    from pipelines.core import store

    run("vlm")
    shown = [picture for batch in speaker.batches for picture in batch]
    pictures = store.Pictures(products.INGESTED)
    wanted = products.sets().filter("keep").select(image_id="target_image_id")
    stored = [
        pictures.read(row).tobytes() for row in wanted.join(products.images(products.INGESTED), "image_id").to_dicts()
    ]
    assert sorted(shown) == sorted(hashlib.sha256(data).hexdigest() for data in stored)
    assert {len(batch) for batch in speaker.batches} <= {1, 2}


def test_a_set_that_goes_or_comes_back_captions_no_other_again(studio, speaker):
    run("vlm")
    speaker.batches.clear()
    rows = run("vlm")
    assert not speaker.batches
    gone = rows["target_image_id"][0]
    write_sets(left_out=gone)
    left = run("vlm")
    assert not speaker.batches
    assert set(left["set_id"]) == set(rows["set_id"]) - {rows["set_id"][0]}
    write_sets()
    assert run("vlm").equals(rows)
    assert sum(map(len, speaker.batches)) == 0, "the shard as it was is there still"


def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(studio, speaker):
    run("vlm")
    expected = tree_digest(products.CAPTIONED)
    asked = list(speaker.batches)
    shutil.rmtree(".work")
    speaker.batches.clear()
    say = speaker.say

    def killed(picture: np.ndarray) -> str:
        if len(speaker.batches) == 4:
            raise KeyboardInterrupt
        return say(picture)

    speaker.say = killed
    with pytest.raises(KeyboardInterrupt):
        run("vlm")
    speaker.say = say
    run("vlm")
    assert speaker.batches[:3] + speaker.batches[4:] == asked, "finished batches are not asked for again"
    assert tree_digest(products.CAPTIONED) == expected


def test_what_a_killed_run_was_told_is_taken_for_the_same_pictures_alone(studio, speaker):
    """Where the set that came before them is known by now, for one."""
    speaker.say = lambda picture: str(picture.sum())
    rows = [
        row | {"set_id": row["key"], "target_kind": "ingested"} for row in products.images(products.INGESTED).to_dicts()
    ]
    told = [
        list(caption._answers(caption.VisionLanguage(**VLM), "cpu", part, Path("kept"))) for part in (rows, rows[1:])
    ]
    assert told[1] == told[0][1:]


def test_a_real_model_captions_and_a_changed_one_captions_again(studio):
    with pytest.raises(BadInput, match="captioner: missing"):
        run("vlm")
    write_captioner(studio / "captioner")
    rows = run("vlm")
    own = rows.filter(pl.col("captioner") == "captioner")
    assert len(own) > 10
    assert own["prompt"].str.contains(": the first person in the middle.", literal=True).all()
    first = tree_digest(products.CAPTIONED)
    write_captioner(studio / "captioner", seed=1)
    caption._load.cache_clear()
    run("vlm")
    assert tree_digest(products.CAPTIONED) != first
    write_captioner(studio / "captioner")
    caption._load.cache_clear()
    run("vlm")
    assert tree_digest(products.CAPTIONED) == first


def test_vlm_needs_a_model(studio):
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["caption"] = {"captioner": "vlm", "shards": 2}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(BadInput, match="captioner vlm needs the section vlm"):
        load("caption")
