"""The demo: the pictures of umo generate beside one another, as the judge sees them; what it says of bad input."""

import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
import torch
import uvicorn
from fastapi.testclient import TestClient
from PIL import Image

from tests.umo.training.conftest import TINY_UNO
from umo.customizers import Drawing, load
from umo.errors import BadInput, WorkFailed
from umo.generate import generate
from umo.serving import demo
from umo.serving.apart import ENDED, Apart, Asked, Known, Loading, Said
from umo.serving.studio import Studio

ROOT = Path(__file__).resolve().parents[3]
CHROMIUM = Path(shutil.which("chromium") or "/usr/bin/chromium")
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
KNOWN = Known(("base: tiny", "LoRA: mine"), 3, 4, "bands", 0.9, "licences: none")
MINUTES = 60_000  # milliseconds


@pytest.fixture(scope="module")
def photographs(orl: Callable[[int, int], np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Of two people whom the embedded base has not seen."""
    folder = tmp_path_factory.mktemp("photographs")
    for name, person in (("ann.png", 7), ("bob.png", 12)):
        Image.fromarray(orl(person, 1)).save(folder / name)
    return folder / "ann.png", folder / "bob.png"


def stirred(base: Path, out: Path, by: float) -> Path:
    """A LoRA for a base that changes what it draws."""
    customizer = load(base)
    customizer.add_lora(2)
    generator = torch.Generator().manual_seed(0)
    for weight in customizer.transformer.parameters():
        if weight.requires_grad:
            weight.data += by * torch.randn(weight.shape, generator=generator)
    customizer.save_lora(out)
    return out


@pytest.fixture(scope="module")
def lora(base: Path) -> Path:
    return stirred(base, base.parent / "mine", 0.1)


@pytest.fixture
def said() -> list[Said]:
    return []


@pytest.fixture
def studio(base: Path, band_judge) -> Studio:
    return Studio(load(base), band_judge)


# What is drawn


def test_the_pictures_are_those_of_umo_generate(base: Path, lora: Path, band_judge, photographs, said) -> None:
    """With the LoRA off the base's, bit for bit; also after it was on."""
    kept: dict[str, np.ndarray] = {}

    class Watched(Studio):
        def figure(self, references, prompt, name, picture) -> str:
            kept[name] = np.asarray(picture)
            return super().figure(references, prompt, name, picture)

    prompt = demo.suggested(2)
    watched = Watched(load(base, lora), band_judge, "mine")
    for rank in (1, 0):
        watched.draw(Asked(photographs, prompt, 3, 2, rank), said.append)
    assert [one.value for one in said if one.kind == "done"] == [0.5, 1.0] * 2
    figures = [one.value for one in said if one.kind == "figure"]
    assert ["LoRA: mine" in figure for figure in figures] == [True, False] and all("<svg" in one for one in figures)
    how = Drawing(steps=2)
    for name, own in (("base: tiny", None), ("LoRA: mine", lora)):
        (expected,) = generate(base, prompt, photographs, (3,), how, own)
        assert np.array_equal(kept[name], np.asarray(expected)), name
    assert not np.array_equal(*kept.values())


def test_a_picture_is_shown_with_boxes_cosines_and_words(studio: Studio, bands) -> None:
    figure = studio.figure([bands(RED), bands(GREEN)], "", "<b>", Image.fromarray(bands(GREEN, RED, RED, BLUE)))
    assert "<figcaption>&lt;b&gt;</figcaption>" in figure
    tags = re.findall(r'class="tag">([^<]+)<', figure)
    assert sorted(tags) == ["1", "1", "1.00", "1.00", "2", "2", "duplicate", "extra"]
    assert "<p>likeness 1.00, kept apart 0.50; 2 of 2 recognised, 1 drawn twice, 1 stranger</p>" in figure


def test_a_person_who_is_not_there_is_missing(studio: Studio, bands) -> None:
    figure = studio.figure([bands(RED)], "", "base", Image.fromarray(bands(BLUE)))
    assert "1 missing" in figure and "stroke-dasharray" in figure
    assert "<p>likeness 0.00; 0 of 1 recognised, 0 drawn twice, 0 strangers</p>" in figure


def test_one_face_for_two_people_is_not_kept_apart(studio: Studio, bands) -> None:
    figure = studio.figure([bands(RED), bands(GREEN)], "", "base", Image.fromarray(bands(RED)))
    assert "<p>likeness 0.50; 1 of 2 recognised, 0 drawn twice, 0 strangers</p>" in figure


def test_a_picture_that_cannot_be_judged_says_why(studio: Studio, bands) -> None:
    figure = studio.figure([bands()], "", "base", Image.fromarray(bands(RED)))
    assert "<p>not judged: cannot be judged: reference photograph 1: no face found" in figure


# Photographs that cannot be taken, or not without doubt


def bomb(path: Path) -> Path:
    """Few bytes that say they are 3.6 gigapixels; whoever decodes them finds them cut short."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 1000) + b"IDAT" + b"\0" * 100)
    return path


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        ("bomb", r"photograph 2: 60000x60000 px is over the limit of 50,000,000 pixels: scale it down"),
        ("text", r"photograph 2: not an image: convert it"),
        ("empty", r"photograph 2: empty file \(0 bytes\)"),
        ("nobody", r"photograph 2: no face found: choose a photograph with a visible face"),
        ("gone", r"photograph 2: cannot be read"),
    ],
)
def test_a_photograph_that_cannot_be_used_is_told(
    studio: Studio, photographs, tmp_path: Path, said, second: str, reason: str
) -> None:
    path = tmp_path / "second"
    match second:
        case "bomb":
            bomb(path)
        case "text":
            path.write_text("no picture")
        case "empty":
            path.touch()
        case "nobody":
            Image.new("RGB", (200, 200), "grey").save(path, format="PNG")
    with pytest.raises(BadInput, match=reason) as told:
        studio.draw(Asked((photographs[0], path), demo.suggested(2), 0, 1), said.append)
    assert "\n" not in str(told.value) and said == []


@pytest.mark.parametrize("count", [0, 4])
def test_too_few_or_too_many_photographs_are_refused(studio: Studio, photographs, said, count: int) -> None:
    with pytest.raises(BadInput, match=f"{count} photographs: give 1 to 3, one of each person"):
        studio.draw(Asked(photographs[:1] * count, demo.suggested(1), 0, 1), said.append)


def test_doubts_are_told_once(base: Path, lora: Path, band_judge, group_photo, tmp_path: Path, said) -> None:
    Image.fromarray(group_photo).save(tmp_path / "six.png")
    studio = Studio(load(base, lora), band_judge, "mine")
    for rank in (0, 1):
        studio.draw(Asked((tmp_path / "six.png",), "zebras juggling <b>", 0, 1, rank), said.append)
    assert [one.value for one in said if one.kind == "warning"] == [
        "photograph 1: 6 faces; the largest is taken",
        "tiny does not know most words of the prompt: zebras, juggling, b; it cannot draw what they say",
    ]


# The process that draws


def answer(coming: Iterator[Said]) -> Said:
    return list(coming)[-1]


@pytest.mark.slow
def test_the_process_draws_again_after_an_error_and_after_somebody_left(base: Path, photographs) -> None:
    studio = Apart(Loading(str(base), judge="opencv_zoo"))
    known = studio.known()
    assert known.names == ("base: tiny",) and (known.max_references, known.steps) == (3, 4)
    assert known.licences == "licences: tiny: unknown"
    asked = Asked(photographs[:1], demo.suggested(1), 0, 3)
    first = answer(studio.draw(asked))
    assert first.kind == "figure"
    wrong = answer(studio.draw(asked._replace(photographs=())))
    assert wrong.kind == "error" and isinstance(wrong.value, BadInput)
    assert answer(studio.draw(asked._replace(steps="many"))).value.args[0].startswith("TypeError: ")
    left = studio.draw(asked._replace(seed=5))
    assert next(left).kind == "done"
    assert answer(studio.draw(asked)) == first
    os.kill(studio.process.pid, signal.SIGKILL)
    with pytest.raises(WorkFailed, match=ENDED):
        list(studio.draw(asked))
    with pytest.raises(WorkFailed, match=ENDED):
        list(studio.draw(asked))


@pytest.mark.slow
def test_a_broken_lora_is_refused_before_anything_listens(umo, base: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(socket, "create_server", lambda *_, **__: pytest.fail("it listens"))
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, "")
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    code, out, err = umo("demo", "--model", str(base), "--lora", str(tmp_path / "broken.safetensors"))
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert "broken.safetensors: LoRA is no safetensors file" in err


# The page


class Fake:
    """A studio that says what it is told to."""

    def __init__(self, *says: Said) -> None:
        self.says, self.asked = says, []

    def draw(self, asked: Asked) -> Iterator[Said]:
        self.asked.append(asked)
        return iter(self.says)


@pytest.fixture
def upload(tmp_path: Path) -> list[tuple[str, None]]:
    (tmp_path / "a.png").touch()
    return [(str(tmp_path / "a.png"), None)]


def draw(studio: Any, uploads: Any, prompt: str = "One", seed: int | None = 7) -> Iterator[str]:
    return demo.Page(studio, KNOWN).draw(uploads, prompt, seed, 4, lambda *_, **__: None)  # type: ignore[arg-type]


def test_pictures_appear_one_after_the_other_and_none_is_drawn_for_who_left(upload) -> None:
    studio = Fake(Said("done", 1.0), Said("figure", "<figure></figure>"))
    shown = draw(studio, upload)
    assert next(shown) == '<div class="drawings"><figure></figure></div>'
    assert studio.asked == [Asked((Path(upload[0][0]),), "One", 7, 4, 0)]
    assert next(shown) == '<div class="drawings"><figure></figure><figure></figure></div>'
    assert [one.rank for one in studio.asked] == [0, 1]
    left = Fake(Said("figure", ""))
    shown = draw(left, upload)
    next(shown)
    shown.close()  # type: ignore[attr-defined]
    assert [one.rank for one in left.asked] == [0]


@pytest.mark.parametrize("error", [BadInput("x <b>"), WorkFailed("x <b>")])
def test_what_goes_wrong_is_an_error_of_the_page(upload, error: Exception) -> None:
    with pytest.raises(gr.Error) as told:
        next(draw(Fake(Said("error", error)), upload))
    assert told.value.message == "x &lt;b&gt;" and not told.value.print_exception


@pytest.mark.parametrize(("prompt", "seed"), [(" ", 0), ("One", None)])
def test_empty_fields_are_told(upload, prompt: str, seed: int | None) -> None:
    studio = Fake()
    with pytest.raises(gr.Error, match="the prompt or the seed is empty"):
        next(draw(studio, upload, prompt, seed))
    assert studio.asked == []


def test_an_upload_that_was_removed_is_told(upload) -> None:
    Path(upload[0][0]).unlink()
    with pytest.raises(gr.Error, match="over 10 minutes here and was removed: upload it again"):
        next(draw(Fake(), upload))


def test_warnings_are_shown(upload, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    monkeypatch.setattr(gr, "Warning", heard.append)
    next(draw(Fake(Said("warning", "<b>"), Said("figure", "")), upload))
    assert heard == ["&lt;b&gt;"]


def test_the_suggestion_follows_the_photographs_and_leaves_what_was_written() -> None:
    two = demo.suggest([("a", None)] * 2, demo.suggested(1))
    assert two.startswith("A photo of two people") and "the second person on the right" in two
    assert demo.suggest(None, two) == demo.suggest([("a", None)], "") == demo.suggested(1)
    assert demo.suggest([("a", None)] * 2, "Two friends") == "Two friends"


def test_the_drawings_are_styled_as_the_reports(bands) -> None:
    """Panels come without their style."""
    report = (ROOT / "umo/reporting/templates/base.html.j2").read_text()
    for rule in ("svg .halo { ", "svg .line { ", "svg.pictures { font: "):
        (said,) = re.findall(re.escape(rule) + "(.*?)}", report)
        start = rule.partition("{")[0]
        (own,) = re.findall(re.escape(start) + r"\{(.*?)\}", demo.CSS)
        assert said.strip().removeprefix("font: ") in own


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """A client of a page whose uploads go after a second."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    monkeypatch.setattr(demo, "MINUTES", 1 / 60)
    monkeypatch.setattr(demo, "LOOK_AGAIN", 1)
    page = demo.create_page(Fake(), KNOWN)  # type: ignore[arg-type]
    with TestClient(demo.create_app(page, 1)) as client:
        yield client


def test_uploads_are_removed_and_what_is_too_large_is_not_taken(served: TestClient, tmp_path: Path) -> None:
    address, uploads = "/gradio_api/upload", tmp_path / "uploads"
    answered = served.post(address, files={"files": ("a.png", b"0" * 2_000_000)})
    assert answered.status_code == 413
    assert served.post(address, files={"files": ("a.png", b"0")}).status_code == 200
    until = time.monotonic() + 60
    while [path for path in uploads.rglob("*") if path.is_file()]:
        assert time.monotonic() < until
        time.sleep(0.1)


def test_there_is_no_page_but_the_one(served: TestClient) -> None:
    assert "people who agreed to it" in served.get("/config").text and served.get("/").status_code == 200
    assert {served.get(path).status_code for path in ("/docs", "/redoc", "/openapi.json")} <= {404, 307}
    assert served.get("/config").json()["analytics_enabled"] is False


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command, with nothing behind it and its signals and environment left alone."""

    class Loaded(Fake):
        def known(self) -> Known:
            return KNOWN

    from umo.serving import apart

    monkeypatch.setattr(apart, "Apart", Loaded)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, "")


@pytest.fixture
def serves(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Where it would listen; it stops at once."""
    found: list[tuple[str, int]] = []

    def run(self: uvicorn.Server, sockets: list[socket.socket]) -> None:
        found.append(sockets[0].getsockname()[:2])
        raise KeyboardInterrupt

    monkeypatch.setattr(uvicorn.Server, "run", run)
    return found


def test_it_says_where_it_is_and_warns_where_others_reach_it(umo, loaded, serves) -> None:
    port = free_port()
    code, out, err = umo("demo", "--port", str(port))
    assert (code, out, err) == (0, f"http://127.0.0.1:{port}\nlicences: none\n", "")
    code, out, err = umo("demo", "--port", str(port), "--host", "0.0.0.0")
    assert err == f"warning: whoever reaches 0.0.0.0:{port} may use it; it asks for no password\n"
    assert (code, serves) == (0, [("127.0.0.1", port), ("0.0.0.0", port)])


def test_a_port_that_is_taken_is_told_in_a_line(umo, loaded, serves) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, err = umo("demo", "--port", str(port))
    said = f"umo: 127.0.0.1:{port}: Address already in use; choose another --port or --host\n"
    assert (code, out, err, serves) == (2, "", said, [])


def test_without_gradio_it_says_what_to_install(umo, loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "umo.serving.demo")
    monkeypatch.setitem(sys.modules, "gradio", None)
    code, _, err = umo("demo")
    assert (code, err) == (2, "umo: the demo needs gradio: pip install 'umo[demo]'\n")


# In a browser


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`umo demo` with the embedded base, the real judge and a LoRA: that of the pipeline, where it was trained."""
    trained = ROOT / "runs/train/ours"
    lora = trained if list(trained.glob("*.safetensors")) else stirred(TINY_UNO, tmp_path / "stirred", 0.05)
    port = free_port()
    (tmp_path / "tmp").mkdir()
    command = [sys.executable, "-m", "umo.cli", "demo", "--lora", str(lora), "--port", str(port)]
    with (tmp_path / "stderr").open("w") as stderr:
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | {"TMPDIR": str(tmp_path / "tmp")},
            stdout=subprocess.PIPE, stderr=stderr, text=True,
        )  # fmt: skip
        yield process, port
        process.kill()
        process.wait()


@pytest.fixture
def page(running, tmp_path: Path) -> Iterator[Any]:
    if not CHROMIUM.exists():
        if os.environ.get("BROWSER_TESTS") == "required":
            pytest.fail(f"no Chromium at {CHROMIUM}")
        pytest.skip(f"no Chromium at {CHROMIUM}")
    from playwright.sync_api import sync_playwright

    process, port = running
    assert process.stdout and process.stdout.readline() == f"http://127.0.0.1:{port}\n", (
        tmp_path / "stderr"
    ).read_text()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": 1280, "height": 700}, base_url=f"http://127.0.0.1:{port}")
        context.set_default_timeout(2 * MINUTES)
        yield context.new_page()
        browser.close()


def begin(page: Any, photographs: tuple[Path, ...]) -> None:
    """Upload two photographs, wait for the prompt to follow, and draw."""
    page.goto("/")
    page.locator("input[type=file]").first.set_input_files([str(path) for path in photographs])
    page.wait_for_function("document.querySelector('textarea').value.includes('two people')")
    page.get_by_role("button", name="Draw").click()


@pytest.mark.browser
@pytest.mark.slow
def test_from_photographs_to_two_pictures_with_boxes_and_cosines(page, running, photographs, tmp_path: Path) -> None:
    asked: list[str] = []
    page.context.on("request", lambda request: asked.append(request.url))
    begin(page, photographs)
    page.locator("figure svg.pictures").nth(1).wait_for()
    base, lora = page.locator("figure").all()
    assert "base: tiny-uno" in base.inner_text() and "LoRA: " in lora.inner_text()
    for figure in (base, lora):
        assert re.search(r"likeness \d\.\d\d.*; \d of 2 recognised", figure.inner_text())
        assert figure.locator("svg image").count() == 3
    assert re.search(r"^\d\.\d\d$", base.inner_text(), re.MULTILINE) and base.locator("svg rect.line").count() >= 3
    page.wait_for_timeout(1500)  # what moves has come to rest
    picture = Path(os.environ.get("SCREENSHOTS") or tmp_path) / "demo.jpg"
    page.screenshot(path=picture, quality=85, type="jpeg")
    assert picture.stat().st_size < 200_000  # it goes into git

    page.locator("textarea").fill("A photo of nobody.")
    Image.new("RGB", (200, 200), "grey").save(tmp_path / "nobody.png")
    page.get_by_label("Clear").first.click()
    page.locator("input[type=file]").first.set_input_files(tmp_path / "nobody.png")
    page.get_by_role("button", name="Draw").click()
    page.get_by_text("photograph 1: no face found: choose a photograph with a visible face").first.wait_for()

    begin(other := page.context.new_page(), photographs)
    other.close()
    begin(again := page.context.new_page(), photographs)
    again.locator("figure svg.pictures").nth(1).wait_for()

    host = f"http://127.0.0.1:{running[1]}/"
    assert [url for url in asked if not url.startswith((host, "data:", "blob:"))] == []
    running[0].terminate()
    assert running[0].wait(30) == 0
    assert list((tmp_path / "tmp").glob("umo-demo-*")) == []
    assert "Traceback" not in (tmp_path / "stderr").read_text()
