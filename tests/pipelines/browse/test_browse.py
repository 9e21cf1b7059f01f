"""The page for looking: what it shows, in which order, what it lets one copy, and that it is safe to open."""

import csv
import os
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from pipelines.__main__ import main
from pipelines.browse import looks
from pipelines.browse.looks import Wanted
from pipelines.browse.stage import PAGE, browse
from pipelines.core import products, store
from pipelines.service.links import find
from tests.pipelines.made_sets import make
from umo import records
from umo.errors import BadInput
from umo.images import ImageError

EVIL = '<script>alert(1)</script> & "quotes", commas\n'
CHROMIUM = Path("/usr/bin/chromium")


class Page(HTMLParser):
    """The tags of a page, with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def all(self, name: str) -> list[str]:
        """Values of an attribute, in the order of the page."""
        return [value for _, attributes in self.tags if (value := attributes.get(name)) is not None]


@pytest.fixture(scope="module")
def made_world(orl: Callable[[int, int], np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four people of four faces, one face each that is doubtful; a person and two faces turned away; a broken file."""
    folder = tmp_path_factory.mktemp("browse")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        made = make(orl)
        made.write()
        ids = sorted(face for face, (image, *_) in made.faces.items() if made.pictures[image][0] == products.INGESTED)
        people, faces = [], []
        for number in range(4):
            person = f"p{number:012x}"
            row = dict.fromkeys(records.PEOPLE.names) | {"person_id": person, "n": 4, "centre": [1.0], "spread": 0.8}
            row |= {
                "nearest_person": f"p{(number + 1) % 4:012x}",
                "nearest_cosine": 0.2,
                "alike": False,
                "split": "train",
            }
            people.append(
                row | {"component": "c", "keep": number < 3, "reason": None if number < 3 else "too few faces"}
            )
            for rank, face in enumerate(ids[4 * number : 4 * number + 4]):
                kept = {"cosine": 0.9 - 0.1 * rank - 0.01 * number, "keep": True, "reason": None}
                faces.append({"face_id": face, "image_id": made.faces[face][0], "person_id": person, **kept})
        for face, reason in zip(ids[16:], ("side_px below 40", EVIL), strict=False):
            lost = {"person_id": None, "cosine": None, "keep": False, "reason": reason}
            faces.append({"face_id": face, "image_id": made.faces[face][0], **lost})
        products.PEOPLE.mkdir(parents=True)
        records.write(products.PEOPLE / products.PEOPLE_TABLE, people, records.PEOPLE)
        records.write(products.PEOPLE / products.PEOPLE_FACES_TABLE, faces, records.PEOPLE_FACES)
        broken = dict.fromkeys(records.IMAGES.names) | {"image_id": "0" * 64, "shard": "0009", "source": "one"}
        (products.INGESTED / "0009").mkdir()
        broken |= {"path": "</section>.jpg", "status": "error", "error": "empty file (0 bytes)"}
        store.write(products.INGESTED / "0009", [broken], {})
    return folder


@pytest.fixture
def world(made_world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made_world)
    return made_world


def page(name: str) -> Page:
    return Page((PAGE / name).read_text())


def test_people_with_the_doubtful_faces_last_and_the_doubtful_people_first(world):
    browse(Wanted(200))
    faces = products.people_faces().filter("keep")
    shown = page("people-1.html")
    ids = [value for tag, given in shown.tags if tag == "section" and (value := given.get("id"))]
    assert ids == [f"p{number:012x}" for number in (2, 1, 0, 3)], "kept before not kept, the lowest cosine first"
    own = faces.filter(person_id=ids[0]).sort("cosine", descending=True)["face_id"].to_list()
    splits = [line.split(",")[2] for line in shown.all("data-line") if line.startswith(f"split,{ids[0]}")]
    assert splits == own
    for source in shown.all("src"):
        with Image.open(PAGE / source) as picture:
            assert picture.format == "JPEG" and picture.width == picture.height <= 128
    assert len(set(shown.all("src"))) == 16


def test_a_thumbnail_shows_its_face(world, orl):
    """By the pixels: the square around the box in the stored picture."""
    browse(Wanted(200))
    face, image = products.people_faces().select("face_id", "image_id").row(0)
    row = products.images(products.INGESTED).filter(image_id=image).row(0, named=True)
    picture = store.Pictures(products.INGESTED).read(row)
    with Image.open(PAGE / "thumbnails" / f"{face}.jpg") as opened:
        thumbnail = np.asarray(opened.convert("L"), float)
    side = 129  # one and a half of the box's 86 px, of which the thumbnail keeps 128
    x, y = round((36 + 102) / 2 - side / 2), round((44 + 130) / 2 - side / 2)
    wanted = Image.fromarray(picture[y : y + side, max(x, 0) : max(x, 0) + side]).convert("L").resize((128, 128))
    assert np.abs(thumbnail - np.asarray(wanted, float)).mean() < 4


def test_lines_are_rows_of_the_corrections(world):
    browse(Wanted(200))
    lines = [line for path in PAGE.glob("*.html") for line in Page(path.read_text()).all("data-line")]
    person, face = "p[0-9a-f]{12}", "[0-9a-f]{16}-[0-9]+"
    forms = {"merge": (person, person), "split": (person, face), "drop": (f"{person}|{face}", "")}
    rows = list(csv.reader(lines))
    assert {row[0] for row in rows} == {"merge", "split", "drop"}
    for action, first, second, note in rows:
        assert re.fullmatch(forms[action][0], first) and re.fullmatch(forms[action][1], second) and not note


def test_what_was_turned_away_has_its_reason(world):
    browse(Wanted(200))
    counted = {row["reason"]: (row["kind"], row["count"]) for row in looks.rejected(Wanted(200)).rows}
    assert counted == {
        "empty file (0 bytes)": ("pictures", 1),
        "too few faces": ("people", 1),
        "side_px below 40": ("faces", 1),
        EVIL: ("faces", 1),
        "too few people": ("sets", 1),
    }
    text = (PAGE / "rejected-1.html").read_text()
    assert "one: &lt;/section&gt;.jpg" in text, "of what has no picture its path is there"
    target = products.sets().filter(~pl.col("keep"))["target_image_id"][0]
    assert f"thumbnails/{target}.jpg" in text


def test_sets(world):
    browse(Wanted(200))
    shown = page("sets-1.html")
    kept = products.sets().filter("keep")
    assert [value for tag, given in shown.tags if tag == "section" and (value := given["id"])] == kept[
        "set_id"
    ].to_list()
    first = kept.row(0, named=True)
    wanted = [first["target_image_id"], *(pool[0]["face_id"] for pool in first["pool"])]
    assert shown.all("src")[: len(wanted)] == [f"thumbnails/{one}.jpg" for one in wanted]


def test_no_text_of_the_data_is_markup(world):
    browse(Wanted(200))
    for path in PAGE.glob("*.html"):
        scripts = [given for tag, given in Page(path.read_text()).tags if tag == "script"]
        assert scripts == [{}], path
        assert "alert(1)</script>" not in path.read_text()


def test_pages_are_bounded_and_follow_each_other(world, monkeypatch):
    monkeypatch.setattr("pipelines.browse.stage.ROWS", 2)
    said = browse(Wanted(3))
    assert said.startswith(".work/browse/index.html: 3 of 4 people, 5 of 5 reasons, 3 of 7 sets")
    assert sorted(path.name for path in PAGE.glob("people-*.html")) == ["people-1.html", "people-2.html"]
    links = [given["href"] for tag, given in page("people-1.html").tags if tag == "a" and given.get("rel") == "next"]
    assert set(links) == {"people-2.html"}
    for path in PAGE.glob("*.html"):
        shown = Page(path.read_text())
        for address in (*shown.all("href"), *shown.all("src")):
            name, _, anchor = address.partition("#")
            assert (PAGE / name).is_file(), address
            assert not anchor or anchor in Page((PAGE / name).read_text()).all("id"), address


def test_a_person_with_many_faces(world, monkeypatch):
    """The surest, and those that are the most doubtful."""
    monkeypatch.setattr(looks, "FACES", 3)
    monkeypatch.setattr(looks, "SUREST", 1)
    row = looks.people(Wanted(1)).rows[0]
    own = (
        products.people_faces().filter(person_id=row["person_id"]).sort("cosine", descending=True)["face_id"].to_list()
    )
    assert ([face["face_id"] for face in row["faces"]], row["sure"], row["skipped"]) == ([own[0], *own[2:]], 1, 1)


def test_some_alone(world):
    said = browse(Wanted(200, people=("p000000000001",)))
    assert "1 of 4 people, 0 of 0 reasons" in said
    assert page("people-1.html").all("id")[0] == "p000000000001"
    assert not (PAGE / "rejected-1.html").exists()
    assert "0 of 0 people, 1 of 1 reasons" in browse(Wanted(200, reason="few people"))
    assert not (PAGE / "people-1.html").exists(), "what was there before is gone"


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (Wanted(5, people=("p000000000009",)), "no person p000000000009"),
        (Wanted(5, reason="<nothing>"), "no reason has the words '<nothing>'; there are: "),
    ],
)
def test_nobody_as_asked_for(world, wanted, words):
    browse(Wanted(2))
    before = sorted(PAGE.rglob("*"))
    with pytest.raises(BadInput, match=words):
        browse(wanted)
    assert sorted(PAGE.rglob("*")) == before, "the page that was there stands"


def test_nothing_to_show(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="dvc repro"):
        browse(Wanted(5))
    assert not PAGE.exists()


def test_a_picture_that_cannot_be_read_has_a_tile_without(world, monkeypatch):
    def broken(data: bytes) -> np.ndarray:
        raise ImageError("truncated")

    monkeypatch.setattr("pipelines.browse.thumbnails.read_image", broken)
    assert "; 0 thumbnails, " in browse(Wanted(1))
    assert "no picture" in (PAGE / "people-1.html").read_text()


def test_it_is_served_by_its_names_alone(world):
    browse(Wanted(200))
    thumbnail = next((PAGE / "thumbnails").iterdir()).name
    assert find("/.work/browse/now/index.html", world, world) == world / PAGE / "index.html"
    assert find(f"/.work/browse/now/thumbnails/{thumbnail}", world, world)
    for address in ("now/../../params.yaml", "now/thumbnails", "index.html", f"{'0' * 32}.dir/index.html"):
        assert find(f"/.work/browse/{address}", world, world) is None


def test_the_command(world, capsys):
    (world / "params.yaml").write_bytes((Path(looks.__file__).parents[2] / "params.yaml").read_bytes())
    assert main(["browse", "--limit", "1"]) == 0
    assert capsys.readouterr().out.startswith(".work/browse/index.html: 1 of 4 people")
    assert main(["browse", "--limit", "0"]) == 2
    assert capsys.readouterr().err == "browse: --limit 0: write a number from 1\n"


@pytest.mark.browser
def test_a_click_copies_its_line(world, monkeypatch):
    """From the file: buttons, two faces that were picked, and the next page, which still has the lines."""
    if not CHROMIUM.exists():
        if os.environ.get("BROWSER_TESTS") == "required":
            pytest.fail(f"{CHROMIUM} is missing")
        pytest.skip("no Chromium here")
    from playwright.sync_api import sync_playwright

    monkeypatch.setattr("pipelines.browse.stage.ROWS", 2)
    browse(Wanted(200))
    address = f"file://{world / PAGE}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": 390, "height": 800})
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        tab = context.new_page()
        faults: list[str] = []
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.goto(f"{address}/people-1.html")
        split = tab.locator('[data-line^="split"]').first
        split.click()
        line = split.get_attribute("data-line")
        assert tab.evaluate("navigator.clipboard.readText()") == line
        first, second = (tab.locator("button.pick").nth(number) for number in (0, 1))
        first.focus()
        tab.keyboard.press("Enter")
        second.click()
        tab.locator("#of-picked button", has_text="different").click()
        ids = [one.get_attribute("data-face") for one in (first, second)]
        gathered = f"{line}\ndifferent,{ids[0]},{ids[1]},\n"
        tab.keyboard.press("ArrowRight")
        tab.wait_for_url(f"{address}/people-2.html")
        assert tab.locator("#lines").input_value() == gathered
        tab.locator("#copy").click()
        assert tab.evaluate("navigator.clipboard.readText()") == gathered
        assert tab.evaluate("document.documentElement.scrollWidth") == 390, "nothing hangs over a phone's edge"
        browser.close()
    assert not faults
