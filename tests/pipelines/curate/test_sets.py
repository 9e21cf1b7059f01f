"""Scenes, sets, the export and the cases, each held against an independent reading of the products."""

import hashlib
import io
import json

import numpy as np
import polars as pl
import pytest
import yaml
from PIL import Image

from pipelines.core import products
from umo import records
from umo.evaluation import metrics
from umo.evaluation import scoring as evaluation
from umo.scenes.prompts import COLOURS


@pytest.fixture(scope="module")
def data(repro) -> dict[str, list[dict]]:
    """Products as plain rows."""

    def shards(product, table):
        return pl.concat(pl.read_parquet(file) for file in sorted((repro.path / product).glob(f"*/{table}"))).to_dicts()

    return {
        "images": shards(products.INGESTED, products.IMAGES_TABLE)
        + shards(products.SYNTHESISED, products.IMAGES_TABLE),
        "layout": shards(products.SYNTHESISED, products.LAYOUT_TABLE),
        "scenes": shards(products.SYNTHESISED, products.SCENES_TABLE),
        "photo_faces": shards(products.MEASURED_PHOTOS, products.FACES_TABLE),
        "scene_faces": shards(products.MEASURED_SCENES, products.FACES_TABLE),
        "people": pl.read_parquet(repro.path / products.PEOPLE / products.PEOPLE_TABLE).to_dicts(),
        "owners": pl.read_parquet(repro.path / products.PEOPLE / products.PEOPLE_FACES_TABLE).to_dicts(),
        "sets": pl.read_parquet(repro.path / products.CURATED / products.SETS_TABLE).to_dicts(),
    }


@pytest.fixture(scope="module")
def params(repro) -> dict:
    return yaml.safe_load((repro.path / "params.yaml").read_text())


def overlap(a, b) -> float:
    """Intersection over union."""
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def test_faces_are_found_where_the_layout_says(data):
    found = {}
    for face in data["scene_faces"]:
        found.setdefault(face["image_id"], []).append(face["box"])
    best = [
        max((overlap(row["box"], box) for box in found.get(row["image_id"], [])), default=0) for row in data["layout"]
    ]
    assert np.mean(np.array(best) > 0.5) >= 0.97


def test_scenes_show_people_of_one_split(data):
    split = {row["person_id"]: row["split"] for row in data["people"]}
    scene = {row["image_id"]: row for row in data["scenes"]}
    for row in data["layout"]:
        assert split[row["person_id"]] == scene[row["image_id"]]["split"]
    counts = pl.DataFrame(data["layout"]).group_by("image_id").len()
    assert {row["image_id"]: row["len"] for row in counts.to_dicts()} == {k: v["n"] for k, v in scene.items()}


def test_the_prompt_says_what_the_scene_shows(data):
    words = {1: "one person", 2: "two people", 3: "three people"}
    for scene in data["scenes"]:
        assert f"A photo of {words[scene['n']]} in front of a {scene['background']} background" in scene["prompt"]
        assert scene["background"].split()[1] in COLOURS


def test_the_background_has_the_colour_of_the_prompt(repro, data):
    """The nearest of the named colours to the corners' median is the named one, in nearly all scenes."""
    from pipelines.core.store import Pictures

    pictures = Pictures(repro.path / products.SYNTHESISED)
    place = {row["image_id"]: row for row in data["images"]}
    right = []
    for scene in data["scenes"]:
        picture = pictures.read(place[scene["image_id"]])
        strip = np.median(picture[:6].reshape(-1, 3), axis=0)
        names = list(COLOURS)
        chroma = [np.linalg.norm(strip / strip.sum() - np.array(c) / sum(c)) for c in COLOURS.values()]
        grey = {"white", "grey"}
        nearest = names[int(np.argmin(chroma))]
        truth = scene["background"].split()[1]
        right.append(nearest == truth or {nearest, truth} <= grey)
    assert np.mean(right) >= 0.9


def test_licence_and_consent_of_a_scene_are_those_of_its_photographs(data):
    image = {row["image_id"]: row for row in data["images"]}
    for row in data["layout"]:
        source, scene = image[row["source_image_id"]], image[row["image_id"]]
        assert source["licence"] in scene["licence"]
        order = ["unknown", "public", "research", "given"]
        assert order.index(scene["consent"]) <= order.index(source["consent"])


def test_kept_sets_obey_every_bound(data, params):
    bounds = params["curate"]
    vector = {
        face["face_id"]: np.array(face["embedding"], np.float64) for face in data["photo_faces"] + data["scene_faces"]
    }
    owner = {row["face_id"]: row["person_id"] for row in data["owners"] if row["keep"]}
    sources, made_from = {}, {}
    for row in data["layout"]:
        sources.setdefault(row["image_id"], set()).add(row["source_image_id"])
        made_from[row["image_id"], row["person_id"]] = vector[row["source_face_id"]]
    kept = [row for row in data["sets"] if row["keep"]]
    assert len(kept) >= 40
    for row in kept:
        assert bounds["min_people"] <= row["n"] == len(row["person_ids"]) == len(row["pool"]) <= bounds["max_people"]
        assert len(set(row["person_ids"])) == row["n"]
        middles = [(box[0] + box[2]) / 2 for box in row["target_boxes"]]
        assert middles == sorted(middles) or ":" not in row["prompt"], "people stand in the order of the references"
        target = [vector[face] for face in row["target_face_ids"]]
        cross = [a @ b for i, a in enumerate(target) for b in target[:i]]
        assert not cross or max(cross) == pytest.approx(row["cross_cosine"], abs=1e-3)
        assert max(cross, default=-1) <= bounds["max_cross_cosine"] + 1e-3
        for person, face, pool in zip(row["person_ids"], target, row["pool"], strict=True):
            assert 1 <= len(pool) <= bounds["pool"]
            assert len({entry["face_id"] for entry in pool}) == len(pool)
            for entry in pool:
                assert owner[entry["face_id"]] == person
                assert entry["image_id"] not in sources.get(row["target_image_id"], set()) | {row["target_image_id"]}
                photographed = made_from.get((row["target_image_id"], person), face)
                assert photographed @ vector[entry["face_id"]] <= bounds["max_source_cosine"] + 1e-3
                assert entry["cosine"] == pytest.approx(vector[entry["face_id"]] @ face, abs=1e-3)
                assert bounds["min_cosine"] <= entry["cosine"] <= bounds["max_cosine"]


def test_people_in_a_set_are_those_who_were_placed(data):
    placed = {}
    for row in data["layout"]:
        placed.setdefault(row["image_id"], []).append((row["position"], row["person_id"]))
    for row in data["sets"]:
        if row["keep"] and row["target_kind"] == "synthesised":
            assert row["person_ids"] == [person for _, person in sorted(placed[row["target_image_id"]])]


def test_every_picture_with_faces_has_a_row_and_a_reason_or_is_kept(data):
    pictures = {face["image_id"] for face in data["photo_faces"] + data["scene_faces"]} | {
        row["image_id"] for row in data["scenes"]
    }
    assert {row["target_image_id"] for row in data["sets"]} == pictures
    assert all((row["reason"] is None) == row["keep"] for row in data["sets"])


def test_no_person_is_in_two_splits(data):
    split = {}
    for row in data["sets"]:
        for person in row["person_ids"] if row["keep"] else ():
            split.setdefault(person, set()).add(row["split"])
    assert all(len(found) == 1 for found in split.values())


def test_datasets_opens_all_references_of_every_set(repro, data, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from datasets import load_dataset

    exported = load_dataset(str(repro.path / products.EXPORTED), cache_dir=str(tmp_path))
    kept = {row["set_id"]: row for row in data["sets"] if row["keep"]}
    assert sum(len(exported[split]) for split in exported) == len(kept)
    for split in exported:
        for row in exported[split]:
            truth = kept[row["set_id"]]
            assert truth["split"] == split
            assert len(row["references"]) == truth["n"]
            assert [1 + len(pool) for pool in row["pool"]] == [len(pool) for pool in truth["pool"]]
            assert all(isinstance(image, Image.Image) for image in [row["target"], *row["references"], *row["pool"][0]])
            assert row["licence"] and row["consent"] and row["source"]


def test_landmarks_of_a_reference_lie_on_its_face(repro):
    """The curating detector, asked again on the exported crop, agrees."""
    from umo import faces

    model = faces.load("opencv_zoo")
    rows = pl.read_parquet(sorted((repro.path / products.EXPORTED).glob("test-*.parquet"))[0]).to_dicts()[:8]
    for row in rows:
        for image, landmarks in zip(row["references"], row["reference_landmarks"], strict=True):
            picture = np.asarray(Image.open(io.BytesIO(image["bytes"])).convert("RGB"))
            face = max(model.detect([picture])[0], key=lambda face: face.side)
            distance = np.linalg.norm(face.landmarks - np.reshape(landmarks, (5, 2)), axis=1)
            assert distance.mean() < 0.06 * face.side


def test_checksums_and_card(repro, data):
    folder = repro.path / products.EXPORTED
    sums = dict(reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text().splitlines())
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == set(sums) | {"SHA256SUMS"}
    for name, value in sums.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == value
    card = (folder / "README.md").read_text()
    kept = sum(row["keep"] for row in data["sets"])
    assert f"{kept} training examples" in card
    funnel = json.loads((repro.path / products.CURATED / products.FUNNEL).read_text())
    assert f"{funnel['pictures']} pictures were considered and {kept} kept" in card
    assert "Free for research with credit (AT&T Laboratories Cambridge)" in card


def test_cases_show_nobody_trained_on(repro, data):
    cases = evaluation.read_cases(repro.path / products.GENERATED / "target" / products.CASES_FILE)
    split = {row["person_id"]: row["split"] for row in data["people"]}
    assert {split[person] for case in cases for person in case.people} == {"test"}
    assert {len(case.references) for case in cases} == {1, 2, 3}
    by_n = {n: {tag for case in cases if len(case.references) == n for tag in case.tags} for n in (1, 2, 3)}
    assert "alike" in by_n[2] & by_n[3] and "alike" not in by_n[1]


def test_the_ceiling_the_copy_and_the_floor(repro):
    """What needs no model already orders the metrics."""
    found = {
        method: json.loads((repro.path / products.EVALUATED / method / products.METRICS).read_text())
        for method in ("target", "pasted", "base", "shuffled")
    }
    mean = {
        method: {
            key: value["mean"] for key, value in found[method].items() if isinstance(value, dict) and "mean" in value
        }
        for method in found
    }
    assert mean["shuffled"]["coverage"] < 0.05 < 0.9 <= mean["target"]["coverage"]
    assert abs(mean["shuffled"]["id_sim_strict"]) < 0.3 < 0.75 < mean["target"]["id_sim_strict"]
    assert mean["target"]["id_sim_strict"] < mean["pasted"]["id_sim_strict"]
    assert mean["target"]["copy_paste"] < -0.9 < 0.2 < mean["pasted"]["copy_paste"]
    assert mean["shuffled"]["id_sim_strict"] < mean["base"]["id_sim_strict"] < mean["target"]["id_sim_strict"]
    compared = json.loads((repro.path / products.COMPARISONS).read_text())
    assert compared["base-shuffled"]["id_sim_strict"]["difference"] > 0.05
    assert compared["mimr-target"]["id_sim_strict"]["verdict"] == "worse"
    assert set(compared["mimr-base"]["side_effects"]) == set(metrics.SIDE_EFFECTS)


def test_scores_have_a_row_a_picture(repro):
    scores = records.read(repro.path / products.EVALUATED / "target" / products.SCORES_TABLE, records.SCORES)
    lines = (repro.path / products.CASES / products.CASES_FILE).read_text().splitlines()
    assert scores.num_rows == len(lines)
