"""Curating small hand-made products: one rule a test."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipelines.core import products
from pipelines.curate.balance import limit_of_n, within_cap
from tests.pipelines.made import PARAMS, Made, curate, diptych, face_id, image_id, near, references
from tests.pipelines.made_sets import write_captions
from umo import records
from umo.scenes.prompts import prompt

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def made() -> Made:
    """Ann and Bob, both in `query`, which is of the first shot of a video."""
    made = Made()
    made.person("ann", near(0, 0))
    made.person("bob", near(1, 0))
    made.picture("query", [("ann", near(0, 20)), ("bob", near(1, 20))], group="video", clip="1")
    made.picture("bob elsewhere", [("bob", near(1, 20, 21))], group="another")
    return made


def test_references_come_from_other_clips_of_the_group_then_from_other_groups(made):
    made.picture("same clip", [("ann", near(0, 20, 21))], group="video", clip="1")
    made.picture("other clip", [("ann", near(0, 20, 22))], group="video", clip="2")
    made.picture("no clip", [("ann", near(0, 20, 23))], group="video")
    made.picture("another's clip", [("ann", near(0, 20, 24))], group="another", clip="1")
    made.picture("of no group", [("ann", near(0, 20, 25))])
    found = references(curate(made, pool=9)["query"])
    assert set(found[:2]) == {(face_id("other clip"), "group"), (face_id("no clip"), "group")}
    assert set(found[2:]) == {(face_id("another's clip"), "corpus"), (face_id("of no group"), "corpus")}


def test_pictures_without_a_group_are_no_album(made):
    made.picture("first", [("ann", near(0, 20, 21)), ("bob", near(1, 20, 22))])
    made.picture("second", [("ann", near(0, 20, 22))])
    row = curate(made, pool=9)["first"]
    assert set(references(row)) == {(face_id("second"), "corpus"), (face_id("query"), "corpus")}
    assert (face_id("first", 1), "corpus") not in references(row, 1)


def test_the_band_is_closed_at_both_ends_of_similarity(made):
    for angle in (1, 10, 30, 50, 80):  # to the query's face, which lies 20 degrees off in the same direction
        made.picture(f"at {angle}", [("ann", near(0, 20 + angle))])
    found = references(curate(made, pool=9)["query"])
    assert {face for face, _ in found} == {face_id(f"at {angle}") for angle in (30, 50)}
    row = curate(made, min_cosine=0.7)["query"]
    assert references(row) == [(face_id("at 30"), "corpus")]
    assert row["reference_cosine"] == [pytest.approx(np.cos(np.radians(30)), abs=1e-3), pytest.approx(0.883, abs=1e-3)]
    assert curate(made, min_cosine=0.9)["query"]["reason"] == "no reference between 0.9 and 0.95"


def test_poses_are_taken_in_turn_and_the_targets_own_last(made):
    for name, yaw in {"like target": 3, "like it too": -4, "left": -40, "left, too": -42, "right": 38}.items():
        made.picture(name, [("ann", near(0, 20, 21), {"pose": [yaw, 0, 50]})])
    made.picture("up", [("ann", near(0, 20, 21), {"pose": [0, 35, 0]})])
    for pool, other in ((3, set()), (4, {"like target", "like it too", "left", "left, too"})):
        found = {face for face, _ in references(curate(made, pool=pool)["query"])}
        assert {face_id("right"), face_id("up")} < found
        assert len(found & {face_id("left"), face_id("left, too")}) >= 1
        assert len(found & {face_id("like target"), face_id("like it too")}) <= (pool > 3)
        assert len(found) == pool and (not other or found & {face_id(name) for name in other})
    drawn = {
        tuple(references(curate(made, pool=3, seed=seed, pose_bin={"ingested": 0, "synthesised": 0})["query"]))
        for seed in range(8)
    }
    assert any(face_id("like target") in dict(order) for order in drawn), "without bins the order is as drawn"


def test_one_pose_fills_a_pool_where_there_is_no_other(made):
    for k in range(4):
        made.picture(f"like target {k}", [("ann", near(0, 20, 21))])
    assert len(references(curate(made, pool=3)["query"])) == 3


def test_every_fault_of_a_picture_is_its_reason(made):
    ann = ("ann", near(0, 20))
    made.picture("ann elsewhere", [("ann", near(0, 20, 21))])
    made.person("eve", near(2, 0), keep=False)
    made.person("tom", near(3, 0), split="test")
    made.person("ivy", near(4, 60, 0))  # half of her direction is Ann's
    pictures = {
        "too few people": [ann],
        "too many people": [ann] * 5,
        "a face of nobody known": [ann, (None, near(9, 0))],
        "a person who is not kept": [ann, ("eve", near(2, 0))],
        "a face under 36 px": [ann, ("bob", near(1, 20), {"side_px": 35})],
        "a face under 0.5 to its person's centre": [ann, ("bob", near(1, 70))],
        "the same person twice": [ann, ("ann", near(0, 20, 21))],
        "people of two splits": [ann, ("tom", near(3, 0))],
        "two people over 0.4": [("ann", near(0, 0)), ("ivy", near(4, 60, 0))],
    }
    for name, faces in pictures.items():
        made.picture(name, faces)
    made.picture("no reference between 0.5 and 0.95", [("tom", near(3, 0)), ("tim", near(5, 0))])
    made.person("tim", near(5, 0), split="test")
    rows = curate(made, max_sets_per_person=80)
    assert {name: rows[name]["reason"] for name in pictures} == {name: name for name in pictures}
    assert rows["query"]["keep"] and rows["query"]["reason"] is None
    assert rows["no reference between 0.5 and 0.95"]["reason"] == "no reference between 0.5 and 0.95"
    funnel = json.loads((products.CURATED / products.FUNNEL).read_text())
    assert funnel["reasons"] == dict(
        sorted(
            Counter(row["reason"] for row in rows.values() if row["reason"]).items(),
            key=lambda item: (-item[1], item[0]),
        )
    )
    assert funnel["pictures"] == len(rows) and funnel["kept"] == 1


def test_rows_say_who_stands_where_and_on_what_terms(made):
    made.picture("ann elsewhere", [("ann", near(0, 20, 21))], licence="CC BY", consent="research")
    row = curate(made)["query"]
    assert row["person_ids"] == ["ann", "bob"] and row["n"] == 2 and row["split"] == "train"
    assert row["target_face_ids"] == [face_id("query", 0), face_id("query", 1)]
    assert [box[0] for box in row["target_boxes"]] == [0, 100]
    assert row["target_sources"] == [row["target_image_id"]] and row["target_kind"] == "ingested"
    assert row["licence"] == "CC BY + CC0" and row["consent"] == "research"
    assert row["prompt"] == prompt([0.1, 0.35])


def test_one_person_stands_in_a_third_of_the_picture(made):
    made.picture("ann elsewhere", [("ann", near(0, 20, 21))])
    for left in (0, 150, 300):
        made.picture(f"at {left}", [("ann", near(0, 20), {"box": [left, 10, left + 80, 90]})])
    rows = curate(made, min_people_ingested=1)
    for left in (0, 150, 300):
        assert rows[f"at {left}"]["prompt"] == prompt([(left + 40) / 400])


def composite(made: Made) -> None:
    """A scene with Ann, made from her photograph `source` and placed like `guide`."""
    made.picture("source", [("ann", near(0, 20))], group="film", clip="4")
    made.picture("same clip", [("ann", near(0, 20, 22))], group="film", clip="4")
    for k in range(6):
        made.picture(f"other {k}", [("ann", near(0, 20, 23 + k))], group="film", clip=f"{k + 5}")
    made.picture("scene", [("ann", near(0, 22))], kind="synthesised", group="made/1")
    made.scene("scene", 1)
    source = {"source_face_id": face_id("source"), "source_image_id": image_id("source")}
    made.placed("scene", "ann", 0, guide_face_id=face_id("other 3"), **source)


def test_a_scene_takes_its_guide_first_and_nothing_from_the_clip_it_was_made_from(made):
    composite(made)
    for seed in range(4):
        row = curate(made, pool=3, seed=seed, max_candidates=2)["scene"]
        assert references(row)[0] == (face_id("other 3"), "corpus")
        assert face_id("same clip") not in dict(references(row))
        assert row["target_sources"] == [image_id("source")] and row["prompt"] == "as asked"


def test_a_near_copy_of_the_photograph_in_a_scene_is_no_reference(made):
    composite(made)
    made.picture("copy", [("ann", near(0, 21))])  # 1 degree from the source, 1 from the scene's face
    assert face_id("copy") in dict(references(curate(made, pool=99, max_cosine=1, max_source_cosine=1)["scene"]))
    assert face_id("copy") not in dict(references(curate(made, pool=99, max_cosine=1)["scene"]))


def test_a_placed_person_who_is_not_found_again(made):
    composite(made)
    (face,) = made.faces["synthesised"]
    face["box"] = [200.0, 10.0, 280.0, 90.0]
    row = curate(made)["scene"]
    assert row["reason"] == "a face of nobody known" and row["person_ids"] == [None, "ann"] and row["n"] == 2
    made.faces["synthesised"].clear()
    row = curate(made)["scene"]
    assert row["reason"] == "a placed person is not found" and row["person_ids"] == ["ann"]
    assert row["target_face_ids"] == [None] and row["prompt"] == "as asked" and not row["keep"]


def test_people_who_were_drawn_have_the_other_half_as_reference(made):
    diptych(made)
    made.picture("rejected", [], "synthesised", status="rejected", key=None)
    rows = curate(made)
    assert set(rows) == {"query", "bob elsewhere", "drawn"}, "a reference half is no target"
    row = rows["drawn"]
    assert row["keep"] and row["split"] == "test" and row["consent"] == "unknown"
    assert row["person_ids"] == ["gdrawn0", "gdrawn1"] and row["target_sources"] == []
    for rank in (0, 1):
        assert references(row, rank) == [(face_id(f"drawn half {rank}"), "group")]
        assert row["pool"][rank][0]["image_id"] == image_id(f"drawn half {rank}")
        assert row["pool"][rank][0]["cosine"] == pytest.approx(np.cos(np.radians(40)), abs=1e-3)
    assert curate(made, min_cosine=0.8)["drawn"]["reason"] == "no reference between 0.8 and 0.95"
    assert curate(made, min_person_cosine=0.95)["drawn"]["reason"] == "a face under 0.95 to its person's centre"


def test_the_people_of_a_scene_are_in_the_order_of_its_layout(made):
    diptych(made)
    for row in made.layout[::2]:
        row["position"] = 1 - row["position"]
    row = curate(made)["drawn"]
    assert row["person_ids"] == ["gdrawn1", "gdrawn0"]
    assert row["target_face_ids"] == [face_id("drawn", 1), face_id("drawn", 0)]
    assert [box[0] for box in row["target_boxes"]] == [100, 0]
    assert [references(row, k)[0][0] for k in (0, 1)] == [face_id("drawn half 1"), face_id("drawn half 0")]


def test_a_half_whose_face_is_not_where_it_was_drawn_is_no_reference(made):
    diptych(made)
    made.layout[1]["box"] = [300.0, 10.0, 380.0, 90.0]
    assert curate(made)["drawn"]["reason"] == "no reference between 0.5 and 0.95"


@pytest.mark.parametrize("seed", range(20))
def test_the_limit_of_a_number_of_people_is_the_largest_that_holds(seed):
    rng = np.random.default_rng(seed)
    counts = {n: int(rng.integers(1, 30)) for n in range(1, 1 + int(rng.integers(1, 7)))}
    for share in (0.2, 0.25, 1 / 3, 0.5, 0.7, 1):

        def left(limit, counts=counts):
            return sum(min(count, limit) for count in counts.values())

        allowed = max(share, 1 / len(counts))
        largest = max(
            limit for limit in range(1, 200) if min(limit, max(counts.values())) <= allowed * left(limit) + 1e-9
        )
        assert left(limit_of_n(counts, share)) == left(largest)


def test_a_person_is_in_so_many_sets_and_those_turned_away_do_not_count():
    assert within_cap([["a", "b"], ["a", "c"], ["c"], ["c", "b"], ["b"]], 1) == [True, False, True, False, False]


def planted(made: Made, change: Callable[[list[dict]], None], **bounds: object) -> list[str]:
    """What validate says of the sets after a change of their rows, or of the bounds."""
    from pipelines.validate import stage as validate
    from pipelines.validate.suites import suites

    curate(made)
    rows = records.read(products.CURATED / products.SETS_TABLE, records.SETS).to_pylist()
    change(rows)
    (products.CURATED / products.SETS_TABLE).unlink()  # it is a hard link into .work
    records.write(products.CURATED / products.SETS_TABLE, rows, records.SETS)
    write_captions(rows)
    everything = yaml.safe_load((ROOT / "params.yaml").read_text())
    Path("params.yaml").write_text(yaml.safe_dump(everything | {"curate": PARAMS | bounds}))
    wanted = [suite for suite in suites(0) if suite.name in ("sets", "numbers of people", "references")]
    return [fault for outcome in validate.check(wanted, Path("docs")).values() for fault in outcome["faults"]]


def test_validate_holds_recall_clips_and_shares(made):
    made.picture("same shot", [("ann", near(0, 20, 21))], group="video", clip="1")
    made.picture("other shot", [("ann", near(0, 20, 22)), ("bob", near(1, 20, 22))], group="video", clip="2")
    composite(made)

    def set_entry(**fields: str) -> Callable[[list[dict]], None]:
        def change(rows: list[dict]) -> None:
            (row,) = [row for row in rows if row["target_image_id"] == image_id("query")]
            row["pool"][0][0] |= fields

        return change

    assert planted(made, lambda rows: None) == []
    there = {"face_id": face_id("same shot"), "image_id": image_id("same shot")}
    (fault,) = planted(made, set_entry(**there))
    assert fault.startswith("references: a reference from a clip that the target lies in or was made from (1 of ")
    (fault,) = planted(made, set_entry(recall="corpus"))
    assert fault.startswith("references: a recall that does not fit the groups of reference and target (1 of ")
    assert "references: a recall that is neither group nor corpus" in planted(made, set_entry(recall="web"))[0]
    (fault,) = planted(made, lambda rows: None, max_share_of_n=0.6)
    assert fault.startswith("numbers of people: more sets with one number of people than curate.max_share_of_n (1 of 2")
