"""People from faces, splits from components, and a ledger that is only ever appended to."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipelines.core import products
from pipelines.core.ledger import COLUMNS, OLD_COLUMNS, SPLITS, Ledger, numbers
from pipelines.identify.corrected import Corrected
from pipelines.identify.people import Bounds, People, Reasons
from pipelines.identify.stage import repeated_images
from tests.pipelines import killed
from tests.pipelines.identify import made_up
from tests.pipelines.identify.made_up import FRACTIONS, album
from umo.errors import BadInput


def test_near_duplicates_keep_the_sharpest_copy():
    measured = pl.DataFrame(
        {
            "image_id": ["a", "b", "c", "d", "e"],
            "phash": ["00000000000000ff", "00000000000000fe", "ffffffffffffffff", None, "ffffffffffffffff"],
            "sharpness": [0.1, 0.2, 0.3, None, 0.3],
        }
    )
    assert set(repeated_images(measured, 1)) == {"a", "e"}
    assert set(repeated_images(measured, 0)) == {"e"}


def people(count: int, faces: int = 3) -> dict[str, list[str]]:
    return {f"p{k:02d}": [f"f{k:02d}-{j}" for j in range(faces)] for k in range(count)}


def frame(owners: dict[str, list[str]], split: dict[str, str]) -> pl.DataFrame:
    return rows((face, person, split[person]) for person, faces in owners.items() for face in faces if person in split)


def rows(faces: Iterable[tuple[str, str, str]]) -> pl.DataFrame:
    """face_id, person_id, split, as a ledger takes them."""
    return pl.DataFrame(list(faces), dict.fromkeys(("face_id", "person_id", "split"), pl.String), orient="row")


def draw(ledger: Ledger, owners: dict, component: dict, fractions=FRACTIONS, seed=1) -> dict[str, str]:
    """Ledger.draw of people with their faces, as a mapping."""
    faces = [(face, person) for person, theirs in owners.items() for face in theirs]
    drawn = ledger.draw(
        pl.DataFrame(list(component.items()), schema=["person_id", "component"], orient="row"),
        pl.DataFrame(faces, schema=["face_id", "person_id"], orient="row"),
        fractions,
        seed,
    )
    return dict(drawn.iter_rows())


def test_splits_fill_the_fractions_and_do_not_depend_on_the_order():
    owners = people(40)
    alone = {person: person for person in owners}
    split = draw(Ledger(), owners, alone)
    assert [list(split.values()).count(name) for name in SPLITS] == [20, 10, 10]
    backwards = dict(reversed(owners.items()))
    assert draw(Ledger(), backwards, dict(reversed(alone.items()))) == split
    assert draw(Ledger(), owners, alone, seed=2) != split


def test_a_component_goes_together():
    owners = people(12)
    component = {person: f"c{k // 3}" for k, person in enumerate(owners)}
    split = draw(Ledger(), owners, component)
    for name in set(component.values()):
        assert len({split[person] for person in owners if component[person] == name}) == 1


def test_a_drawn_split_never_moves():
    """More people, another seed and other fractions move nobody who is in the ledger."""
    ledger, owners = Ledger(), people(10)
    before = draw(ledger, owners, {person: person for person in owners})
    ledger.extend(frame(owners, before))
    more = people(30)
    other = {"train": 0.1, "validation": 0.1, "test": 0.8}
    after = draw(ledger, more, {person: person for person in more}, other, seed=9)
    assert {person: after[person] for person in before} == before


def test_welded_components_follow_the_majority_of_the_ledger():
    ledger = Ledger(rows([("f1-0", "a", "train"), ("f2-0", "a", "train"), ("f3-1", "b", "test")]))
    split = draw(ledger, {"a": ["f1-0", "f2-0"], "b": ["f3-1"]}, {"a": "c", "b": "c"})
    assert split == {"a": "train", "b": "train"}
    known = numbers(ledger.find(pl.Series(["f3-1", "f3-0", "f1-0"]))["split"])
    assert known.tolist() == [SPLITS.index("test"), -1, SPLITS.index("train")], "the ledger still knows: b is dropped"


def named(ledger: Ledger, *clusters: list[str]) -> list[str]:
    faces = [face for cluster in clusters for face in cluster]
    return ledger.names(
        pl.Series(faces), np.repeat(np.arange(len(clusters)), [len(cluster) for cluster in clusters])
    ).to_list()


def test_a_person_keeps_the_name_of_the_ledger():
    ledger = Ledger(rows([("f1", "old", "train"), ("f2", "old", "train"), ("f3", "other", "train")]))
    assert named(ledger, ["f0", "f1", "f2"]) == ["old"]
    assert named(ledger, ["f2", "f3", "f1"]) == ["old"], "most of its faces are old"
    broken = named(ledger, ["f0", "f1"], ["f4", "f5"], ["f2", "f6"])
    assert broken[0] == "old", "of two parts as large the first keeps the name"
    assert len(set(broken)) == 3
    assert named(ledger, ["f1", "f3", "f7"], ["f2", "f0"])[0] == "old"
    larger = Ledger(rows((f"f{k}", "old", "train") for k in range(5)))
    assert named(larger, ["f0"], ["f1", "f2", "f3"])[1] == "old", "the larger part keeps the name"
    assert named(Ledger(), ["f8", "f9"]) == named(Ledger(), ["f9", "f8"])


def test_two_people_never_share_a_name():
    fresh = named(Ledger(), ["f8"])[0]
    assert len(set(named(Ledger(rows([("f0", fresh, "train")])), ["f0"], ["f8"]))) == 2


def test_the_file_is_appended_to(tmp_path):
    path = tmp_path / "splits.csv"
    ledger = Ledger.read(path)
    ledger.extend(frame({"a": ["f2-0", "f1-1"]}, {"a": "train"}))
    ledger.write(path)
    first = path.read_text()
    assert first == "person_id,split,faces\na,train,f1-1 f2\n"
    again = Ledger.read(path)
    again.extend(frame({"b": ["f0-0"], "a": ["f1-1", "f10-10", "f2-0"]}, {"a": "test", "b": "test"}))
    again.write(path)
    assert path.read_text() == first + "a,test,f10-10\nb,test,f0\n"
    expected = [("f1-1", "a", "train"), ("f2-0", "a", "train"), ("f10-10", "a", "test"), ("f0-0", "b", "test")]
    assert Ledger.read(path).rows().rows() == expected
    before = path.stat().st_mtime_ns
    again.extend(frame({"b": ["f0-0"]}, {"b": "train"}))
    again.write(path)
    assert path.stat().st_mtime_ns == before, "nothing new, nothing written"


def test_a_ledger_of_the_old_form_is_brought_over(tmp_path):
    path = tmp_path / "splits.csv"
    old = [("f2-0", "f2", "b", "test"), ("f1-0", "f1", "a", "train"), ("f3-12", "f3", "b", "test")]
    path.write_text("\n".join(",".join(row) for row in (OLD_COLUMNS, *old)) + "\n")
    ledger = Ledger.read(path)
    assert ledger.rows().rows() == [(face, person, split) for face, _, person, split in old]
    ledger.write(path)
    assert path.read_text() == "person_id,split,faces\nb,test,f2 f3-12\na,train,f1\n"
    assert sorted(Ledger.read(path).rows().rows()) == sorted(ledger.rows().rows())


def test_two_branches_that_were_merged_leave_a_face_its_first_split(tmp_path):
    path = tmp_path / "splits.csv"
    path.write_text("person_id,split,faces\na,train,f1 f2\nb,test,f2 f3\n")
    ledger = Ledger.read(path)
    assert ledger.rows().rows() == [("f1-0", "a", "train"), ("f2-0", "a", "train"), ("f3-0", "b", "test")]
    ledger.write(path)
    assert path.read_text() == "person_id,split,faces\na,train,f1 f2\nb,test,f3\n"


def test_the_forgotten_leave_the_ledger(tmp_path):
    path = tmp_path / "splits.csv"
    shown = "0123456789abcdef"
    ledger = Ledger(
        frame({"a": [f"{shown}-0", f"{shown}-3", "f2-0"], "b": ["f3-0"], "c": ["f4-0"]}, dict.fromkeys("abc", "train"))
    )
    ledger.write(path)
    ledger = Ledger.read(path)
    assert ledger.drop([shown + 48 * "0"], "b") == 3
    ledger.write(path)
    assert path.read_text() == "person_id,split,faces\na,train,f2\nc,train,f4\n"


HEADER = ",".join(COLUMNS) + "\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ": first line must be"),
        ("face,split\n", ": first line must be"),
        (HEADER + "a,holdout,f1\n", ":2: "),
        (HEADER + "a,train,f1\nb,test\n", ":3: "),
        (HEADER + "a,train,f1\nb,,f2\n", ":3: "),
        (HEADER + "a,train,f1\n<<<<<<< HEAD\nb,test,f2\n", ":3: "),
        (HEADER + "a,train,f1  f2\n", ":2: "),
        (HEADER + "a,train,f1 f2\nb,test,f3 f", ": its last line is cut short"),
        (HEADER.strip(), ": its last line is cut short"),
        (",".join(OLD_COLUMNS) + "\nf1-0,f1,a,train\nf2-0,f2,a,tr", ": its last line is cut short"),
        (",".join(OLD_COLUMNS) + "\nf1-0,f1,a,holdout\n", ":2: "),
    ],
)
def test_a_broken_ledger_is_refused(tmp_path, text, said):
    path = tmp_path / "splits.csv"
    path.write_text(text)
    with pytest.raises(BadInput, match=f"splits.csv{said}.*restore it from git"):
        Ledger.read(path)


def test_a_ledger_that_dvc_keeps_is_not_begun_anew(tmp_path):
    assert Ledger.read(tmp_path / "splits.csv").rows().is_empty()
    (tmp_path / ".gitignore").write_text("/people\n/splits.csv\n")
    with pytest.raises(BadInput, match="dvc pull"):
        Ledger.read(tmp_path / "splits.csv")


def test_people_of_the_photographs_are_found_from_the_faces(repro):
    """33 people of ORL, and the user's own photographs of one more."""
    check = json.loads((repro.path / products.PEOPLE / products.PEOPLE_CHECK).read_text())
    assert check["adjusted_rand_index"] >= 0.99
    assert check["people"] == 34
    faces = pl.read_parquet(repro.path / products.PEOPLE / products.PEOPLE_FACES_TABLE)
    tables = [pl.read_parquet(file) for file in (repro.path / products.INGESTED).glob("*/images.parquet")]
    mine = pl.concat(tables).filter((pl.col("source") == "mine") & (pl.col("status") == "ok"))
    owner = faces.filter("keep").join(mine.select("image_id"), on="image_id")["person_id"]
    assert owner.n_unique() == 1
    assert len(owner) >= 3


def test_every_face_turned_away_has_a_reason(repro):
    faces = pl.read_parquet(repro.path / products.PEOPLE / products.PEOPLE_FACES_TABLE)
    assert faces.filter(~pl.col("keep"))["reason"].null_count() == 0
    assert faces.filter("keep")["reason"].null_count() == faces.filter("keep").height


class TestComponents:
    """Pictures that people share join them, unless the component would grow too large."""

    def identify(self, tmp_path, monkeypatch, pictures, alone=range(8), alike=(), group=album, **changes):
        """Run identify on made-up faces (made_up.write) with other params."""
        monkeypatch.chdir(tmp_path)
        made_up.write(pictures, alone, alike, group)
        found = made_up.identify(**changes)
        assert Path("datasets/splits.csv").exists()
        return found

    def test_people_of_one_picture_share_a_split(self, tmp_path, monkeypatch):
        people, _ = self.identify(tmp_path, monkeypatch, [(0, 1), (1, 2)])
        assert people.height == 8
        sizes = people.group_by("component").len()["len"].sort().to_list()
        assert sizes == [1, 1, 1, 1, 1, 3]
        assert people.group_by("component").agg(pl.col("split").n_unique())["split"].max() == 1

    def test_a_picture_that_would_weld_too_many_is_dropped(self, tmp_path, monkeypatch):
        people, faces = self.identify(tmp_path, monkeypatch, [(0, 1), (2, 3), (1, 2)])
        assert people.group_by("component").len()["len"].max() == 2
        dropped = faces.filter(~pl.col("keep"))
        assert dropped["image_id"].n_unique() == 1
        assert dropped["reason"].unique().to_list() == ["its picture would weld more than 3 people"]

    def test_a_person_left_without_faces_is_not_kept(self, tmp_path, monkeypatch):
        """Person 7 is shown only together with three others: the picture goes, and with it the person."""
        people, _ = self.identify(tmp_path, monkeypatch, [(0, 1, 2, 7)], alone=range(7), min_faces=1)
        dropped = people.filter(~pl.col("keep"))
        assert dropped["reason"].to_list() == ["fewer than 1 faces"]
        assert people.filter("keep")["n"].min() >= 1

    def test_all_pairs_of_alike_people_share_a_component(self, tmp_path, monkeypatch):
        """0 and 1 are most alike, 2 is alike both: the nearest neighbour alone would not tell of all three."""
        people, _ = self.identify(tmp_path, monkeypatch, [], alike=(0, 1, 2, 3), max_person_cosine=0.05, min_cosine=0.8)
        assert people.group_by("component").len()["len"].max() >= 4

    def test_only_alike_people_share_a_component(self, tmp_path, monkeypatch):
        people, _ = self.identify(tmp_path, monkeypatch, [], alike=(5, 1, 7, 3), max_person_cosine=0.4, min_cosine=0.8)
        assert people.group_by("component").len()["len"].sort().to_list() == [1, 1, 1, 1, 4]
        named = people.group_by("component").agg(pl.col("person_id").min())
        assert (named["component"] == named["person_id"]).all(), "a component is named after its first person"

    def test_an_outlier_is_dropped_and_does_not_pull_the_centre(self):
        """Three faces near one direction, and one at a right angle to it."""
        vectors = np.array([[1, 0, 0], [0.96, 0.28, 0], [0.96, -0.28, 0], [0, 0, 1], [0, 1, 0]], np.float32)
        faces = pl.DataFrame({"face_id": list("abcde"), "image_id": list("vwxyz")})
        bounds = Bounds(min_face_cosine=0.5, min_faces=1, max_person_cosine=0.9, max_component=9)
        found = People(bounds, faces, vectors, Corrected.nothing(np.array([0, 0, 0, 0, -1])), Reasons(5), Ledger())
        np.testing.assert_allclose(found.centre, [[1, 0, 0]], atol=1e-6)
        np.testing.assert_allclose(found.cosine, [1, 0.96, 0.96, 0, np.nan], atol=1e-6)
        assert found.kept().tolist() == [0, 1, 2]
        assert found.reasons.counts() == {"cosine to the person's centre below 0.5": 1}

    def test_a_face_never_changes_its_split(self, tmp_path, monkeypatch):
        """Two people of different splits become one (a looser clustering): the minority's faces are dropped."""
        (tmp_path / "a").mkdir()
        self.identify(tmp_path / "a", monkeypatch, [], alike=(0, 1), min_cosine=0.8, max_person_cosine=0.9)
        ledger = (tmp_path / "a/datasets/splits.csv").read_text()
        before = dict(Ledger.read(tmp_path / "a/datasets/splits.csv").rows().select("face_id", "split").iter_rows())
        (tmp_path / "b/datasets").mkdir(parents=True)
        (tmp_path / "b/datasets/splits.csv").write_text(ledger)
        people, faces = self.identify(
            tmp_path / "b", monkeypatch, [], alike=(0, 1), min_cosine=0.1, min_face_cosine=0.1, max_person_cosine=0.9
        )
        assert "the face is in another split of the ledger" in faces["reason"].to_list()
        split = dict(people.filter("keep").select("person_id", "split").iter_rows())
        for face in faces.filter("keep").to_dicts():
            if face["person_id"] in split and face["face_id"] in before:
                assert split[face["person_id"]] == before[face["face_id"]]

    def test_groups_are_linked_under_the_stricter_bound(self, tmp_path, monkeypatch):
        """Everybody's four portraits lie in two albums, or each alone: the mean cosine of one person's is about .9."""
        for number, (bound, expected) in enumerate({0.8: 8, 0.96: 16}.items()):
            folder = tmp_path / str(number)
            folder.mkdir()
            halves = {"group": lambda number: f"album {number % 4 // 2}", "min_faces": 1}
            people, _ = self.identify(folder, monkeypatch, [], min_cosine_across=bound, **halves)
            assert people.height == expected
        (tmp_path / "alone").mkdir()
        nowhere = {"group": lambda number: None, "min_faces": 1, "min_cosine_across": 0.96}
        assert self.identify(tmp_path / "alone", monkeypatch, [], **nowhere)[0].height == 32
        (tmp_path / "large").mkdir()
        large = {"max_group": 31, "min_faces": 1, "min_cosine_across": 0.96}
        assert self.identify(tmp_path / "large", monkeypatch, [], **large)[0].height == 32, "no album is that large"

    def test_the_same_input_gives_the_same_bytes(self, tmp_path, monkeypatch):
        for name in "ab":
            (tmp_path / name).mkdir()
            self.identify(tmp_path / name, monkeypatch, [(0, 1)], alike=(2, 3))
        for table in (products.PEOPLE_TABLE, products.PEOPLE_FACES_TABLE, products.PEOPLE_CHECK):
            first, second = ((tmp_path / name / products.PEOPLE / table).read_bytes() for name in "ab")
            assert first == second

    def test_a_later_conflict_drops_and_never_moves(self, tmp_path, monkeypatch):
        (tmp_path / "a").mkdir()
        first, _ = self.identify(tmp_path / "a", monkeypatch, [])
        ledger = (tmp_path / "a/datasets/splits.csv").read_text()
        train, test = (first.filter(pl.col("split") == name)["person_id"][0] for name in ("train", "test"))
        number = {person: int(k) for k, person in enumerate(self._order(tmp_path / "a"))}
        (tmp_path / "b/datasets").mkdir(parents=True)
        (tmp_path / "b/datasets/splits.csv").write_text(ledger)
        people, _ = self.identify(tmp_path / "b", monkeypatch, [(number[train], number[test])])
        assert (tmp_path / "b/datasets/splits.csv").read_text().startswith(ledger)
        dropped = people.filter(~pl.col("keep"))
        assert dropped["reason"].to_list() == ["its component is in another split of the ledger"]
        assert dropped["person_id"][0] in {train, test}
        known = dict(line.split(",")[:2] for line in ledger.splitlines()[1:])
        for row in people.filter("keep").to_dicts():
            assert row["split"] == known[row["person_id"]]

    @staticmethod
    def _order(folder) -> list[str]:
        """person_id by the number that `identify` gave the person."""
        faces = pl.read_parquet(folder / products.PEOPLE / products.PEOPLE_FACES_TABLE)
        owner = dict(faces.select("image_id", "person_id").iter_rows())
        return [owner[f"{4 * person:064x}"[::-1]] for person in range(8)]

    @pytest.mark.parametrize("moment", [*killed.SWAPS, "before the ledger"])
    def test_killed_while_it_publishes_the_next_run_gives_the_same(self, tmp_path, monkeypatch, moment):
        """Old or new, people and ledger are whole, and the ledger never knows more than the people do."""
        folder = tmp_path / "killed"
        folder.mkdir()
        self.identify(folder, monkeypatch, [], alone=range(5))
        before = made(folder)

        def again(where: Path = folder) -> None:
            for product in (products.INGESTED, products.MEASURED):
                shutil.rmtree(where / product)
            self.identify(where, monkeypatch, [(0, 6)])

        shutil.copytree(folder, tmp_path / "whole")
        again(tmp_path / "whole")
        after = made(tmp_path / "whole")
        assert after["splits.csv"] != before["splits.csv"]
        at_ledger = moment == "before the ledger"
        if at_ledger:
            monkeypatch.setattr(Ledger, "write", lambda ledger: (_ for _ in ()).throw(killed.Killed))
            with pytest.raises(killed.Killed):
                again()
            monkeypatch.undo()
        else:
            killed.here(monkeypatch, moment, products.PEOPLE, again)
        left = made(folder)
        assert left["splits.csv"] == before["splits.csv"]
        new = at_ledger or moment == "after the swap"
        assert left == (after if new else before) | {"splits.csv": before["splits.csv"]}
        again()
        assert made(folder) == after
        again()
        assert made(folder) == after, "the ledger says again what it was told"


def made(folder: Path) -> dict[str, bytes]:
    """The ledger and the people, by file."""
    people = folder / products.PEOPLE
    return {path.name: path.read_bytes() for path in (*people.iterdir(), folder / "datasets/splits.csv")}
