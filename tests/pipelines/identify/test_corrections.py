"""What somebody who looked at the people says of them: who is merged, split, told apart and dropped."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from pipelines.core import products
from pipelines.core.corrections import COLUMNS, CORRECTIONS, read_corrections
from pipelines.core.ledger import LEDGER, Ledger, named_after
from pipelines.identify import stage
from pipelines.identify.corrected import Resolved, correct
from tests.pipelines.identify import made_up
from umo.errors import BadInput

TOGETHER = {"alike": (0, 1), "pictures": []}  # 0 and 1 are found to be one person
PAIRS = {"min_faces": 2}


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(*lines: str) -> None:
    CORRECTIONS.parent.mkdir(exist_ok=True)
    CORRECTIONS.write_text("\n".join([",".join(COLUMNS), *lines]) + "\n")


def owners(faces: pl.DataFrame) -> list[str | None]:
    """person_id of each of the eight, None where their four portraits are not all kept as one person's."""
    found = []
    for person in range(8):
        theirs = faces.filter("keep", pl.col("face_id").is_in(made_up.faces_of(person)))
        one = len(theirs) == 4 and theirs["person_id"].n_unique() == 1
        found.append(theirs["person_id"][0] if one else None)
    return found


def split_of(people: pl.DataFrame) -> dict[str, str]:
    return dict(people.filter("keep").select("person_id", "split").iter_rows())


def in_splits(people: pl.DataFrame, faces: pl.DataFrame, *splits: str) -> list[int]:
    """The first of the eight, by number, in each of the splits."""
    split, names = split_of(people), owners(faces)
    return [next(k for k, name in enumerate(names) if name and split[name] == wanted) for wanted in splits]


@pytest.mark.parametrize(("one", "other"), [("train", "test"), ("validation", "test"), ("train", "validation")])
def test_a_merge_across_splits_keeps_the_split_that_judges(capsys, one, other):
    made_up.write([])
    people, faces = made_up.identify()
    gone, stays = in_splits(people, faces, one, other)
    names = owners(faces)
    for model in ("saw", "new"):
        Path("models", model).mkdir(parents=True)
        seen = {names[gone]: [f"{made_up.faces_of(gone)[0]}.jpg"]} if model == "saw" else {names[stays]: []}
        Path("models", model, "people.json").write_text(json.dumps(seen))
    for method, seen in (("sft", names[gone]), ("sir", names[(gone + 1) % 8])):
        (products.TRAINED / method).mkdir(parents=True)
        (products.TRAINED / method / products.TRAINING).write_text(json.dumps({"people": [seen]}))
    write(f"merge,{names[gone]},{names[stays]},twins? no: one")
    ledger = LEDGER.read_text()
    capsys.readouterr()
    for _ in range(2):
        merged, faces = made_up.identify()
        said = [line for line in capsys.readouterr().out.splitlines() if "models" in line]
        assert split_of(merged) == {name: kept for name, kept in split_of(people).items() if name != names[gone]}
        theirs = faces.filter(person_id=names[stays])
        assert theirs.filter("keep")["face_id"].to_list() == sorted(made_up.faces_of(stays))
        dropped = theirs.filter(~pl.col("keep"))
        assert dropped["face_id"].to_list() == sorted(made_up.faces_of(gone))
        reason = f"merge by {CORRECTIONS} line 2: the person keeps another split"
        assert dropped["reason"].unique().to_list() == [reason]
        assert said == [
            f"identify: {CORRECTIONS}:2: {names[stays]} stays in {other}; 4 faces of {names[gone]} in {one} are "
            "dropped; models that saw them: models/saw, runs/train/sft"
        ]
    assert LEDGER.read_text() == ledger, "nobody moves"


def test_two_unlike_people_are_one_with_all_their_faces():
    """Strangers to the model: no face of either is an outlier of both."""
    made_up.write([])
    people, faces = made_up.identify(fractions={"train": 1, "validation": 0, "test": 0})
    first, second = sorted(owners(faces)[:2])
    write(f"merge,{second},{first}")
    for _ in range(2):
        people, faces = made_up.identify(fractions={"train": 1, "validation": 0, "test": 0})
        kept = faces.filter("keep", person_id=first)
        assert sorted(kept["face_id"]) == sorted(made_up.faces_of(0) + made_up.faces_of(1))
        assert second not in people["person_id"].to_list() and people.filter(person_id=first)["n"][0] == 8
        vectors = products.faces(products.MEASURED_PHOTOS).join(kept, on="face_id")["embedding"].to_numpy()
        centre = vectors.astype(np.float32).sum(0)
        np.testing.assert_allclose(
            people.filter(person_id=first)["centre"][0], centre / np.linalg.norm(centre), atol=1e-3
        )


def test_somebody_of_too_few_faces_is_merged_by_their_id():
    """They are in no ledger, and after the merge in no product: the line still means them."""
    made_up.write([(7,)], alone=range(7))
    people, faces = made_up.identify()
    alone = people.filter(~pl.col("keep"))["person_id"][0]
    assert faces.filter(person_id=alone).height == 1
    one = owners(faces)[0]
    write(f"merge,{alone},{one}")
    for _ in range(2):
        people, faces = made_up.identify()
        assert faces.filter("keep", person_id=one).height == 5
        assert alone not in people["person_id"].to_list()
    assert Ledger.read().rows([one]).height == 5


def test_a_split_gives_the_listed_faces_another_person():
    made_up.write(**TOGETHER)
    people, faces = made_up.identify(**PAIRS)
    both, split = owners(faces)[0], split_of(people)
    assert owners(faces)[1] == both
    listed = made_up.faces_of(1)[:2]
    write(f'split,{both},{" ".join(listed)},"a sister, not her"')
    for _ in range(2):
        people, faces = made_up.identify(**PAIRS)
        new = faces.filter(face_id=listed[0])["person_id"][0]
        assert sorted(faces.filter("keep", person_id=new)["face_id"]) == sorted(listed)
        assert new == named_after(min(listed)) and faces.filter("keep", person_id=both).height == 6
        assert split_of(people) == split | {new: split[both]}


def test_people_told_apart_by_a_face_each_share_out_the_rest():
    made_up.write(**TOGETHER)
    people, faces = made_up.identify(**PAIRS)
    both, split = owners(faces)[0], split_of(people)
    write(f"different,{made_up.faces_of(0)[2]},{made_up.faces_of(1)[3]}")
    people, faces = made_up.identify(**PAIRS)
    first, second = owners(faces)[:2]
    assert (first, second) == (both, named_after(made_up.faces_of(1)[3]))
    assert split_of(people)[first] == split_of(people)[second] == split[both]


def test_faces_that_are_the_same_join_their_people():
    made_up.write([])
    _, faces = made_up.identify(fractions={"train": 0, "validation": 0, "test": 1})
    write(f"same,{made_up.faces_of(3)[0]},{made_up.faces_of(5)[1]}")
    before = owners(faces)
    _, faces = made_up.identify(fractions={"train": 0, "validation": 0, "test": 1})
    after = owners(faces)
    assert after[3] == after[5] == min(before[3], before[5])
    assert [after[k] for k in (0, 1, 2, 4, 6, 7)] == [before[k] for k in (0, 1, 2, 4, 6, 7)]


def test_the_dropped_keep_a_row_with_the_reason():
    made_up.write([])
    people, faces = made_up.identify()
    face, person = made_up.faces_of(2)[1], owners(faces)[4]
    write("", f"drop,{face}", f"drop,{person},,asked by mail")
    people, faces = made_up.identify()
    assert faces.filter(face_id=face).select("keep", "reason").row(0) == (False, f"dropped by {CORRECTIONS} line 3")
    assert people.filter(person_id=person).select("keep", "reason").row(0) == (
        False,
        f"dropped by {CORRECTIONS} line 4",
    )
    assert people.filter("keep").height == 7
    assert people.filter(~pl.col("keep"))["split"].to_list() == [None]


A, B, F, G, H = "p0123456789ab", "pba9876543210", f"{'a' * 16}-0", f"{'b' * 16}-0", f"{'c' * 16}-12"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([f"join,{A},{B}"], "2: no action 'join'"),
        ([f"merge,{A},"], "2: merge takes one id"),
        ([f"merge,{A},{B} {F}"], "2: merge takes one id"),
        ([f"drop,{A},{B}"], "2: drop takes first alone"),
        ([f"split,{A},{B}"], "2: split takes"),
        ([f"merge,{A},{A}"], f"2: names {A} twice"),
        (["", f"merge,{A},Ann"], "3: 'Ann' is no person_id"),
        ([f"merge,{A},{B},a, b"], "2: 5 columns instead of 4"),
        ([f'drop,{F},,"two', 'lines"', f'drop,{G},,"open'], "4: not a row"),
        ([f"same,{F},{G}", f"different,{G},{F}"], "3: contradicts line 2"),
        ([f"different,{F},{H}", f"same,{F},{G}", f"same,{G},{H}"], "4: contradicts line 2"),
        ([f"merge,{A},{F}", f"split,{A},{F} {G}"], "3: contradicts line 2"),
        ([f"merge,{A},{B}", f"drop,{B}"], "3: contradicts line 2"),
        ([f"drop,{A}"], f"2: {A} is nobody"),
        ([f"different,{F},{G}"], f"2: {F} is nobody"),
    ],
)
def test_a_line_that_cannot_be_meant_is_refused_before_any_work(lines, said):
    made_up.write([])
    write(*lines)
    with pytest.raises(BadInput, match=f"{CORRECTIONS}:{said}"):
        made_up.identify()
    assert not products.PEOPLE.exists() and not LEDGER.exists()


@pytest.mark.parametrize(
    "data", [b"", b"action,first\n", b"first,action,second,note\n", b"action,first,second,note\xff\n"]
)
def test_another_file_is_refused(data):
    CORRECTIONS.parent.mkdir()
    CORRECTIONS.write_bytes(data)
    with pytest.raises(BadInput, match=r"first line must be action,first,second,note|not UTF-8"):
        read_corrections()


def test_a_spreadsheets_file_is_read():
    """A byte-order mark, CRLF, spaces, cells that are left out."""
    CORRECTIONS.parent.mkdir()
    CORRECTIONS.write_bytes(f"\ufeffaction,first,second,note\r\n merge , {A},{B} \r\n,,,\r\ndrop,{F}\r\n".encode())
    found = [(row.line, row.action, row.ids) for row in read_corrections()]
    assert found == [(2, "merge", (A, B)), (4, "drop", (F,))]


def test_a_split_of_everybody_is_refused():
    made_up.write([])
    _, faces = made_up.identify(fractions={"train": 1, "validation": 0, "test": 0})
    one, other = owners(faces)[:2]
    write(f"merge,{one},{other}", f"split,{one},{' '.join(made_up.faces_of(1))}")
    with pytest.raises(BadInput, match=f":3: splits off all faces of {other}: contradicts line 2"):
        made_up.identify()
    write(f"split,{one},{' '.join(made_up.faces_of(0))}")
    with pytest.raises(BadInput, match=f":2: splits off all faces of {one}: nobody would be left"):
        made_up.identify()


def test_a_line_about_a_face_that_joins_nobody_is_said_to_change_nothing(capsys):
    made_up.write([])
    made_up.identify()
    made_up.blur(made_up.faces_of(0)[:1])
    write(f"same,{made_up.faces_of(0)[0]},{made_up.faces_of(1)[0]}")
    made_up.identify()
    assert f"{CORRECTIONS}:2: changes nothing" in capsys.readouterr().out


def test_new_faces_go_to_the_nearer_side_of_a_split():
    """Of a cluster, the ledger has 0 to 3, and 3 is split off: 4 and 5 are new, 5 looks like 3."""
    face_ids = pl.Series([f"{k:016x}-0" for k in range(6)])
    towards = np.array([[1, 0], [1, 0], [0.9, 0.1], [0, 1], [0.8, 0.3], [0.2, 0.9]], np.float32)
    vectors = towards / np.linalg.norm(towards, axis=1, keepdims=True)
    ledger = Ledger(pl.DataFrame({"face_id": face_ids[:4], "person_id": A, "split": "train"}))
    write(f"split,{A},{face_ids[3]}")
    row = read_corrections()[0]
    resolved = [Resolved(row, face_ids[:4].to_list(), [face_ids[3]])]
    found = correct(resolved, face_ids, vectors, np.zeros(6, np.int64), ledger)
    assert found.cluster.tolist() == [0, 0, 0, 1, 0, 1]
    assert found.part.tolist() == [0] * 6 and not found.elsewhere.any()
    assert found.naming.tolist() == [True] * 5 + [False], "a new face changes nobody's id"


def test_one_persons_faces_lie_together_and_nobodys_last(monkeypatch):
    monkeypatch.setattr(stage, "ROWS", 6)
    made_up.write([])
    write()
    _, faces = made_up.identify(min_score=0.95)
    assert faces["person_id"].null_count() == len(faces) == 32, "nobody at all"
    made_up.blur(made_up.faces_of(0))
    people, faces = made_up.identify()
    table = pq.ParquetFile(products.PEOPLE / products.PEOPLE_FACES_TABLE)
    lying = pl.DataFrame(table.read())
    assert lying.equals(faces.sort("person_id", "face_id", nulls_last=True))
    groups = [table.metadata.row_group(k).column(2).statistics for k in range(table.num_row_groups)]
    assert table.metadata.row_group(0).column(2).path_in_schema == "person_id" and len(groups) == 6
    one = people["person_id"][3]
    assert sum(group.min <= one <= group.max for group in groups if group.min) <= 2
    assert products.faces_of([one]).equals(faces.filter(person_id=one))
