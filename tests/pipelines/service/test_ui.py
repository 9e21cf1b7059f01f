"""The operations way in a browser: the form, the run, its artifacts.

On stages that take no time; `make test-long` does it on real ones, and SCREENSHOTS=docs/images keeps its pictures.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipelines.conftest import Workspace
from tests.pipelines.service.toy import BY_HAND, Served, free_port, until

pytestmark = [pytest.mark.browser, pytest.mark.server, pytest.mark.slow]

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
QUIET = ("background-networking", "component-update", "sync", "gpu", "quic")
ARGUMENTS = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in QUIET)]
WIDTH, HEIGHT = 1280, 860
MINUTES = 60_000  # milliseconds


class Copy(Workspace):
    """Nine people and their data set, with a port for its server."""

    def __init__(self, path: Path, port: int) -> None:
        super().__init__(path)
        self.port = port

    def environment(self) -> dict[str, str]:
        return super().environment() | BY_HAND | {"PORT": str(self.port)}


@pytest.fixture(scope="module", params=["toy", pytest.param("real", marks=pytest.mark.long)])
def ui(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    if request.param == "toy":
        yield request.getfixturevalue("served")
        return
    small, port = request.getfixturevalue("small"), free_port()
    served = Served(Copy(small.copy(tmp_path_factory.mktemp("browser") / "umo").path, port), port)
    served.serve()
    yield served
    served.stop()


@pytest.fixture
def page(ui: Served):
    """A page of the UI."""
    if not Path(CHROMIUM).exists():
        if os.environ.get("BROWSER_TESTS") == "required":
            pytest.fail(f"no Chromium at {CHROMIUM}")
        pytest.skip(f"no Chromium at {CHROMIUM}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, base_url=f"http://127.0.0.1:{ui.port}")
        page.set_default_timeout(MINUTES)
        page.route(
            lambda url: "//127.0.0.1:" not in url, lambda route: route.abort()
        )  # Data Docs ask the web for styles
        yield page
        browser.close()


@pytest.fixture
def keep(ui: Served, page, tmp_path: Path):
    """Keep what is seen as a picture."""
    real = isinstance(ui.workspace, Copy)
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path) if real else tmp_path
    folder.mkdir(parents=True, exist_ok=True)

    def keep(name: str) -> None:
        page.wait_for_timeout(1500 if real else 0)  # what moves has come to rest
        page.screenshot(path=folder / name, **({"quality": 80} if name.endswith(".jpg") else {}))
        assert (folder / name).stat().st_size < 200_000  # it goes into git

    return keep


def submit(page) -> str:
    """Press Submit, as a person does once more where nothing came of it: the form checks its fields while it is filled.

    Returns the run's id.
    """
    from playwright.sync_api import TimeoutError

    said = "nothing was asked for"
    for _ in range(4):
        try:
            with page.expect_request(lambda request: "create_flow_run" in request.url, timeout=20_000) as asked:
                page.get_by_role("button", name="Submit").click()
        except TimeoutError:
            continue
        answer = asked.value.response()
        if answer.ok:
            return answer.json()["id"]
        said = f"{answer.status}: {answer.text()}"
    pytest.fail(f"no run was made: {said}")


def test_a_run_from_the_form_to_its_artifacts(ui, page, keep):
    page.goto("/deployments")
    page.get_by_role("link", name="build_dataset").first.wait_for()
    keep("deployments.png")
    page.get_by_text("build_dataset", exact=True).first.click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()
    page.get_by_text("Min Cosine").wait_for()
    page.locator("input[type=text]").first.fill("stricter")
    page.locator("input[type=number]").first.fill("0.55")
    keep("form.png")
    run = submit(page)

    page.goto("about:blank")  # a page that shows a run at work takes a core
    until(lambda: ui.state(run)[0] not in ("SCHEDULED", "PENDING", "RUNNING"), 600)
    assert ui.state(run)[0] == "COMPLETED"
    page.goto(f"/runs/flow-run/{run}")
    page.get_by_text("Completed", exact=True).first.wait_for()
    page.get_by_text("validate", exact=True).first.or_(page.get_by_text("Task Runs")).first.wait_for()
    keep("run.png")

    page.get_by_text("Artifacts", exact=True).click()
    page.get_by_text("validation", exact=True).first.click()
    page.get_by_text("Every expectation is met.").wait_for()
    keep("validation.png")
    docs = page.get_by_role("link", name="Great Expectations' Data Docs")
    page.goto(docs.get_attribute("href"))
    if isinstance(ui.workspace, Copy):
        assert page.title() == "Data Docs created by Great Expectations"
    assert ("sets turned away" if page.title() else "all is well") in page.content()  # a suite's name; the toy's page

    seen = {"funnel.png": "kept as sets", "contact-sheet.jpg": "The first sets of each split"}
    for picture, text in seen.items():
        page.goto(f"/artifacts/key/{Path(picture).stem}")
        page.get_by_role("link", name=re.compile(r"^[0-9a-f]{8}$")).first.click()
        page.get_by_text(text).first.wait_for()
        keep(picture)
    sheet = page.locator("img[alt^=contact_sheet]").first
    width = sheet.evaluate("picture => picture.decode().then(() => picture.naturalWidth)")
    assert width > 100  # it came from the file server

    assert "stricter" in ui.workspace.run("dvc", "exp", "list", "--all").stdout
    assert ui.workspace.run("git", "status", "--porcelain").stdout == ""


def test_a_failed_validation_is_seen(ui, page, keep):
    run, state, message = ui.run("build_dataset", overrides={"set": {"validate.min_sets": 1000}})
    assert state == "FAILED"
    page.goto(f"/runs/flow-run/{run}")
    page.get_by_text("Failed", exact=True).first.wait_for()
    page.get_by_text("Details", exact=True).click()
    page.get_by_text(re.compile("validate: .*validate.min_sets")).first.wait_for()  # the state's message
    page.get_by_text("Artifacts", exact=True).click()
    page.get_by_text("validation", exact=True).first.click()
    page.get_by_text("Validation failed").wait_for()
    assert message.startswith("validate: ") and "validate.min_sets" in message
    keep("failed-validation.png")
