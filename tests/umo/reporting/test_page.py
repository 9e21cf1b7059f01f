"""`umo report`: a page that stands alone, and a leaderboard that keeps what was there."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from umo.reporting import tables

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.fixture
def scored(tmp_path: Path, bands, named_bands, umo, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two evaluations of the same three cases, a picture of one of which is broken; the current folder for the test."""
    monkeypatch.chdir(tmp_path)
    for name, colours in {"r": [RED], "g": [GREEN], "b": [BLUE]}.items():
        Image.fromarray(bands(*colours)).save(tmp_path / f"{name}.png")
    drawn = {"mine": [(RED, GREEN), (RED, RED), (BLUE,)], "other": [(GREEN, (90, 200, 0)), (RED,), ()]}
    for name, pictures in drawn.items():
        (tmp_path / name).mkdir()
        lines = []
        for k, (references, colours) in enumerate(zip((["r", "g"], ["r", "g"], ["b"]), pictures, strict=True)):
            Image.fromarray(bands(*colours)).save(tmp_path / f"{name}/{k}.png")
            paths = [f"../{one}.png" for one in references]
            lines.append({"case_id": str(k), "prompt": "<some> people", "references": paths, "images": [f"{k}.png"]})
        (tmp_path / f"{name}/cases.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "other/2.png").write_bytes(b"no picture")
    for name in drawn:
        assert umo("evaluate", f"{name}/cases.jsonl", "--out", f"scores/{name}", "--judge", "bands")[0] == 0
    return tmp_path


class Links(HTMLParser):
    """What a page loads from elsewhere, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [value for name, value in attrs if name in ("src", "href") and value and value[:5] != "data:"]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_one_page_shows_pictures_numbers_differences_and_failures(scored: Path, umo) -> None:
    code, out, _ = umo("report", "scores/mine", "scores/other", "--out", "report/page.html", "--title", "Two <models>")
    assert code == 0 and "report/page.html" in out
    page = (scored / "report/page.html").read_text()
    found = Links()
    found.feed(page)
    assert [link for link in found.loaded if not link.startswith("#")] == []
    for said in (
        "Two <models>",
        "<some> people",
        "Most alike: other",
        "Largest losses against mine: other",
        "not an image",
    ):
        assert said in found.text, said
    metrics = json.loads((scored / "scores/mine/metrics.json").read_text())
    assert tables.number(metrics["id_sim_strict"]["mean"]) in found.text
    assert metrics["judge"]["files"]["bands.weights"] in found.text
    assert page.index("Most alike") < page.index("likeness, strict"), "pictures come first"
    assert page.count("data:image/jpeg") > 6
    assert umo("report", "scores/mine", "scores/other", "--out", "again.html", "--title", "Two <models>")[0] == 0
    assert (scored / "again.html").read_text() == page


def test_an_evaluation_alone_and_one_without_cases(scored: Path, umo) -> None:
    assert umo("report", "scores/mine", "--out", "one.html")[0] == 0
    assert "Differences" not in (scored / "one.html").read_text()
    (scored / "scores/mine/CASES.jsonl").unlink()
    assert umo("report", "scores/mine", "--out", "one.html")[0] == 0
    assert "mine has no CASES.jsonl" in " ".join((scored / "one.html").read_text().split())


def test_a_leaderboard_keeps_those_of_before(scored: Path, umo) -> None:
    board = scored / "board.json"
    for given in (["scores/mine"], ["scores/other"], ["mine=scores/other", "again=scores/mine"]):
        assert umo("report", *given, "--out", "page.html", "--leaderboard", "board.json")[0] == 0
    rows = json.loads(board.read_text())["rows"]
    assert {row["name"] for row in rows} == {"mine", "other", "again"}
    means = [row["id_sim_strict"]["mean"] for row in rows]
    assert means == sorted(means, reverse=True)
    worse = json.loads((scored / "scores/other/metrics.json").read_text())["id_sim_strict"]
    assert [row["id_sim_strict"] for row in rows if row["name"] == "mine"] == [worse], "the newer one of a name"
    (row,) = (row for row in rows if row["name"] == "again")
    assert row["judge"]["files"].keys() == {"bands.weights"} and len(row["scores"]) == 64 and row["cases"] == 3


def test_numbers_of_a_benchmark_are_shown(scored: Path, umo) -> None:
    path = scored / "scores/mine/metrics.json"
    value = {"mean": 12.5, "n": 3, "skipped": {"picture with fewer than two faces": 4}}
    own = {"name": "xverse-multi", "revision": "bytedance/XVerse @1", "licence": "", "items": 3, "missing": 2}
    own |= {"skipped": {}, "published": {"id_conf": value}, "published_judge": "IR-SE50", "comparable": "they are not"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"benchmark": own}))
    assert umo("report", "scores/mine", "--out", "page.html", "--leaderboard", "board.json")[0] == 0
    found = Links()
    found.feed((scored / "page.html").read_text())
    for said in (
        "xverse-multi, bytedance/XVerse @1",
        "12.500",
        "4: picture with fewer",
        "2 pictures missing",
        "they are not",
    ):
        assert said in found.text, said
    (row,) = json.loads((scored / "board.json").read_text())["rows"]
    assert row["benchmark"]["published"] == {"id_conf": value}


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["scores"], "scores: no metrics.json; give a folder that umo evaluate"),
        (["nowhere"], "nowhere: no metrics.json"),
        (["scores/mine", "mine=scores/other"], "two evaluations are named 'mine': give one as NAME=DIR"),
        (["scores/mine", "scores/strange"], "strange and mine were judged differently"),
        (["scores/broken"], "no metrics of an evaluation; evaluate again"),
        (["scores/mine", "--leaderboard", "mine/cases.jsonl"], "mine/cases.jsonl: not JSON"),
        (["scores/mine", "--leaderboard", "list.json"], "list.json: no leaderboard (an object with rows)"),
        (["scores/mine", "--leaderboard", "rows.json"], "a row without name, benchmark and judge"),
    ],
)
def test_what_is_no_evaluation_is_refused_and_nothing_is_written(scored: Path, umo, given, reason: str) -> None:
    for name, change in (("strange", {"judge": {"name": "x"}}), ("broken", None)):
        folder = scored / "scores" / name
        folder.mkdir()
        found = json.loads((scored / "scores/mine/metrics.json").read_text())
        (folder / "metrics.json").write_text(json.dumps({} if change is None else found | change))
        (folder / "scores.parquet").write_bytes((scored / "scores/mine/scores.parquet").read_bytes())
    (scored / "list.json").write_text("[]")
    (scored / "rows.json").write_text('{"rows": [{"name": "a"}]}')
    code, _, err = umo("report", *given, "--out", "page.html")
    assert code == 2 and reason in err, err
    assert not (scored / "page.html").exists()


def test_evaluate_leaves_the_cases_beside_the_scores_and_never_over_the_users(scored: Path, umo) -> None:
    kept = (scored / "scores/mine/CASES.jsonl").read_text().splitlines()
    assert json.loads(kept[0])["references"] == ["../../r.png", "../../g.png"]
    own = scored / "mine/CASES.jsonl"
    (scored / "mine/cases.jsonl").rename(own)
    before = own.read_text()
    assert umo("evaluate", "mine/CASES.jsonl", "--out", "mine", "--judge", "bands")[0] == 0
    assert own.read_text() == before
